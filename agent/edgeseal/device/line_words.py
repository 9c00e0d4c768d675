"""The words of `edgeseal-agent provision` and `lock`: argparse only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

BAUD: Final = 115_200
LINGER: Final = 3.0  # seconds after the last word of a locked dialogue: the station may not have heard it


def add(
    commands: Any,  # noqa: ANN401 - argparse's
    common: argparse.ArgumentParser,
    provision: Callable[..., int],
    lock: Callable[..., int],
) -> None:
    """Add both to the sub-commands."""
    line = commands.add_parser(
        "provision",
        parents=[common],
        help="answer a manufacturing station over serial lines",
        epilog="Ends with 0 once the device is locked, 4 if it was before, 5 if it was stopped before the lock.",
    )
    line.add_argument(
        "--port", action="append", required=True, metavar="PATH", help="a serial port, or stdio; may be given again"
    )
    line.add_argument("--baud", type=int, default=BAUD, metavar="N", help=f"of a real UART ({BAUD})")
    line.add_argument(
        "--linger", type=float, default=LINGER, metavar="SECONDS", help=f"after the lock, for a lost answer ({LINGER})"
    )
    line.add_argument("--reset", action="store_true", help="also when locked: wait for an authorised factory reset")
    line.set_defaults(run=provision)
    commands.add_parser("lock", parents=[common], help="answer no manufacturing station any more").set_defaults(
        run=lock
    )
