"""Firmware of the edgeseal QRNG stick: what runs on the RP2350 or RP2040 beside the codec it shares with the host.

    core          the stick without its hardware: requests in, frames out; runs and is tested anywhere
    sweep         the calibration sweep: sums over LED off and L1 to L4
    loops         inner loops: loops_viper on the chip, loops_plain everywhere else, the same results
    board         pins, registers and numbers of the two chips
    sampler       ADC into a ring of blocks by two chained DMA channels
    light         LED levels by PWM, status LED
    front         sampler, light, monitor and strap behind the interface that core wants
    link          machine.USBDevice: descriptors, control requests, bulk IN

The codec is edgeseal.stick, byte for byte the agent's files. Raw samples are never stopped, replaced or whitened here,
and nothing imports the `random` module.
"""
