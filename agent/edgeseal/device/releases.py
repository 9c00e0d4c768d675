"""Releases on this device: install, restore after a reboot, roll back, clear away.

Order of an install, so that a power cut anywhere leaves the old or the new release: chunks are durable before anything
is decrypted; the switch itself keeps a journal (edgeseal.device.trial). On the way up `restore` ends a switch that was
cut off and makes memory agree with the state again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from edgeseal import __version__, install
from edgeseal.contentkey import check_commitment
from edgeseal.device import notes, trial
from edgeseal.errors import (
    EdgesealError,
    IncompatibleError,
    IntegrityError,
    NotAuthorisedError,
    RefusedError,
    RollbackError,
    UsageError,
)
from edgeseal.manifest import MAX_MANIFEST_LENGTH, Manifest
from edgeseal.runtime import engine_settings
from edgeseal.runtime.contract import Candidate

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from edgeseal.device.agent import Agent
    from edgeseal.device.state import Installed, Model
    from edgeseal.install import Objects
    from edgeseal.store import Kind
    from edgeseal.table import Table
    from edgeseal.trust import TargetInfo


_CANNOT: Final = (EdgesealError, OSError)  # one model's failing block must not take the others along


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an install did: release, bytes fetched, and the size of the whole release as stored."""

    model: str
    release: int
    bytes_fetched: int
    bytes_reused: int
    stored_size: int


def check_listed(agent: Agent, info: TargetInfo, data: bytes) -> Manifest:
    """Return the manifest of a listed release if this device may and can run it.

    Raises RefusedError, RollbackError, IncompatibleError saying why not.
    """
    if len(data) > MAX_MANIFEST_LENGTH:
        raise RefusedError(f"{info.path} is longer than a manifest can be")
    manifest = Manifest.from_bytes(data)
    what = f"{manifest.model} release {manifest.release}"
    if manifest.target_path != info.path:
        raise IntegrityError(f"{info.path} holds the manifest of {what}", hint="the publisher must sign it again")
    known = agent.state().model(manifest.model)
    if manifest.release < known.floor:
        raise RollbackError(f"{what} is older than release {known.floor}, the lowest this device accepts")
    engine_settings.parse(manifest.requirements)
    _check_device(agent, what, _custom(info))
    return manifest


def _custom(info: TargetInfo) -> Mapping[str, Any]:
    custom = info.custom.get("edgeseal")
    return custom if isinstance(custom, dict) else {}


def _check_device(agent: Agent, what: str, custom: Mapping[str, Any]) -> None:
    """Hold what the release is for against what this device is, before anything is fetched."""
    wanted, here = _strings(custom.get("hw")), agent.config.hardware
    if wanted and not set(wanted) & set(here):
        raise IncompatibleError(f"{what} is for {', '.join(wanted)}; this device is {', '.join(here)}")
    offers = agent.config.runtime.offers
    runtimes = _strings(custom.get("rt"))
    if runtimes and offers is not None and not set(runtimes) & set(offers):
        raise IncompatibleError(
            f"{what} needs a runtime of {', '.join(runtimes)}; this device offers {', '.join(offers)}"
        )
    least = custom.get("min_agent")
    if isinstance(least, str) and least and _version(least) > _version(__version__):
        raise IncompatibleError(f"{what} needs edgeseal {least}; this is {__version__}", hint="update the agent")


def _strings(value: object) -> list[str]:
    return [v for v in value if isinstance(v, str)] if isinstance(value, list) else []


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:3] if part.isdecimal())


def install_release(agent: Agent, manifest: Manifest, data: bytes, *, objects: Objects) -> Outcome:
    """Fetch, unpack, probe and activate a release whose content key is held; `data` is its signed manifest.

    Raises the error of whatever step refused it; what served before goes on, and a release that failed here is
    remembered and not tried again.
    """
    what = f"{manifest.model} release {manifest.release}"
    ck = content_key(agent, manifest)
    table = install.fetch_table(manifest, ck=ck, objects=objects, store=agent.store)
    engine_settings.check_names(f.path for f in table.files)
    wanted = install.missing(table, agent.store)
    install.preflight(table, wanted, store=agent.store, memory_free=agent.models.free())
    total = sum(wanted.values())
    agent.say(f"{what}: fetching {total:,} of {manifest.stored_size:,} bytes")
    fetched = install.fetch_chunks(
        table,
        wanted,
        objects=objects,
        store=agent.store,
        workers=agent.workers,
        progress=agent.counted(f"fetch {what}", total),
    )
    trial.run(agent, manifest, data, lambda: _unpack(agent, manifest, table))
    return Outcome(manifest.model, manifest.release, fetched.bytes_fetched, fetched.bytes_reused, manifest.stored_size)


def _unpack(agent: Agent, manifest: Manifest, table: Table) -> Candidate:
    """Decrypt a release into the model repository; nothing of it is left there if that fails."""
    model, release = manifest.model, manifest.release
    staged = agent.models.stage(model, release)
    try:
        install.unpack(
            table,
            suite=manifest.suite,
            store=agent.store,
            directory=staged,
            workers=agent.workers,
            progress=agent.counted(f"unpack {model} release {release}", table.plain_size),
            durable=agent.models.on_disk,
        )
        engine_settings.leave(staged, manifest.requirements)
        directory = agent.models.publish(model, release)
    except BaseException:
        agent.models.sweep()
        raise
    return Candidate(model, release, directory, agent.models.current(model), manifest.requirements, table.tests)


