"""The exchange with the fleet server: report up, orders and content keys down (docs/spec/session.md §§7-9)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from edgeseal import __version__
from edgeseal.checkin import FORMAT, Failure, ModelState, Orders, Report
from edgeseal.device import rng_health
from edgeseal.device.state import gate_words
from edgeseal.errors import EdgesealError, NotAuthorisedError, TemporaryError
from edgeseal.keystore import ContentKey
from edgeseal.servers import TARGET_PATH, FleetServers
from edgeseal.session import selftest
from edgeseal.session.device import Device, ServerKeyUnknownError
from edgeseal.session.messages import Reply, Status
from edgeseal.slots import NoneSoundError
from edgeseal.suite import PrivateKey, suite
from edgeseal.transport.x1 import FleetExchange

if TYPE_CHECKING:
    from pathlib import Path

    from edgeseal.device.agent import Agent
    from edgeseal.suite import PublicKey
    from edgeseal.trust import TargetInfo, Trust


MAX_PROBLEM: Final = 256  # characters of a report


def check_in(agent: Agent, trust: Trust, problem: str = "") -> Orders:
    """Report and return the fleet's orders; keys are sealed at rest when this returns. Re-keys when it is due.

    Raises NotAuthorisedError if this device is revoked or denied (content keys are gone then), TemporaryError.
    """
    device, send = _session(agent)
    told = report(agent, trust, problem)
    body = told.to_bytes()
    try:
        reply = device.check_in(body, servers=server_keys(agent, trust), send=send)
    except ServerKeyUnknownError:
        trust.refresh()  # the fleet has switched to its next key; which one that is, is signed
        reply = device.check_in(body, servers=server_keys(agent, trust), send=send)
    orders = _orders(agent, trust, reply, told)
    if device.rekey_due(reply.now):
        _re_key(agent, device, server_keys(agent, trust), send)
    return orders


def report_only(agent: Agent, trust: Trust, problem: str) -> None:
    """Tell the fleet why metadata are not accepted here; of its answer only the time and a revocation count.

    The message goes to the session key that was signed last, even if those metadata are past their end. Who has stolen
    such a key learns which device speaks; the report and the answer stay under the PSK (docs/spec/session.md §17).
    Raises NotAuthorisedError, TemporaryError, or RefusedError if no key is known.
    """
    device, send = _session(agent)
    body = report(agent, trust, problem).to_bytes()
    reply = device.check_in(body, servers=_last_server_keys(agent, trust), send=send)
    _check_status(agent, reply)
    trust.raise_time_floor(reply.now)
    agent.state_file.write(
        msgspec.structs.replace(agent.state(), told=problem_key(problem), checked_in_at=int(agent.clock()))
    )


def problem_key(problem: str) -> str:
    """Return what tells one problem from another: without the time of day that stands behind the semicolon."""
    return problem.partition(";")[0][:MAX_PROBLEM]


def _session(agent: Agent) -> tuple[Device, FleetExchange]:
    selftest.run()  # a library that computes wrongly must stop here, with a name
    _feed_kernel(agent)
    device = Device(agent.keys.identity(), save=agent.keys.save, draw=agent.hedged.draw)
    ca_file = agent.config.fleet.ca_file
    return device, FleetExchange(agent.fleet_url, ca_file=str(ca_file) if ca_file else None)


def _feed_kernel(agent: Agent) -> None:
    """HPKE's coins come from the kernel and from nowhere else: let it gain what the sources give, first.

    A pass of the service leaves it to the service, which has just done it.
    """
    entropy = agent.config.entropy
    if entropy.feed_kernel and agent.handed is None and agent.sources:
        from edgeseal.entropy.kernel import Feeder

        Feeder(agent.mixer, seconds=entropy.feed_seconds, credit=entropy.credit, reseed=entropy.kernel_reseed).feed()


def server_keys(agent: Agent, trust: Trust) -> list[PublicKey]:
    """Return the fleet's session keys as the targets role signed them.

    Raises RefusedError or TemporaryError if they are not listed, not there, or all past their end.
    """
    return _usable(agent, trust, cached_target(agent, trust, TARGET_PATH))


def _last_server_keys(agent: Agent, trust: Trust) -> list[PublicKey]:
    """Return the session keys that were signed last, from this disk."""
    info = trust.last_listed(TARGET_PATH)
    data = None if info is None else _kept(agent, info)
    if data is None:
        raise TemporaryError("no session key of the fleet server is known here yet")
    return _usable(agent, trust, data)


def _usable(agent: Agent, trust: Trust, data: bytes) -> list[PublicKey]:
    servers = FleetServers.from_bytes(data)
    usable = servers.usable(int(max(agent.clock(), trust.time_floor())))
    if not usable:
        raise TemporaryError(
            "every session key of the fleet server has ended",
            hint="edgeseal repo stage DIR --fleet public.json, sign and publish it",
        )
    return usable


def cached_target(agent: Agent, trust: Trust, path: str) -> bytes:
    """Return a listed target, from this disk if it is there.

    Raises NotAuthorisedError if it is not listed, RefusedError, TemporaryError.
    """
    from edgeseal.durable import write_atomic

    info = trust.target(path)
    if info is None:
        raise NotAuthorisedError(f"{path} is not listed by the repository", hint="was it published, or retired?")
    kept = _kept(agent, info)
    if kept is not None:
        return kept
    data = trust.fetch_target(path)
    place = _place(agent, info)
    place.parent.mkdir(mode=0o700, exist_ok=True)
    write_atomic(place, data)
    return data


def kept_manifest(agent: Agent, trust: Trust, model: str, release: int) -> tuple[TargetInfo, bytes] | None:
    """Return a manifest that is on this disk as it was signed last, even if those metadata are past their end.

    None if it is not listed, not there, or not it. Raises RefusedError, TemporaryError.
    """
    info = trust.last_listed(f"models/{model}/{release}.cbor")
    data = None if info is None else _kept(agent, info)
    return None if info is None or data is None else (info, data)


def _place(agent: Agent, info: TargetInfo) -> Path:
    return agent.directory / "targets" / info.sha256.hex()


def _kept(agent: Agent, info: TargetInfo) -> bytes | None:
    """Return a listed target from this disk; None if it is not there, or not it."""
    place = _place(agent, info)
    try:
        data = place.read_bytes() if place.stat().st_size == info.length else b""
    except FileNotFoundError:
        return None
    return data if info.matches(data) else None


def sweep_targets(agent: Agent, trust: Trust, paths: list[str]) -> None:
    """Remove kept targets other than `paths` and the fleet's session keys."""
    found = (trust.target(path) for path in (TARGET_PATH, *paths))
    wanted = {info.sha256.hex() for info in found if info is not None}
    for place in (agent.directory / "targets").glob("*"):
        if place.name not in wanted:
            place.unlink(missing_ok=True)


