"""`doctor` on randomness: the draw itself, each configured source, and who else wants the devices."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edgeseal.device.doctor import Finding
from edgeseal.device.rng import look
from edgeseal.errors import EdgesealError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edgeseal.device.agent import Agent
    from edgeseal.device.doctor import Verdict
    from edgeseal.entropy.drivers.base import Found

GUIDE: Final = "docs/guides/entropy.md"
_SETTLE: Final = 6.0  # seconds for the start-up tests of sources that no service reads
_UDEV: Final = "install 70-edgeseal-qrng.rules, plug it in again, and run this as the agent's user"
_SERIAL: Final = frozenset({"truerng", "onerng", "swiftrng", "qcicada"})  # what ModemManager takes for modems


def examine(
    agent: Agent, *, proc: Path = Path("/proc"), run: Path = Path("/run"), sys: Path = Path("/sys")
) -> list[Finding]:
    """Return the findings. The three paths are for tests.

    Raises EdgesealError if nothing can be drawn at all.
    """
    if agent.config.entropy.policy == "off":
        return [_drawn(agent), *_attached_only(agent)]
    about = look(agent)
    try:
        if about["from"] == "here":
            for source in agent.sources:
                source.settle(_SETTLE)
        drawn = _drawn(agent)
        about = look(agent)
    finally:
        for source in agent.sources:
            source.close()
    if not about["sources"]:
        return [drawn, *_attached_only(agent)]
    sources = [_source(s, about["latched"], agent.config.entropy.policy) for s in about["sources"]]
    others = [_modem_manager(about["sources"], proc, run), _kernel(about["sources"], proc, sys)]
    return [drawn, *sources, *(f for f in others if f is not None)]


def _drawn(agent: Agent) -> Finding:
    try:
        drawn = agent.mixer.draw("doctor", 32)
    except EdgesealError as e:
        return Finding("entropy", "failed", e.message, e.hint or "")
    return Finding("entropy", "ok", f"policy {agent.config.entropy.policy}; {'; '.join(drawn.sources)}")


def _attached_only(agent: Agent) -> list[Finding]:
    """Say whether a device waits to be configured; a bus that cannot be scanned is no failure then."""
    required = agent.config.entropy.policy == "require"
    kinds = sorted({f.profile.name for f in _scanned()} - {"hwrng"})  # that one feeds the kernel all by itself
    if required:
        return [Finding("noise source", "failed", "policy require, but no source is configured", _configure(kinds))]
    if kinds and agent.config.entropy.policy != "off":
        return [
            Finding("noise source", "warning", f"attached but not configured: {', '.join(kinds)}", _configure(kinds))
        ]
    return [Finding("noise source", "ok", "none is read: keys come from the operating system's generator alone")]


def _scanned() -> list[Found]:
    from edgeseal.entropy.drivers import detect

    try:
        return detect.scan()
    except EdgesealError:
        return []


def _configure(kinds: list[str]) -> str:
    wanted = ", ".join(f'"{k}"' for k in kinds) or '"edgeseal-qrng"'
    return f"in the configuration: [entropy] sources = [{wanted}]; {GUIDE}"


def _source(source: dict[str, Any], latched: dict[str, Any], policy: str) -> Finding:
    name, state, reason = f"noise source {source['name']}", source["state"], source["reason"]
    if state == "healthy":
        qcnr = "" if source["qcnr_db"] is None else f", QCNR {source['qcnr_db']:.1f} dB"
        detail = f"healthy; {source['source_class']}, evidence {source['evidence']}{qcnr}"
        if source.get("simulated"):
            return Finding(
                name, "failed", f"{detail}; it is simulated", "entropy.lab = false on a device that makes keys"
            )
        return Finding(name, "warning" if source["slow"] else "ok", detail, source["slow"] or "")
    if state == "failed":
        which = next((d for d, f in latched.items() if f["reason"] == reason), "")
        return Finding(name, "failed", f"failed: {reason}", f"edgeseal-agent rng acknowledge {which}, {GUIDE}")
    verdict: Verdict = "failed" if policy == "require" else "warning"
    if "EACCES" in reason or "EPERM" in reason:
        return Finding(name, "failed", f"not permitted: {reason}", _UDEV)
    if "EBUSY" in reason:
        return Finding(
            name, verdict, f"held by another program: {reason}", "edgeseal-agent rng list; stop the other one"
        )
    hint = "plug it in; edgeseal-agent rng list shows what is there" if state in ("absent", "gone") else GUIDE
    return Finding(name, verdict, f"{state}: {reason}" if reason else state, hint)


def _modem_manager(sources: Iterable[dict[str, Any]], proc: Path, run: Path) -> Finding | None:
    """ModemManager sends AT commands to every serial line that udev does not keep from it (rusefi/rusefi#4359)."""
    lines = [s["path"] for s in sources if s["path"] and s["name"].partition(":")[0] in _SERIAL]
    if not lines or not _running("ModemManager", proc):
        return None
    open_to_it = [path for path in lines if not _ignored(Path(path), run)]
    if not open_to_it:
        return Finding("ModemManager", "ok", "it runs, and udev keeps it from the noise sources")
    return Finding("ModemManager", "warning", f"it may send AT commands to {', '.join(open_to_it)}", _UDEV)


def _ignored(device: Path, run: Path) -> bool:
    """Whether udev's database (/run/udev/data, one file a device) has the mark that ModemManager obeys."""
    try:
        number = device.stat().st_rdev
        text = (run / "udev" / "data" / f"c{os.major(number)}:{os.minor(number)}").read_text("utf-8", "replace")
    except OSError:
        return False
    return "E:ID_MM_DEVICE_IGNORE=1" in text.splitlines()


def _kernel(sources: Iterable[dict[str, Any]], proc: Path, sys: Path) -> Finding | None:
    """Who else reads the kernel's generator: two readers share one stream, which is no harm and no gain."""
    names = {s["name"].partition(":")[0] for s in sources}
    try:
        current = (sys / "class/misc/hw_random/rng_current").read_text("ascii", "replace").strip()
    except OSError:
        current = ""
    for family in sorted(names & {"chaoskey"}):
        if family in current.lower():
            hint = 'use sources = ["hwrng"] instead, or keep the kernel module from loading'
            return Finding("kernel generator", "warning", f"the kernel's driver already feeds from {current}", hint)
    if "hwrng" in names and _running("rngd", proc):
        hint = "one of them is enough: stop rngd, or leave hwrng out of the sources"
        return Finding("kernel generator", "warning", f"rngd reads {current or '/dev/hwrng'} too", hint)
    return None


def _running(program: str, proc: Path) -> bool:
    """Whether a program of that name runs, as far as this user may see."""
    for comm in proc.glob("[0-9]*/comm"):
        try:
            if comm.read_text("utf-8", "replace").strip() == program[:15]:
                return True
        except OSError:
            continue  # it has just ended
    return False
