"""`./dev bench`: every measurement of the project, as ratios against a floor or a peer of the same run.

    python -m tests.bench [--json] [--only install,session]

Each module beside this one has a `measure()` that returns numbers by name. Nothing here asserts: a slow machine is no
failure. Run it on an idle machine; ratios hold from machine to machine, absolute times do not.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from typing import Final

SECTIONS: Final = (
    "install",
    "session",
    "poll",
    "agent",
    "delta",
    "assess",
    "gate",
    "swap",
    "shadow",
    "spin",
    "entropy",
    "line",
)


def main() -> None:
    """Measure the chosen sections and print them."""
    arguments = _arguments()
    results: dict[str, dict[str, object]] = {}
    for section in arguments.only:
        started = time.monotonic()
        print(f"bench: {section} ...", file=sys.stderr, flush=True)
        results[section] = dict(importlib.import_module(f"tests.bench.{section}").measure())
        print(f"bench: {section} took {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    if arguments.json:
        print(json.dumps(flattened(results), indent=2))
        return
    for section, numbers in results.items():
        print(f"\n{section}")
        for name, value in numbers.items():
            print(f"  {name:<40} {_text(value)}")


def flattened(results: dict[str, dict[str, object]]) -> dict[str, object]:
    """Return one object with keys `section.name`, as time-series stores want them."""
    return {f"{section}.{name}": value for section, numbers in results.items() for name, value in numbers.items()}


def _text(value: object) -> str:
    return f"{value:,.3f}" if isinstance(value, float) else str(value)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev bench", description="Measure edgeseal on this machine.")
    parser.add_argument("--json", action="store_true", help="print one JSON object to standard output")
    parser.add_argument(
        "--only", type=_sections, default=list(SECTIONS), help=f"comma-separated, of: {', '.join(SECTIONS)}"
    )
    return parser.parse_args()


def _sections(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [n for n in names if n not in SECTIONS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(SECTIONS)}")
    return names


if __name__ == "__main__":
    main()
