"""The manufacturing station: many devices at once get their identity over serial lines, and a journal remembers each.

    directory, batch     a station's files; what a batch wants of every device
    chain, journal       entries that nobody can change unnoticed; the SQLite file they are in
    book                 who is admitted, under which name (the dialogue's `Book`)
    probe, lane          one port's life: who is there, the dialogue, PASS or FAIL until the device is taken away
    cable, ports, hall   bytes: one open port, which ports there are, the loop over all of them
    screen, reports      what a technician sees, what a script reads
    exports, labels, enrolments, uploader    what leaves the station
    simulation           devices that are none, for a dry run

Not here: what station and device say to each other (edgeseal.provisioning).
"""
