"""`install FILE`: a release from removable media, for a device without a network (docs/spec/bundle.md, Air gap).

The medium holds metadata, manifest, table, chunks, and a ticket with the content key sealed to this very device. All of
it is verified by the same code as over the network; the medium is trusted in nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgeseal.archive import Archive
from edgeseal.contentkey import check_commitment, open_ticket
from edgeseal.device import recover, releases
from edgeseal.errors import EdgesealError, NotAuthorisedError, UsageError
from edgeseal.keystore import ContentKey
from edgeseal.suite import PrivateKey
from edgeseal.transport.objects_archive import ArchiveObjects

if TYPE_CHECKING:
    from pathlib import Path

    from edgeseal.device.agent import Agent
    from edgeseal.device.releases import Outcome
    from edgeseal.session.device import Generation
    from edgeseal.trust import Trust

MAX_TICKET: Final = 16_384


def install_from(agent: Agent, path: Path) -> list[Outcome]:
    """Refresh metadata from the medium and install the newest release of each model that it has a ticket for.

    Raises UsageError if there is no such file, NotAuthorisedError without a ticket for this device, and whatever
    verification raises.
    """
    from edgeseal.trust import ArchiveFetcher

    if not path.exists():
        raise UsageError(f"there is no {path}")
    _ = agent.profile
    archive = Archive(path)
    for problem in recover.rebuild(agent) + releases.restore(agent):
        agent.say(problem)
    trust = agent.trust(ArchiveFetcher(path))
    result = trust.refresh()
    tickets = _tickets(agent, archive)
    if not tickets:
        raise NotAuthorisedError(
            "the medium holds no ticket for this device",
            hint=f"edgeseal bundle export … --device {agent.profile.device}; after a re-key export again",
        )
    out = []
    for model, found in tickets.items():
        if model in result.refused:
            raise result.refused[model]
        outcome = _install(agent, trust, archive, model, found)
        out += [outcome] if outcome else []
    releases.collect(agent)
    return out


def _tickets(agent: Agent, archive: Archive) -> dict[str, tuple[int, str, Generation]]:
    """For each model the newest release that has a ticket for a key of this device: (release, name, generation)."""
    identity = agent.keys.identity()
    found: dict[str, tuple[int, str, Generation]] = {}
    for generation in (identity.former, identity.current):
        if generation is None:
            continue
        kid = PrivateKey(generation.suite, generation.seed).public.kid.hex()
        for name in archive.names(f"tickets/{kid}"):
            _, _, model, release = name.split("/")[:4] if name.count("/") == 3 else ("", "", "", "")  # noqa: PLR2004
            if release.isdecimal() and int(release) >= found.get(model, (0, "", None))[0]:
                found[model] = (int(release), name, generation)
    return found


def _install(
    agent: Agent, trust: Trust, archive: Archive, model: str, found: tuple[int, str, Generation]
) -> Outcome | None:
    release, name, generation = found
    current = agent.state().model(model).current
    if current is not None and current.release == release:
        return None
    path = f"models/{model}/{release}.cbor"
    info = trust.target(path)
    if info is None:
        raise NotAuthorisedError(f"{path} is not listed by the metadata on the medium", hint="export the bundle again")
    data = trust.fetch_target(path)
    manifest = releases.check_listed(agent, info, data)
    device = PrivateKey(generation.suite, generation.seed)
    ticket = archive.read(name, MAX_TICKET)
    ck, not_after = open_ticket(device, generation.psk, ticket, model=model, release=release)
    if not_after <= max(agent.clock(), trust.time_floor()):
        raise NotAuthorisedError(f"the ticket for {model} release {release} has ended", hint="export the bundle again")
    check_commitment(ck, manifest.ck_commitment, model, release)
    held = agent.keys.content_keys()
    agent.keys.keep_content_keys([*held.values(), ContentKey(model, release, ck, not_after)])
    if failed := agent.state().model(model).has_failed(data, agent.policy):
        raise EdgesealError(
            f"{model} release {release} failed on this device before: {failed.reason}",
            hint="publish a mended model under the next release number",
        )
    return releases.install_release(agent, manifest, data, objects=ArchiveObjects(archive))
