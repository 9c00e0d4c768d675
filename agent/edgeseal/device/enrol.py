"""Enrolment with files: `request` makes the key pair, `accept` takes the fleet's grant (docs/spec/session.md).

The private key is made here and never leaves. Both steps may be repeated: a second request shows the same key, a second
accept of the same grant changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgeseal import __version__
from edgeseal.device import profile
from edgeseal.device.profile import LOCKED
from edgeseal.durable import write_atomic
from edgeseal.enrolment import Grant, Request
from edgeseal.errors import NotAuthorisedError, UsageError
from edgeseal.session.device import Generation, Identity
from edgeseal.suite import PrivateKey, suite

if TYPE_CHECKING:
    from edgeseal.device.agent import Agent

_SETTLE: Final = 10.0  # seconds for the start-up test and calibration of a source, once, before the key is made


def request(agent: Agent, suite_number: int) -> Request:
    """Make a key pair, or take the one that waits for its grant, and return what the fleet needs to know of it.

    Raises NotAuthorisedError if this device is enrolled, EntropyError if policy asks for a source that is not there.
    """
    agent.make_directory()
    keys = agent.keys
    if keys.enrolled():
        raise NotAuthorisedError(
            f"this device is enrolled already, as {agent.profile.device}",
            hint="revoke it in the fleet and remove its state directory to enrol it anew",
        )
    for source in agent.sources:
        source.settle(_SETTLE)
    keys.create(lambda label, length: agent.mixer.draw(label, length).data)
    pending = keys.pending()
    if pending is None or pending.suite != suite_number:
        drawn = agent.mixer.draw("kem seed", suite(suite_number).seed_length)
        keys.keep_pending(suite_number, drawn.data, drawn.sources)
        pending = keys.pending()
        assert pending is not None  # noqa: S101 - read back from where it was just written
    return Request(
        format=1,
        suite=suite_number,
        public=PrivateKey(suite_number, pending.seed).public.raw,
        serial=agent.config.serial,
        hardware=",".join(agent.config.hardware)[:256],
        agent=__version__,
        entropy=list(pending.sources)[:16],
    )


def accept(agent: Agent, sealed: bytes) -> profile.Profile:
    """Open the grant made for this device's request and become a member of that fleet.

    Raises IntegrityError for another device's grant, UsageError if no request was made.
    """
    keys = agent.keys
    pending = keys.pending()
    if pending is None:
        if keys.enrolled():
            return _accept_again(agent, sealed)
        raise UsageError("no enrolment request was made on this device", hint="edgeseal-agent enrol request --out FILE")
    device = PrivateKey(pending.suite, pending.seed)
    grant = Grant.open(device, sealed)
    made = _save_profile(agent, grant, list(pending.sources))
    generation = Generation(pending.suite, pending.seed, grant.psk, provisioned=True)
    keys.enrol(
        Identity(grant.device, generation),
        k_rng=grant.k_rng,
        sources={device.public.kid.hex(): list(pending.sources)},
    )
    write_atomic(agent.directory / LOCKED, b"{}\n", mode=0o644)  # no manufacturing station has a say in it
    return made


def _accept_again(agent: Agent, sealed: bytes) -> profile.Profile:
    """Write the public profile anew from the same grant: it may be what a damaged card lost."""
    identity = agent.keys.identity()
    generation = identity.former or identity.current
    grant = Grant.open(PrivateKey(generation.suite, generation.seed), sealed)
    if grant.device != identity.device:
        raise UsageError(f"the grant is for {grant.device}, this device is enrolled as {identity.device}")
    return _save_profile(agent, grant, next(iter(agent.keys.sources().values()), []))


def _save_profile(agent: Agent, grant: Grant, sources: list[str]) -> profile.Profile:
    made = profile.Profile.granted(grant, now=int(agent.clock()), entropy=sources)
    profile.save(agent.directory, made, grant.root)
    return made