def report(agent: Agent, trust: Trust, problem: str = "") -> Report:
    """Return this device's whole state; `problem` is what it cannot mend itself."""
    state = agent.state()
    models = {
        name: ModelState(m.current.release, "active", gate_words(m.current)) if m.current else ModelState(0, "none")
        for name, m in state.models.items()
    }
    failed = [Failure(name, f.release, f.reason) for name, m in state.models.items() for f in m.failed]
    return Report(
        format=FORMAT,
        agent=__version__,
        hardware=",".join(agent.config.hardware)[:256],
        runtimes=list(agent.config.runtime.offers or ["onnx"]),
        models=models,
        failed=failed[:8],
        metadata=trust.versions(),
        entropy={kid: "; ".join(lines)[:256] for kid, lines in list(agent.keys.sources().items())[-4:]},
        free_disk=agent.store.free(),
        free_ram=agent.models.free(),
        problem=problem[:MAX_PROBLEM],
        sources=rng_health.sources(agent),
    )


def _check_status(agent: Agent, reply: Reply) -> None:
    if reply.status is Status.REVOKED:
        agent.keys.keep_content_keys([])
        agent.state_file.write(msgspec.structs.replace(agent.state(), revoked=True, checked_in_at=int(agent.clock())))
        raise NotAuthorisedError(
            "the fleet has revoked this device; its content keys are deleted",
            hint="what runs keeps running until the next reboot; ask the operator",
        )
    if reply.status is not Status.OK:
        raise NotAuthorisedError(
            "the fleet server denied this device's report", hint="ask the operator to look at its log"
        )


def _orders(agent: Agent, trust: Trust, reply: Reply, told: Report) -> Orders:
    _check_status(agent, reply)
    trust.raise_time_floor(reply.now)
    orders = Orders.from_bytes(reply.body)
    _keep_keys(agent, trust, orders, reply.now)
    agent.state_file.write(
        msgspec.structs.replace(
            agent.state(),
            revoked=False,
            report_due=False,
            told=problem_key(told.problem),
            checked_in_at=int(agent.clock()),
            sources_failed=rng_health.failed(told.sources),
            poll_seconds=orders.poll_seconds,
            report_seconds=orders.report_seconds,
        )
    )
    return orders


def _keep_keys(agent: Agent, trust: Trust, orders: Orders, now: int) -> None:
    """Hold what was granted, and of what was held what is still listed: a withdrawn release's key is deleted.

    So is one past its end by the server's time, with one exception: the release that serves keeps its key as long as
    the fleet assigns some release of its model, or a reboot half-way through an update would leave neither. A fleet
    that is silent ends nothing: this runs only when it has answered.
    """
    held, models = _held(agent), agent.state().models
    granted = {(g.model, g.release): ContentKey(g.model, g.release, g.ck, g.not_after) for g in orders.keys}
    serving = {(a.model, m.current.release) for a in orders.assignments if (m := models.get(a.model)) and m.current}
    kept = {
        key: ck for key, ck in held.items() if (ck.not_after > now or key in serving) and _still_listed(trust, *key)
    }
    agent.keys.keep_content_keys({**kept, **granted}.values())


def _held(agent: Agent) -> dict[tuple[str, int], ContentKey]:
    """Return the keys held; none if both copies are damaged, since the fleet has just granted what is needed."""
    try:
        return agent.keys.content_keys()
    except NoneSoundError as e:
        agent.say(f"{e}; going on with the keys that the fleet has granted")
        return {}


def _still_listed(trust: Trust, model: str, release: int) -> bool:
    try:
        return trust.target(f"models/{model}/{release}.cbor") is not None
    except EdgesealError:
        return True  # metadata that cannot be read withdraws nothing


def _re_key(agent: Agent, device: Device, servers: list[PublicKey], send: FleetExchange) -> None:
    """Replace the keys that the factory knows; a failure costs nothing, the next pass tries again."""
    number = device.identity.current.suite
    try:
        drawn = agent.hedged.drawn("kem seed", suite(number).seed_length)
        reply = device.re_key(number, drawn.data, servers=servers, send=send)
    except TemporaryError as e:
        agent.say(f"re-key: {e}")
        return
    if reply.status is Status.OK:
        kid = PrivateKey(number, drawn.data).public.kid.hex()
        agent.keys.save(device.identity, sources={kid: list(drawn.sources)})
        agent.state_file.write(msgspec.structs.replace(agent.state(), report_due=True))
        agent.say("re-keyed: what the factory knew of this device is worth nothing now")