def restore(agent: Agent) -> list[str]:
    """Make memory agree with the state: after a reboot, or after a kill between switch and state. No network.

    Returns what could not be restored, one line each.
    """
    problems = []
    try:
        agent.models.prepare()
        agent.models.sweep()
    except OSError as e:
        problems.append(f"the model repository cannot be prepared: {e}")
    for name, model in agent.state().models.items():
        problems += _resume(agent, name, model)
        model = agent.state().model(name)  # noqa: PLW2901 - as the journal left it
        if model.current is None:
            continue
        try:
            if agent.models.current(name) != model.current.release:
                _restore_one(agent, model.current)
        except _CANNOT as e:
            problems.append(f"{name} release {model.current.release} cannot be restored: {e}")
            _restore_previous(agent, model, problems)
        notes.leave(agent, name)
    return problems


def _resume(agent: Agent, name: str, model: Model) -> list[str]:
    """Bring a switch that was cut off to its end; return what stands in the way."""
    if model.trial is None:
        return []
    try:
        trial.resume(agent, name)
    except _CANNOT as e:
        return [str(e) if isinstance(e, RefusedError) else f"{name} release {model.trial.release} is half-way: {e}"]
    return []


def _restore_one(agent: Agent, installed: Installed) -> None:
    manifest = Manifest.from_bytes(installed.manifest)
    if installed.release not in agent.models.releases(manifest.model):
        table = install.stored_table(manifest, ck=content_key(agent, manifest), store=agent.store)
        agent.say(f"{manifest.model} release {manifest.release}: restoring")
        candidate = _unpack(agent, manifest, table)
    else:
        directory = agent.models.path(manifest.model, manifest.release)
        candidate = Candidate(manifest.model, manifest.release, directory, None, manifest.requirements)
    adapter = agent.adapter()
    adapter.activate(candidate)
    adapter.commit(candidate)


def _restore_previous(agent: Agent, model: Model, problems: list[str]) -> None:
    """Rather the release before than none: it was good on this device, and its floor was passed with it."""
    if model.previous is None:
        return
    try:
        _restore_one(agent, model.previous)
    except _CANNOT as e:
        problems.append(f"nor can release {model.previous.release}: {e}")


def roll_back(agent: Agent, name: str | None) -> Outcome:
    """Go back to the release before, on the word of whoever is at this device; the one left is not tried again.

    Raises UsageError if there is no model of that name or nothing to go back to.
    """
    state = agent.state()
    if name is None:
        if len(state.models) != 1:
            raise UsageError(f"name a model: {', '.join(state.models) or 'none is installed'}")
        name = next(iter(state.models))
    if trial.abandon(agent, name, "rolled back on the device"):
        state = agent.state()
        if (current := state.model(name).current) is None:
            return Outcome(name, 0, 0, 0, 0)
        size = Manifest.from_bytes(current.manifest).stored_size
        return Outcome(name, current.release, 0, size, size)
    model = state.model(name)
    if model.current is None or model.previous is None:
        raise UsageError(f"{name} has no release to go back to")
    agent.models.prepare()
    bad, good = model.current, model.previous
    _restore_one(agent, good)
    why = "rolled back on the device"
    new = model.with_failure(bad.release, bad.manifest, why, at=int(agent.clock()), served=True)
    new = msgspec.structs.replace(new, current=good, previous=None)
    agent.state_file.write(msgspec.structs.replace(state.with_model(name, new), report_due=True))
    notes.leave(agent, name)
    manifest = Manifest.from_bytes(good.manifest)
    return Outcome(name, good.release, 0, manifest.stored_size, manifest.stored_size)


def content_key(agent: Agent, manifest: Manifest) -> bytes:
    """Return the content key that is held for a release.

    Raises NotAuthorisedError if none is, IntegrityError if it is not the one the manifest commits to.
    """
    held = agent.keys.content_keys().get((manifest.model, manifest.release))
    if held is None:
        raise NotAuthorisedError(
            f"this device holds no key for {manifest.model} release {manifest.release}",
            hint="the fleet server releases it to entitled devices; for an air-gapped one export a ticket",
        )
    check_commitment(held.ck, manifest.ck_commitment, manifest.model, manifest.release)
    return held.ck


def collect(agent: Agent) -> int:
    """Remove chunks and tables that neither the current nor the previous release of a model needs."""
    return agent.store.collect(_needed(agent))


def _needed(agent: Agent) -> Iterator[tuple[Kind, bytes]]:
    for model in agent.state().models.values():
        for installed in (model.current, model.previous):
            if installed is None:
                continue
            manifest = Manifest.from_bytes(installed.manifest)
            yield "tables", manifest.table_sha256
            try:
                table = install.stored_table(manifest, ck=content_key(agent, manifest), store=agent.store)
            except EdgesealError:
                continue  # withdrawn: without its key its chunks are of no use
            yield from (("chunks", name) for name in table.chunks())
