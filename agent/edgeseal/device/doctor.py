"""`doctor`: everything that has to be right on a device, tried one by one, each with what to do if it is not."""

from __future__ import annotations

import os
import stat
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from edgeseal.device.profile import LOCKED
from edgeseal.errors import EdgesealError

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeseal.device.agent import Agent

Verdict: TypeAlias = Literal["ok", "warning", "failed"]
_CLOCK_BEHIND: Final = 300  # seconds the system clock may be behind the time that is certain
_LOW_DISK: Final = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what it looked at, how it ended, what was seen, what to do."""

    check: str
    verdict: Verdict
    detail: str
    hint: str = ""


def examine(agent: Agent) -> list[Finding]:
    """Run every check. Nothing is changed; the fleet server is only asked whether it is there."""
    checks: tuple[tuple[str, Callable[[Agent], Finding]], ...] = (
        ("cryptography", _cryptography),
        ("enrolment", _enrolment),
        ("secrets", _secrets),
        ("line", _line),
        ("state directory", _directory),
        ("clock", _clock),
        ("metadata", _metadata),
        ("models", _models),
        ("disk", _disk),
        ("engine", _engine),
        ("runtime", _runtime),
        ("fleet server", _fleet),
    )
    findings = [_tried(name, check, agent) for name, check in checks]
    return [*findings[:-1], *_entropy(agent), findings[-1]]


def as_dicts(findings: list[Finding]) -> list[dict[str, str]]:
    """Shape of `doctor --json`."""
    return [asdict(f) for f in findings]


def _tried(name: str, check: Callable[[Agent], Finding], agent: Agent) -> Finding:
    try:
        return check(agent)
    except EdgesealError as e:
        return Finding(name, "failed", e.message, e.hint or "")
    except OSError as e:
        return Finding(name, "failed", str(e), "check the card and the owner of the state directory")
    except ImportError as e:
        return Finding(name, "failed", str(e))


def _cryptography(_agent: Agent) -> Finding:
    from edgeseal.session import selftest

    selftest.run()
    return Finding("cryptography", "ok", "X1 known answers are right in both suites")


def _enrolment(agent: Agent) -> Finding:
    found = agent.profile
    return Finding("enrolment", "ok", f"{found.device} in the fleet of {found.fleet_url}, suite {found.suite}")


def _secrets(agent: Agent) -> Finding:
    identity = agent.keys.identity()
    held = agent.keys.content_keys()
    detail = f"identity opens, {len(held)} content keys held"
    if identity.current.provisioned:
        return Finding(
            "secrets", "warning", f"{detail}; the factory still knows this device's PSK", "let it reach its fleet once"
        )
    return Finding("secrets", "ok", detail)


def _line(agent: Agent) -> Finding:
    if (agent.directory / LOCKED).exists():
        return Finding("line", "ok", "locked: no manufacturing station has a say")
    detail = "not locked: on its serial lines this device answers the station that provisioned it"
    return Finding("line", "warning", detail, "edgeseal-agent lock")


def _directory(agent: Agent) -> Finding:
    found = agent.directory.stat()
    if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        return Finding(
            "state directory", "failed", f"{agent.directory} is open to others", f"chmod 700 {agent.directory}"
        )
    if not os.access(agent.directory, os.W_OK):
        return Finding(
            "state directory",
            "failed",
            f"{agent.directory} is not writable",
            "run as its owner; is it mounted read-only?",
        )
    return Finding("state directory", "ok", str(agent.directory))


def _clock(agent: Agent) -> Finding:
    floor = agent.trust().time_floor()
    if agent.clock() < floor - _CLOCK_BEHIND:
        return Finding(
            "clock",
            "warning",
            f"the system clock says {time.strftime('%Y-%m-%d', time.gmtime(agent.clock()))}, before what is certain",
            "the floor is used instead; set up NTP or a clock battery",
        )
    return Finding("clock", "ok", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(agent.clock())))


def _metadata(agent: Agent) -> Finding:
    roles = agent.trust().roles()
    if not roles:
        return Finding("metadata", "warning", "none has been fetched yet", "edgeseal-agent update")
    ended = [r for r, s in roles.items() if s.expires <= agent.clock()]
    if ended:
        return Finding(
            "metadata", "failed", f"expired: {', '.join(ended)}", "is the fleet server reachable? nothing new installs"
        )
    return Finding("metadata", "ok", ", ".join(f"{r} {s.version}" for r, s in roles.items()))


def _models(agent: Agent) -> Finding:
    state = agent.state()
    missing = [n for n, m in state.models.items() if m.current and agent.models.current(n) != m.current.release]
    if missing:
        return Finding(
            "models", "failed", f"installed but not in memory: {', '.join(missing)}", "edgeseal-agent update restores"
        )
    if agent.models.root.exists() and agent.models.on_disk:
        return Finding(
            "models", "warning", f"decrypted models are on a disk: {agent.models.root}", "is that disk encrypted?"
        )
    names = [f"{n} {m.current.release}" for n, m in state.models.items() if m.current]
    return Finding("models", "ok", ", ".join(names) or "none installed")


def _disk(agent: Agent) -> Finding:
    free = agent.store.free()
    detail = f"{free // 2**20} MiB free, {agent.store.usage() // 2**20} MiB of chunks"
    return Finding(
        "disk", "ok" if free > _LOW_DISK else "warning", detail, "" if free > _LOW_DISK else "free some space"
    )


def _engine(agent: Agent) -> Finding:
    if agent.config.runtime.adapter != "serve" and not agent.config.runtime.probe:
        return Finding("engine", "ok", "not needed: the probe is switched off and another runtime serves")
    litert = _litert()
    try:  # never onnxruntime by itself: that module tells it to be silent
        from edgeseal.runtime.engine_onnx import VERSION, providers
    except ImportError:
        if litert is None:
            raise
        return Finding("engine", "ok", f"{litert}; without onnxruntime, .onnx models cannot run here")
    onnx = f"onnxruntime {VERSION} ({', '.join(providers())})"
    return Finding("engine", "ok", f"{onnx}, {litert}" if litert else onnx)


def _litert() -> str | None:
    """Return which LiteRT is installed and with what it computes; the agent itself never loads it."""
    from importlib import metadata

    from edgeseal.runtime.engine_settings import LITERT_PROVIDERS

    try:
        return f"LiteRT {metadata.version('ai-edge-litert')} ({', '.join(LITERT_PROVIDERS)})"
    except metadata.PackageNotFoundError:
        return None


def _runtime(agent: Agent) -> Finding:
    from edgeseal.device import doctor_runtime

    return doctor_runtime.examine(agent)


def _entropy(agent: Agent) -> list[Finding]:
    from edgeseal.device import doctor_entropy

    try:
        return doctor_entropy.examine(agent)
    except EdgesealError as e:
        return [Finding("entropy", "failed", e.message, e.hint or "")]


def _fleet(agent: Agent) -> Finding:
    source = agent.metadata_source()
    try:
        source.download_bytes(f"{source.metadata_url}timestamp.json", 65_536)
    except Exception as e:  # noqa: BLE001 - whatever it is, it is what the operator needs to see
        return Finding("fleet server", "failed", f"{agent.fleet_url}: {e}", "network, address, or the server is down")
    return Finding("fleet server", "ok", f"{agent.fleet_url} answers")
