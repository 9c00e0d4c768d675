"""The device's durable side of the manufacturing line (edgeseal.provisioning.Home), over key store and state directory.

Every write holds the agent's lock. What decides is one write: the identity slot makes a device provisioned, the file
`locked` ends the line, the file `resetting` begins a reset.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, Literal

from edgeseal import __version__
from edgeseal.device import board, profile, reset
from edgeseal.device.profile import LOCKED
from edgeseal.durable import sweep, write_atomic
from edgeseal.entropy import EntropyError
from edgeseal.errors import NotAuthorisedError
from edgeseal.keystore import FORMAT, Provenance
from edgeseal.provisioning import Code, Destroyed, EntropyReport, Origin, Package, RefusalError, Stage
from edgeseal.provisioning.transcript import seed
from edgeseal.session.device import Generation, Identity
from edgeseal.suite import PrivateKey, suite
from edgeseal.trust.floors import Floor, Slots
from edgeseal.trust.views import provisioned_floors

if TYPE_CHECKING:
    from edgeseal.device.agent import Agent
    from edgeseal.enrolment import Grant

SETTLE: Final = 10.0  # seconds for the start-up test and calibration of a source, once, before the key is made
_DRAW: Final = 64


class DeviceHome:
    """A dialogue's view of this device."""

    def __init__(self, agent: Agent) -> None:
        """Finish what a power cut interrupted."""
        self._agent = agent
        self.serial = agent.config.serial
        self.hardware = ",".join(agent.config.hardware)[:256]
        self.agent = __version__
        self.board = board.read()
        with agent.locked():
            sweep(agent.directory)
            agent.keys.sweep()

    def stage(self) -> Stage:
        """Return how far this device is. One that was enrolled by hand, or has replaced its keys since, is locked."""
        keys = self._agent.keys
        if not keys.enrolled():
            return Stage.FRESH
        if (self._agent.directory / LOCKED).exists() or keys.provenance() is None:
            return Stage.LOCKED
        return Stage.PROVISIONED if keys.identity().current.provisioned else Stage.LOCKED

    def new_key(
        self, suite_number: int, policy: Literal["mix", "require"], host: bytes
    ) -> tuple[PrivateKey, EntropyReport]:
        """Return the key pair that waits, or make one; under `require` never one without a hardware source."""
        agent = self._agent
        with agent.locked():
            pending = agent.keys.pending()
            strict = "require" in {policy, agent.config.entropy.policy}
            if pending is None or pending.suite != suite_number or (strict and not pending.hardware):
                self._make_key(suite_number, policy, host)
                pending = agent.keys.pending()
        assert pending is not None  # noqa: S101 - read back from where it was just written
        used: Literal["mix", "require"] = "require" if strict else "mix"
        report = EntropyReport(used, pending.hardware, list(pending.sources)[:16], self._calibration())
        return PrivateKey(pending.suite, pending.seed), report

    def _make_key(self, suite_number: int, policy: str, host: bytes) -> None:
        agent = self._agent
        for source in agent.sources:
            source.settle(SETTLE)
        mixer = agent.mixer_under(policy)
        try:
            agent.keys.create(lambda label, length: mixer.draw(label, length).data)
            drawn = mixer.draw("kem seed", _DRAW)
        except EntropyError as e:
            raise RefusalError(Code.ENTROPY, e.message) from e
        made = seed(drawn.data, host, self.serial, suite(suite_number).seed_length)
        sources = [*drawn.sources, "host: provisioning station"][:16]
        agent.keys.keep_pending(suite_number, made, sources, hardware=drawn.blocks)

    def _calibration(self) -> list[str]:
        """Return a line about every source that measured itself."""
        lines = []
        for source in self._agent.sources:
            now = source.snapshot
            if now.sigma is not None or now.qcnr_db is not None:
                values = {"sigma": now.sigma, "qcnr_db": now.qcnr_db, "calibrated_at": now.calibrated_at}
                lines.append(f"{now.name}: {json.dumps(values)}"[:256])
        return lines[:16]

    def own_key(self) -> tuple[PrivateKey, EntropyReport]:
        """Return the key pair that was provisioned. Raises NotAuthorisedError if it has been replaced since."""
        generation, kept = self._agent.keys.identity().current, self._agent.keys.provenance()
        if not generation.provisioned or kept is None:
            raise NotAuthorisedError("this device has replaced the key it was provisioned with")
        report = EntropyReport("require" if kept.hardware else "mix", kept.hardware, list(kept.sources))
        return PrivateKey(generation.suite, generation.seed), report

    def origin(self) -> Origin | None:
        """Return where the identity came from."""
        kept = self._agent.keys.provenance() if self._agent.keys.enrolled() else None
        return None if kept is None else Origin(kept.kid, kept.grant, kept.receipt, kept.pin)

    def become(self, key: PrivateKey, grant: Grant, root: bytes, package: Package, origin: Origin) -> None:
        """Write where it comes from, what is public, then the identity: that last write decides."""
        agent = self._agent
        with agent.locked():
            pending = agent.keys.pending()
            if pending is None or agent.keys.enrolled():
                raise NotAuthorisedError("this device has no key that waits for a grant")
            sources = list(pending.sources)
            agent.keys.keep_provenance(
                Provenance(
                    FORMAT,
                    origin.kid,
                    origin.grant,
                    origin.receipt,
                    origin.pin,
                    package.station,
                    package.batch,
                    pending.hardware,
                    sources,
                )
            )
            made = profile.Profile.granted(grant, now=int(agent.clock()), entropy=sources)
            self._keep_floors(root, package)
            profile.save(agent.directory, made, root)
            generation = Generation(key.suite.number, pending.seed, grant.psk, provisioned=True)
            identity = Identity(grant.device, generation)
            agent.keys.enrol(identity, k_rng=grant.k_rng, sources={key.public.kid.hex(): sources})
            agent.forget()
            reset.forget_destroyed(agent)

    def _keep_floors(self, root: bytes, package: Package) -> None:
        """Start with the versions that were current on the line: a thief of old keys cannot offer this device less."""
        if package.floors:
            directory = self._agent.directory / "trust"
            directory.mkdir(mode=0o700, exist_ok=True)
            given = provisioned_floors(root, package.floors)
            slots = Slots(directory)
            slots.write(slots.read().raised(given, Floor(0, b"")))

    def lock(self) -> None:
        """Answer no station any more."""
        with self._agent.locked():
            write_lock(self._agent)

    def destroy(self, last: Destroyed) -> None:
        """Begin and finish a factory reset."""
        with self._agent.locked():
            reset.begin(self._agent, last)

    def destroyed(self) -> Destroyed | None:
        """Return what the last factory reset destroyed."""
        return reset.destroyed(self._agent)


def write_lock(agent: Agent) -> None:
    """End provisioning durably: the unit's condition, and what `stage` reads. The caller holds the agent's lock."""
    path = agent.directory / LOCKED
    if not path.exists():
        write_atomic(path, json.dumps({"locked_at": int(agent.clock())}).encode() + b"\n", mode=0o644)
