"""edgeseal: brings a model from a workstation to a device so that nobody else can change it, roll it back or read it.

This package is everything a device installs: formats and protocols, trust, storage, and the agent on top.
Host tools live in `edgeseal_host`; nothing here imports them.
"""

__version__ = "0.1.0"
