"""The words of `edgeseal-agent rng`: argparse only, so that every other command stays as small as it was."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

EPILOG = (
    "status ends with 0 if a source is healthy or none is configured, 1 if one has failed, 5 if none is healthy yet. "
    "assess ends with 1 if the estimate is below what the driver claims."
)


def add(commands: Any, common: argparse.ArgumentParser, run: Callable[..., int]) -> None:  # noqa: ANN401 - argparse's
    """Add `rng` and its steps to the sub-commands; each sets `step`, all set `run`."""
    rng = commands.add_parser("rng", help="noise sources: list, health, captures", epilog=EPILOG)
    steps = rng.add_subparsers(metavar="STEP", required=True)

    def step(name: str, text: str) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = steps.add_parser(name, parents=[common], help=text, epilog=EPILOG)
        made.set_defaults(run=run, step=name)
        return made

    status = step("status", "state and health of the configured sources")
    status.add_argument(
        "--wait", type=_seconds, default=6.0, metavar="SECONDS", help="for the start-up test, if no service runs (6)"
    )
    step("list", "noise devices that are attached, and what to write into the configuration")
    watch = step("watch", "state, rate, noise and alarms, as they change; ends with Ctrl-C")
    watch.add_argument("--interval", type=_seconds, default=1.0, metavar="SECONDS", help="between two looks (1)")
    watch.add_argument("--count", type=_count, metavar="N", help="end after N looks")
    _add_capture(step("capture", "write raw samples in the layout of NIST's SP800-90B_EntropyAssessment"))
    assess = step("assess", "estimate the min-entropy of a capture (SP 800-90B, 6.3)")
    assess.add_argument("file", type=Path, metavar="FILE", help="one sample a byte, as `rng capture` writes them")
    assess.add_argument("--bits", type=int, choices=range(1, 9), metavar="N", help="bits a sample (from FILE's record)")
    assess.add_argument("--quick", action="store_true", help="leave the four predictors out")
    acknowledge = step("acknowledge", "let a device that failed be used again, after you have looked at it")
    acknowledge.add_argument("device", nargs="?", metavar="DEVICE", help="its name, or the first letters of it")


def _add_capture(capture: argparse.ArgumentParser) -> None:
    capture.add_argument("name", type=Path, metavar="NAME", help="NAME.bin and NAME.json are written")
    capture.add_argument(
        "--source", metavar="SOURCE", help='as in the configuration: "chaoskey", "qcicada:/dev/ttyUSB0"'
    )
    capture.add_argument(
        "--samples", type=_count, metavar="N", help="in sequence (1,000,000), or after each restart (1000)"
    )
    capture.add_argument(
        "--restarts", type=_count, metavar="N", help="open the device N times instead; NIST asks for 1000"
    )
    capture.add_argument(
        "--shift", type=int, default=0, metavar="BIT", help="lowest bit kept of samples over 8 bits (0)"
    )
    capture.add_argument("--resume", action="store_true", help="go on with restarts that were interrupted")
    capture.add_argument("--conditioned", action="store_true", help="the device's own output, where it has both")


def _count(text: str) -> int:
    number = int(text.replace(",", "").replace("_", ""))
    if not 0 < number <= 100_000_000:  # noqa: PLR2004 - what fits in a small machine's memory
        raise argparse.ArgumentTypeError("must be 1 to 100,000,000")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 3600:  # noqa: PLR2004 - an hour; also refuses what is no number
        raise argparse.ArgumentTypeError("must be 0 to 3600 seconds")
    return number
