"""`edgeseal-agent rng`: what is attached, how it is, captures and their assessment. Imported by that command alone.

A running service owns the devices, so its word is shown instead of opening them a second time; without one they are
opened here, tested, and given back. Nothing here makes a key.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from edgeseal.device import rng_view
from edgeseal.device.supply import published_path
from edgeseal.entropy import published
from edgeseal.entropy.attach import keys, scanner
from edgeseal.entropy.records import Records, identity
from edgeseal.errors import EdgesealError, FormatError, TemporaryError, UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from pathlib import Path

    from edgeseal.device.agent import Agent
    from edgeseal.entropy.assess import Assessment, Estimate
    from edgeseal.entropy.drivers.base import Driver, Found

_MAX_RECORD: Final = 65_536  # bytes
MAX_ASSESSED: Final = 16 * 2**20  # bytes: minutes of work, half a gigabyte of memory
_NONE: Final = "keys come from the operating system's generator alone"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step found: for --json, for a person, and the exit code."""

    about: dict[str, Any]
    text: str
    code: int = 0


def run(agent: Agent, arguments: argparse.Namespace) -> Outcome:
    """Do one step other than `watch`. Raises EdgesealError."""
    steps: dict[str, Callable[[Agent, argparse.Namespace], Outcome]] = {
        "status": _status,
        "list": _list,
        "capture": _capture,
        "assess": _assess,
        "acknowledge": _acknowledge,
    }
    return steps[arguments.step](agent, arguments)


# Status --------------------------------------------------------------------------------------------------------------


def _status(agent: Agent, arguments: argparse.Namespace) -> Outcome:
    about = look(agent)
    if about["from"] == "here":
        ends = time.monotonic() + arguments.wait
        try:
            for source in agent.sources:
                source.settle(max(0.0, ends - time.monotonic()))
            about = look(agent)
        finally:
            for source in agent.sources:
                source.close()
    return Outcome(about, _status_text(about), _status_code(about))


def look(agent: Agent) -> dict[str, Any]:
    """Return what is known now: `from` the service and how many seconds old, or `here`, from this process's sources."""
    found = published.read(published_path(agent))
    base = {"policy": agent.config.entropy.policy, "latched": _latched(agent)}
    if found is not None:
        age = max(0, int(time.time()) - int(found["at"]))
        return base | found | {"from": "service", "age_seconds": age}
    sources = [s.snapshot.as_dict() for s in agent.sources]
    return base | {"from": "here", "age_seconds": 0, "sources": sources, "kernel_feed": ""}


def _latched(agent: Agent) -> dict[str, Any]:
    failures = Records(agent.directory / "entropy").failures()
    return {device: {"reason": f.reason, "at": f.at} for device, f in failures.items()}


def _status_code(about: dict[str, Any]) -> int:
    states = [s["state"] for s in about["sources"]]
    if "failed" in states or (about["latched"] and "healthy" not in states):
        return EdgesealError.exit_code
    if "healthy" in states or (not states and about["policy"] != "require"):
        return 0
    return TemporaryError.exit_code


def none_read(policy: str) -> str:
    """Return why there is no source to show."""
    return f"policy off: no source is read; {_NONE}" if policy == "off" else f"no source is configured: {_NONE}"


def _status_text(about: dict[str, Any]) -> str:
    whose = "opened for this look" if about["from"] == "here" else f"as the service saw it {about['age_seconds']} s ago"
    out = [f"policy {about['policy']}; sources {whose}" if about["sources"] else none_read(about["policy"])]
    for source in about["sources"]:
        out += rng_view.lines(source)
    if about["kernel_feed"]:
        out.append(about["kernel_feed"])
    for device, failure in about["latched"].items():
        out.append(f"{device} is not used any more: {failure['reason']}")
        out.append(f"  after you have looked at it: edgeseal-agent rng acknowledge {device}")
    return "\n".join(out)


# List ----------------------------------------------------------------------------------------------------------------


