"""The main loop, or a word to whoever sits at the REPL."""

from qrng import startup

if startup.started():
    startup.run()
else:
    print("edgeseal QRNG: the strap is closed, so there is a REPL and no ESQ1. Open it and replug.")  # noqa: T201
