"""One device's parts, made from its configuration: what every command of the agent starts from.

Nothing is opened before it is used; what only an update needs is imported there.
"""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Final

import msgspec

from edgeseal.device import profile
from edgeseal.device.state import StateFile
from edgeseal.durable import fsync_directory, locked
from edgeseal.runtime.repository import ModelRepository
from edgeseal.store import ObjectStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edgeseal.device.config import Config
    from edgeseal.device.state import State
    from edgeseal.entropy import Hedged, Mixer
    from edgeseal.entropy.handed import Handed
    from edgeseal.entropy.reader import Attached
    from edgeseal.install import Objects
    from edgeseal.keystore import KeyStore
    from edgeseal.runtime.contract import Adapter
    from edgeseal.trust import Trust
    from edgeseal.trust.trust import Source

RESETTING: Final = "resetting"  # this file is there from the decision to reset until nothing of the identity is left
_SMALL_MEMORY: Final = 512 * 2**20  # below it one worker: each holds two buffers of 1 MiB and a decoder


class Agent:
    """The parts of one device. `say` is told what happens, `progress` (what, done, total) how far it is."""

    def __init__(
        self,
        config: Config,
        *,
        say: Callable[[str], None] = lambda _: None,
        progress: Callable[[str, int, int], None] = lambda *_: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Nothing is touched before a part is used."""
        self.config = config
        self.say = say
        self.progress = progress
        self.clock = clock
        self.handed: list[Handed] | None = None  # in a pass of the service: what it took from the devices for it
        self.directory: Path = config.paths.state
        self.state_file = StateFile(self.directory)
        self.store = ObjectStore(self.directory / "objects")
        self.models = ModelRepository(
            config.paths.models, group=config.runtime.group, allow_disk=config.runtime.allow_disk
        )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the agent's lock: one pass, enrolment or rollback at a time.

        Raises TemporaryError if another process holds it.
        """
        self.make_directory()
        with locked(self.directory / "lock"):
            if (self.directory / RESETTING).exists():  # the power was cut during a factory reset: it has decided
                from edgeseal.device.reset import finish

                finish(self)
            yield

    def make_directory(self) -> None:
        """Make the state directory, private and durable, if it is not there."""
        if not self.directory.exists():
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            fsync_directory(self.directory.parent)

    @cached_property
    def profile(self) -> profile.Profile:
        """What enrolment brought. Raises NotAuthorisedError before."""
        return profile.load(self.directory)

    @cached_property
    def keys(self) -> KeyStore:
        """The secrets at rest."""
        from edgeseal.keystore import KeyStore, systemd_credential

        return KeyStore(self.directory / "keys", credential=systemd_credential())

    @cached_property
    def sources(self) -> list[Attached]:
        """The configured sources of randomness, none of them started. `close` gives their devices back."""
        from edgeseal.entropy.attach import attach
        from edgeseal.entropy.records import Records

        entropy = self.config.entropy
        return attach(
            entropy.sources if entropy.policy != "off" else (),
            records=Records(self.directory / "entropy"),
            lab=entropy.lab,
            stick_keys=entropy.stick_keys,
            retry_failed=entropy.retry_failed_seconds,
        )

    def close(self) -> None:
        """Give back the devices that were opened. Called at the end of every command."""
        for source in self.__dict__.get("sources", ()):  # not made only to be closed
            source.close()

    @cached_property
    def mixer(self) -> Mixer:
        """Randomness from the operating system and from the sources: handed over by the service, or our own."""
        from edgeseal.entropy import Mixer, Policy

        sources = self.sources if self.handed is None else self.handed
        return Mixer(sources, policy=Policy(self.config.entropy.policy))

    def mixer_under(self, policy: str) -> Mixer:
        """Return the mixer for a policy somebody else asks for; the configuration may be stricter, never laxer."""
        from edgeseal.entropy import Mixer, Policy

        if "require" not in {policy} - {self.config.entropy.policy}:
            return self.mixer
        return Mixer(self.sources if self.handed is None else self.handed, policy=Policy.REQUIRE)

    @cached_property
    def hedged(self) -> Hedged:
        """The generator that is also bound to what the provisioning host contributed."""
        from edgeseal.entropy import Hedged

        return Hedged(self.mixer, k_rng=self.keys.k_rng())

    def trust(self, source: Source | None = None) -> Trust:
        """Return the trusted metadata, refreshed from `source` (default: the network)."""
        from edgeseal.trust import Trust

        return Trust(
            self.directory / "trust",
            bootstrap=profile.root(self.directory),
            fetcher=source,
            clock=self.clock,
            not_before=self.profile.time_floor,
        )

    def metadata_source(self) -> Source:
        """Return the fetcher for metadata and manifests over HTTP."""
        from edgeseal.trust import HttpFetcher

        fleet = self.config.fleet
        return HttpFetcher(
            self.fleet_url,
            metadata=fleet.metadata_url,
            targets=fleet.targets_url,
            ca_file=str(fleet.ca_file) if fleet.ca_file else None,
        )

    def objects(self) -> Objects:
        """Return where tables and chunks come from over HTTP."""
        from edgeseal.transport.objects import HttpObjects

        fleet = self.config.fleet
        return HttpObjects(
            fleet.objects_url or self.fleet_url,
            deadline=fleet.deadline_seconds,
            ca_file=str(fleet.ca_file) if fleet.ca_file else None,
        )

    def adapter(self) -> Adapter:
        """Return the way to the runtime."""
        from edgeseal.runtime.contract import make_adapter

        runtime = self.config.runtime
        return make_adapter(
            runtime.adapter,
            repository=self.models,
            command=runtime.command,
            unit=runtime.unit,
            url=runtime.url,
            status_file=runtime.status_file,
            probe=runtime.probe,
            probe_seconds=runtime.probe_seconds,
            probe_memory_mb=runtime.probe_memory_mb,
            threads=runtime.threads,
        )

    @cached_property
    def policy(self) -> bytes:
        """Digest of what decides whether a release passes here: one that failed is tried again when it changes."""
        rules = msgspec.json.encode([self.config.runtime, self.config.hardware], enc_hook=str)
        return hashlib.sha256(rules).digest()[:16]

    def forget(self) -> None:
        """Drop what was read of an identity that is gone."""
        for name in ("profile", "keys", "hedged"):
            self.__dict__.pop(name, None)

    @property
    def fleet_url(self) -> str:
        """The fleet server: configured, or the one that the enrolment grant names."""
        return self.config.fleet.url or self.profile.fleet_url

    @property
    def workers(self) -> int:
        """Threads for hashing and decryption: two, one on a small board."""
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return self.config.runtime.workers or (1 if memory < _SMALL_MEMORY else min(2, os.cpu_count() or 1))

    def state(self) -> State:
        """Return what the agent remembers."""
        return self.state_file.read()

    def counted(self, what: str, total: int) -> Callable[[int], None]:
        """Return a function that adds up and tells `progress`."""
        done = 0

        def add(n: int) -> None:
            nonlocal done
            done += n
            self.progress(what, done, total)

        return add