def _list(agent: Agent, _arguments: argparse.Namespace) -> Outcome:
    from edgeseal.entropy.drivers import detect

    entries = agent.config.entropy.sources
    probe = [which for kind, _, which in (e.partition(":") for e in entries) if kind == "qcicada" and which[:1] == "/"]
    latched = _latched(agent)
    devices = [_device(found, entries, latched) for found in detect.scan(probe=probe)]
    return Outcome({"devices": devices}, _list_text(devices))


def _device(found: Found, entries: list[str], latched: dict[str, Any]) -> dict[str, Any]:
    described, name = found.description, identity(found.description)
    words = {found.profile.name, *(f"{found.profile.name}:{w}" for w in (described.serial, described.path))}
    return asdict(described) | {
        "name": name,
        "source_class": found.profile.source_class,
        "evidence": found.profile.evidence,
        "configured": any(entry in words for entry in entries),
        "failed": latched.get(name, {}).get("reason"),
    }


def _list_text(devices: list[dict[str, Any]]) -> str:
    if not devices:
        return "no noise source is attached, or none that this user may see (docs/guides/entropy.md)"
    out = []
    for d in devices:
        ids = f" {d['vid']:04x}:{d['pid']:04x}" if d["vid"] is not None else ""
        named = " ".join(t for t in (d["manufacturer"], d["product"], d["serial"] and f"serial {d['serial']}") if t)
        out.append(f"{d['kind']} at {d['path']}{ids} {named}".rstrip())
        out.append(f"  {d['source_class']} by its profile, evidence {d['evidence']}")
        if d["failed"]:
            out.append(f"  failed: {d['failed']}; edgeseal-agent rng acknowledge {d['name']}")
        if not d["configured"]:
            out.append(f'  not used; in the configuration: [entropy] sources = ["{d["kind"]}"]')
    return "\n".join(out)


# Captures ------------------------------------------------------------------------------------------------------------


def _capture(agent: Agent, arguments: argparse.Namespace) -> Outcome:
    from edgeseal.entropy.capture import RESTARTS, SAMPLES, Plan, capture

    columns = arguments.samples or (SAMPLES if arguments.restarts is None else RESTARTS)
    plan = Plan(columns, arguments.restarts, arguments.shift)
    opener = _opener(agent, arguments.source, conditioned=arguments.conditioned)
    about = capture(opener, arguments.name, plan, resume=arguments.resume, progress=agent.progress)
    names = ", ".join(about["files"])
    hint = f"next: edgeseal-agent rng assess {next(iter(about['files']))}" if plan.rows is None else "next: ea_restart"
    text = f"wrote {names} from {about['device']['kind']} at {about['device']['path']}: {about['width']} bits a sample"
    return Outcome(about, f"{text}\n{hint}")


def _opener(agent: Agent, entry: str | None, *, conditioned: bool) -> Callable[[], Driver]:
    """Return a function that finds the device and opens it anew. It is one and the same device each time, or none."""
    from edgeseal.entropy.drivers.base import Options

    entropy = agent.config.entropy
    options = Options(entropy.lab, keys(entropy.stick_keys) if entropy.stick_keys else {}, conditioned=conditioned)

    def opener() -> Driver:
        return _one(agent, entry).open(options)

    return opener


def _one(agent: Agent, entry: str | None) -> Found:
    """Return the device that `entry` names, or the only one there is."""
    from edgeseal.entropy.drivers import detect

    found = list(scanner(entry)() if entry else _configured(agent) or detect.scan())
    if not found:
        raise TemporaryError(f"no {entry or 'noise source'} is attached", hint="edgeseal-agent rng list")
    if len(found) > 1:
        there = ", ".join(f"{f.profile.name}:{f.description.path}" for f in found)
        raise UsageError(f"there are {len(found)} devices: {there}", hint="choose one with --source")
    return found[0]


def _configured(agent: Agent) -> list[Found]:
    return [found for entry in agent.config.entropy.sources for found in scanner(entry)()]


# Assessment ----------------------------------------------------------------------------------------------------------


