"""Drivers of real noise devices, one file per family, all behind the Protocol in `base`.

    base     what a driver is: symbols, readings, descriptions, errors
    usb      what every libusb driver shares: contexts, claims, errno to error
    detect   what is attached: USB, serial ports, /dev/hwrng

A driver moves samples and says what they are. It tests nothing (edgeseal.entropy.monitor does) and conditions nothing
(edgeseal.entropy.reader does), and it never substitutes a sample that did not come from the device.
"""
