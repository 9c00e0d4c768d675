"""One update pass in a process of its own that waits for a line first: see `injected`."""

from __future__ import annotations

import sys

import edgeseal.device.exchange
import edgeseal.device.update
import edgeseal.runtime.adapters
import edgeseal.transport.objects
import edgeseal.trust.refresh  # noqa: F401 - imported before the harness looks
from edgeseal.device.cli import main

if __name__ == "__main__":
    print("ready", flush=True)  # noqa: T201 - the harness waits for this line
    sys.stdin.readline()
    sys.exit(main(sys.argv[1:]))
