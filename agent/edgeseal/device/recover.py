"""When both copies of the agent's state are damaged: what the next pass builds anew, and what nobody can.

What counts is written elsewhere too: the release that serves in memory, what may be installed in signed metadata, what
this device was entitled to in the keystore. From these the state is put together, never below what they show:

    serves in memory, proven    it stays the installed release; its number is the floor
    serves in memory, on trial  the release before it is given back: which step the switch was at is lost
    nothing serves              the floor is the lowest release whose key is held, or what the signature of one asks for

Lost are the reasons of former failures, and a floor above that: whatever is installed next passes the gate and its
watch again, and nothing is installable that is not listed. Floors of metadata, the session's counter and the identity
are in files of their own; a damaged identity is not built anew (docs/decisions/0008).
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

from edgeseal.device import exchange, releases
from edgeseal.device.state import Installed, Model, State, StateFile, Trial
from edgeseal.errors import EdgesealError, TemporaryError
from edgeseal.manifest import Manifest
from edgeseal.runtime.serve_status import boot_id
from edgeseal.slots import NoneSoundError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgeseal.device.agent import Agent
    from edgeseal.device.releases import Outcome
    from edgeseal.store import Kind
    from edgeseal.trust import TargetInfo, Trust

_CANNOT: Final = (EdgesealError, OSError)  # a source that cannot be read adds nothing; the others may


def rebuild(agent: Agent) -> list[str]:
    """Build the state anew if both copies are damaged, and return what to tell people; nothing if it can be read.

    Needs no network. The caller holds the agent's lock, and restores what serves next. Raises IncompatibleError if the
    model repository is somebody else's; the state is then left as it is.
    """
    damage = _damage(agent)
    if damage is None:
        return []
    trust, held = agent.trust(), _held(agent)
    agent.models.prepare()  # whose directory it is decides whether what lies in it may be believed
    models = {name: _model(agent, trust, name, held.get(name, [])) for name in {*agent.models.models(), *held}}
    state = State(models={name: models[name] for name in sorted(models)}, report_due=True)
    agent.state_file.start_anew(state, now=int(trust.now()))
    kept = [f"{name} release {m.current.release}" for name, m in sorted(models.items()) if m.current]
    return [f"{damage.message}: built anew, with {', '.join(kept) or 'no release'}; why releases failed before is lost"]


def serve_again(agent: Agent) -> tuple[list[Outcome], list[EdgesealError]]:
    """Where nothing serves after `rebuild`, take the newest release of each model that is whole on this disk.

    For a device without a network, after a reboot: which release served is lost, so it is one of those it was entitled
    to, and like any other install it passes the gate and its watch.
    """
    done: list[Outcome] = []
    errors: list[EdgesealError] = []
    for name, held in _held(agent).items():
        for release in sorted(held, reverse=True):
            if agent.state().model(name).current is not None:
                break
            try:
                done += _install(agent, agent.trust(), name, release)
            except EdgesealError as e:
                errors.append(e)
    return done, errors


class NothingMore:
    """The objects of a device that has what it has (edgeseal.install.Objects)."""

    def fetch(self, kind: Kind, sha256: bytes, *, offset: int, length: int) -> Iterator[bytes]:
        """Raise TemporaryError: it is not on this disk."""
        del offset, length
        raise TemporaryError(
            f"{kind[:-1]} {sha256.hex()} is not on this device", hint="edgeseal-agent update fetches it"
        )


def _damage(agent: Agent) -> NoneSoundError | None:
    """Return what is wrong with the state, if a second look finds the same: a read may fail once."""
    with contextlib.suppress(NoneSoundError):
        agent.state()
        return None
    agent.state_file = StateFile(agent.directory)
    try:
        agent.state()
    except NoneSoundError as e:
        return e
    return None


def _held(agent: Agent) -> dict[str, list[int]]:
    """Return the releases whose content key is held, by model; none if the keys cannot be read."""
    held: dict[str, list[int]] = {}
    with contextlib.suppress(*_CANNOT):
        for name, release in agent.keys.content_keys():
            held.setdefault(name, []).append(release)
    return held


def _model(agent: Agent, trust: Trust, name: str, held: list[int]) -> Model:
    current = agent.models.current(name)
    if current is None:
        return Model(floor=max(min(held, default=0), *(_least(trust, name, r) for r in held), 0))
    unpacked = agent.models.releases(name)
    for release in unpacked:
        if release > current:  # being probed: it never served, and nobody remembers what it was
            agent.models.remove(name, release)
    before = max((r for r in unpacked if r < current), default=None)
    manifest = _manifest(agent, trust, name, current)
    if before is None:  # what a switch needs to go back is in memory until it is kept: this one was
        return Model(current=_installed(agent, current, manifest), floor=current)
    kept = _installed(agent, before, _manifest(agent, trust, name, before))
    if manifest is None:
        return Model(current=kept, floor=before)
    trial = Trial(current, manifest, "switching", 0, int(agent.clock()), boot_id(), before)
    return Model(current=kept, floor=before, trial=trial)


def _installed(agent: Agent, release: int, manifest: bytes | None) -> Installed | None:
    return None if manifest is None else Installed(release, manifest, int(agent.clock()))


def _manifest(agent: Agent, trust: Trust, name: str, release: int) -> bytes | None:
    """Return the manifest of a release, from this disk and as signed; None if that is not to be had."""
    with contextlib.suppress(*_CANNOT):
        found = exchange.kept_manifest(agent, trust, name, release)
        if found is not None and Manifest.from_bytes(found[1]).release == release:
            return found[1]
    return None


def _least(trust: Trust, name: str, release: int) -> int:
    """Return the lowest release that the signature of a listed one allows beside it (`min_rel`)."""
    info: TargetInfo | None = None
    with contextlib.suppress(*_CANNOT):
        info = trust.last_listed(f"models/{name}/{release}.cbor")
    about: Any = info.custom.get("edgeseal") if info is not None else None
    least = about.get("min_rel", 0) if isinstance(about, dict) else 0
    return least if isinstance(least, int) and 0 <= least <= release else 0


def _install(agent: Agent, trust: Trust, name: str, release: int) -> list[Outcome]:
    found = exchange.kept_manifest(agent, trust, name, release)
    if found is None or agent.state().model(name).has_failed(found[1], agent.policy):
        return []
    manifest = releases.check_listed(agent, *found)
    return [releases.install_release(agent, manifest, found[1], objects=NothingMore())]
