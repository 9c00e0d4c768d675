"""`edgeseal stick`: build the firmware of a QRNG stick, put it on a board, ask finished sticks who they are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeseal_host.cli import output
from edgeseal_host.stick.build import ARCHITECTURES

if TYPE_CHECKING:
    from edgeseal_host.stick.running import Found

_STATES = ("idle", "start-up test", "streaming", "calibrating", "ALARM")
_CLASSES = ("unknown", "quantum", "classical")
_BOARDS = {1: "rp2040", 2: "rp2350"}


@click.group()
def group() -> None:
    """Build and flash the firmware of a QRNG stick."""


@group.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--target", type=click.Choice(list(ARCHITECTURES)), default="rp2350", show_default=True, help="The chip.")
@click.option(
    "--source",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Firmware sources, if not those that came with edgeseal.",
)
@output.json_option
def build(out: Path, target: str, source: Path | None) -> None:
    """Compile the firmware into the new folder OUT, with a manifest of SHA-256s."""
    from edgeseal_host.stick import build as builder

    made = builder.build(source or builder.firmware_source(), out, target=target)
    output.emit(
        {"folder": str(out), "target": target, "firmware_hash": made.firmware_hash.hex(), "files": made.files},
        f"built for {target} in {out}: {len(made.files)} files, firmware hash {made.firmware_hash.hex()}\n"
        f"  next, with the board's strap closed: edgeseal stick flash {out}",
    )


@group.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--port", metavar="PORT", help="Serial port of the board, if more than one is attached.")
@click.option(
    "--pair",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Pair the stick: its secret is drawn, or found, in this file (the agent's entropy.stick_keys).",
)
@click.option("--levels", type=int, nargs=4, metavar="L1 L2 L3 L4", help="PWM duties of the LED, as measured.")
@output.json_option
def flash(folder: Path, port: str | None, pair: Path | None, levels: tuple[int, int, int, int] | None) -> None:
    """Put the build in FOLDER on a board whose strap is closed, and compare every file with it."""
    from edgeseal_host.stick import board
    from edgeseal_host.stick.build import Build
    from edgeseal_host.stick.flash import flash as put

    made = Build.load(folder)
    found = board.find(port)
    output.note(f"flashing {found.port} ...")
    done = put(found, made, keys=pair, levels=levels)
    pairing_text = ""
    if pair is not None:
        pairing_text = f"\n  paired: its secret is {'new' if done.new_secret else 'the one it had'}, in {pair}"
    output.emit(
        {
            "serial": done.serial,
            "port": found.port,
            "firmware_hash": made.firmware_hash.hex(),
            "removed": list(done.removed),
            "paired": done.paired,
            "new_secret": done.new_secret,
        },
        f"flashed stick {done.serial}: {len(made.files)} files, all as built{pairing_text}\n"
        "  next: open the strap and replug it; then: edgeseal stick info",
    )


@group.command()
@output.json_option
def info() -> None:
    """Show the sticks on this machine's USB and what they say about themselves."""
    from edgeseal_host.stick import running

    found = list(running.sticks())
    output.emit({"sticks": [_as_dict(f) for f in found]}, "\n".join(_as_text(f) for f in found) or "no stick on USB")


def _as_dict(found: Found) -> dict[str, Any]:
    info, status = found.info, found.status
    if info is None or status is None:
        return {"path": found.path, "problem": found.problem}
    return {
        "path": found.path,
        "serial": info.serial,
        "firmware": ".".join(map(str, info.firmware)),
        "firmware_hash": info.firmware_hash.hex(),
        "board": _BOARDS.get(info.board, "unknown"),
        "source_class": _CLASSES[info.source_class],
        "claim": info.h_claim / 256,
        "rate": info.rate,
        "levels": list(info.levels),
        "paired": bool(info.features & 1),
        "simulated": bool(info.features >> 15),
        "state": _STATES[status.state],
        "flags": status.flags,
        "overruns": status.overruns,
        "temperature": status.temperature / 100,
        "uptime": status.uptime,
    }


def _as_text(found: Found) -> str:
    d = _as_dict(found)
    if "problem" in d:
        return f"{found.path}: {d['problem']}"
    simulated = "  SIMULATED: its samples come from a program\n" if d["simulated"] else ""
    return (
        f"{d['path']}: stick {d['serial']}, {d['board']}, firmware {d['firmware']} ({d['firmware_hash']})\n{simulated}"
        f"  {d['state']}, {'paired' if d['paired'] else 'not paired'}, up {d['uptime']} s, {d['temperature']:.1f} C, "
        f"{d['overruns']} blocks lost\n"
        f"  declares: {d['source_class']}, {d['claim']:g} bits per sample, {d['rate']} samples/s, "
        f"LED levels {' '.join(map(str, d['levels']))}"
    )
