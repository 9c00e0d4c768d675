"""One update pass in a child of a process that has imported everything: see `injected`."""

from __future__ import annotations

import importlib
import pkgutil
import sys

from tests.sim import forking

import edgeseal
from edgeseal.device.cli import main


def preload() -> None:
    """Import the whole agent, so that a fault meets what a pass does and not its imports."""
    for module in pkgutil.walk_packages(edgeseal.__path__, "edgeseal."):
        importlib.import_module(module.name)
    importlib.import_module("encodings.idna")  # what a connection to a named host loads the first time


if __name__ == "__main__":
    *words, option, errors = sys.argv[1:]
    assert option == "--errors"
    preload()
    forking.serve(lambda: main(words), errors)
