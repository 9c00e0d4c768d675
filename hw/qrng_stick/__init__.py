"""The QRNG stick: values, noise model, ngspice front end, schematic, parts; `./dev hw` runs them all."""