def _assess(_agent: Agent, arguments: argparse.Namespace) -> Outcome:
    from edgeseal.entropy.assess import assess

    samples = _samples(arguments.file)
    record = _record(arguments.file, samples)
    width = arguments.bits or record.get("width") or 8
    found = assess(samples, width=width, predictors=not arguments.quick)
    claim = record.get("claim")
    borne_out = None if claim is None else found.assessed >= claim
    about = found.as_dict() | {"file": str(arguments.file), "claim": claim, "claim_borne_out": borne_out}
    text = _assessment_text(found, claim)
    return Outcome(about, text, EdgesealError.exit_code if borne_out is False else 0)


def _samples(path: Path) -> bytes:
    try:
        with path.open("rb") as f:
            data = f.read(MAX_ASSESSED + 1)
    except FileNotFoundError:
        raise UsageError(f"there is no {path}", hint="edgeseal-agent rng capture writes one") from None
    if len(data) > MAX_ASSESSED:
        raise UsageError(
            f"{path} is longer than {MAX_ASSESSED:,} bytes", hint="a million samples are what SP 800-90B asks"
        )
    return data


def _record(path: Path, samples: bytes) -> dict[str, Any]:
    """Return width and claim from the record beside a capture, empty if there is none or it is of another file.

    Raises FormatError if it is no record, or describes other samples.
    """
    import hashlib

    place = path.with_suffix(".json")
    try:
        with place.open("rb") as f:
            about = json.loads(f.read(_MAX_RECORD))
        found = {"width": int(about["width"]), "claim": float(about["claim"])}
        described = about["files"].get(path.name)
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise FormatError(f"{place} is not the record of a capture", hint="remove it and give --bits") from None
    if described not in (None, hashlib.sha256(samples).hexdigest()):
        raise FormatError(f"{path} is not the file that {place} describes", hint="capture again, or remove the record")
    return found if described else {}


def _assessment_text(found: Assessment, claim: float | None) -> str:
    out = [f"{found.symbols:,} samples of {found.width} bits, {found.distinct} different"]
    out += _table("a sample", found.literal) + _table("a bit", found.bitstring)
    least = f"{found.assessed:.4f} bits of min-entropy a sample"
    out.append(
        f"least: {least}" if found.complete else f"at most {least}: it repeats itself too much to count to the end"
    )
    if found.symbols < 1_000_000:  # noqa: PLR2004 - SP 800-90B §3.1.1
        out.append("SP 800-90B asks for a million samples: short captures score lower than the source is")
    if claim is not None:
        verdict = "borne out" if found.assessed >= claim else "NOT borne out"
        out.append(f"claimed by the driver: {claim:g} bits a sample: {verdict}")
    out.append("estimators of SP 800-90B 6.3; NIST's tool has the predictors over bits too, so its figure may be lower")
    return "\n".join(out)


def _table(per: str, estimates: tuple[Estimate, ...]) -> list[str]:
    return [
        f"  {e.name:18} {e.min_entropy:7.4f} {per}" if e.min_entropy is not None else f"  {e.name:18} -  {e.why}"
        for e in estimates
    ]


# Failures ------------------------------------------------------------------------------------------------------------


def _acknowledge(agent: Agent, arguments: argparse.Namespace) -> Outcome:
    records = Records(agent.directory / "entropy")
    failures = records.failures()
    wanted = [d for d in failures if d.startswith(arguments.device or "")]
    if not failures:
        return Outcome({"acknowledged": []}, "no device has failed")
    if len(wanted) != 1:
        raise UsageError(
            f"{arguments.device or 'a name'} is needed: failed are {', '.join(failures)}"
            if not wanted or arguments.device is None
            else f"{arguments.device} is not one device: {', '.join(wanted)}"
        )
    records.acknowledge(wanted[0])
    text = f"{wanted[0]} may be used again once it has been unplugged (it failed: {failures[wanted[0]].reason})"
    return Outcome({"acknowledged": wanted}, text)
