"""The directory `--data DIR` of a fleet server: what lies where, and how a new one is made.

fleet.json        format and public address        public.json    what publishers need (public.py)
fleet.db          registry (schema.py)             admin.token    first token, mode 0600
objects/          everything served                secrets/       key rings, signing keys, database key: mode 0700
"""

from __future__ import annotations

import json
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from edgeseal.durable import fsync_directory, locked, sweep, write_atomic
from edgeseal.errors import IncompatibleError, IntegrityError, RefusedError, UsageError
from edgeseal.servers import TARGET_PATH, FleetServers, ServerKey
from edgeseal_host.fleet import data_key, schema
from edgeseal_host.fleet.objects import ObjectDirectory
from edgeseal_host.fleet.online_keys import ROLES, OnlineKeys
from edgeseal_host.fleet.public import FleetPublic
from edgeseal_host.fleet.publishing import Publisher
from edgeseal_host.fleet.registry import SqlRegistry
from edgeseal_host.fleet.rings import KEY_LIFETIME, RINGS, KeyRing
from edgeseal_host.fleet.stations import Stations
from edgeseal_host.fleet.tokens import Tokens
from edgeseal_host.repository import metadata

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FORMAT: Final = 1


class DataDirectory:
    """Paths and the parts that lie behind them."""

    def __init__(self, path: Path) -> None:
        """Name a directory; nothing is read yet."""
        self.path = path
        self.secrets = path / "secrets"
        self.database = path / "fleet.db"
        self.public_file = path / "public.json"
        self.admin_token = path / "admin.token"
        self.online_keys = OnlineKeys(self.secrets)

    def create(self, url: str, *, now: int) -> FleetPublic:
        """Make keys, database and the first token.

        Raises UsageError for a bad address, RefusedError if there is a fleet already: its keys cannot be made again.
        """
        _check_url(url)
        if (self.path / "fleet.json").exists():
            raise RefusedError(f"{self.path} holds a fleet server already", hint="choose another --data directory")
        self.path.mkdir(mode=0o755, parents=True, exist_ok=True)
        if self.database.exists():
            raise RefusedError(
                f"{self.path} holds a database but no fleet.json",
                hint="an earlier init was cut short: remove the directory",
            )
        self.secrets.mkdir(mode=0o700, exist_ok=True)
        self.secrets.chmod(0o700)
        for name in RINGS:
            KeyRing.new(name, now).save(self._ring_file(name))
        self.online_keys.create()
        ObjectDirectory(self.path / "objects").prepare()
        schema.create(self.database)
        with closing(schema.open_database(self.database)) as database:
            data_key.create(self.secrets, database)
        public = self._write_public(url)
        with self.open() as fleet:
            write_atomic(self.admin_token, fleet.tokens.create(("admin",), now=now).encode() + b"\n", mode=0o600)
        write_atomic(self.path / "fleet.json", json.dumps({"format": FORMAT, "url": url}).encode(), mode=0o644)
        fsync_directory(self.path)
        return public

    def url(self) -> str:
        """Return the public address.

        Raises UsageError if this is no fleet server's directory, IncompatibleError for a newer format.
        """
        try:
            body = json.loads((self.path / "fleet.json").read_bytes())
        except FileNotFoundError:
            raise UsageError(
                f"{self.path} is not a fleet server's directory",
                hint="edgeseal fleet init --data DIR --url URL makes one",
            ) from None
        except ValueError as e:
            raise IntegrityError(f"fleet.json is damaged: {e}", hint="restore it from backup") from e
        if not isinstance(body, dict) or body.get("format") != FORMAT or not isinstance(body.get("url"), str):
            raise IncompatibleError(f"fleet.json is of another format; this version reads {FORMAT}")
        return str(body["url"])

    def ring(self, name: str) -> KeyRing:
        """Read a key ring."""
        return KeyRing.load(self._ring_file(name))

    def ring_stamp(self) -> tuple[int, ...]:
        """Something that changes when any ring was rotated."""
        return tuple(self._ring_file(name).stat().st_mtime_ns for name in RINGS)

    def rotate(self, name: str, *, now: int, force: bool = False) -> FleetPublic:
        """Rotate a ring and write public.json anew.

        Raises RefusedError if devices do not know the next session key yet (unless `force`: after a theft).
        """
        url = self.url()
        with locked(self.path / "rings.lock", wait=True):
            ring = self.ring(name)
            if name == "session" and not force:
                self._check_announced(ring)
            ring.rotated(name, now).without_expired(now).save(self._ring_file(name))
            return self._write_public(url)

    def rotate_online_keys(self, *, force: bool = False) -> FleetPublic:
        """Make the next snapshot and timestamp keys and announce them in public.json; the former sign on.

        Cut short, it is finished by the next call. Raises RefusedError if next keys are announced already, which a
        root may be about to name (unless `force`).
        """
        url = self.url()
        with locked(self.path / "rings.lock", wait=True):
            if not force and self.online_keys.waiting() and self._announced():
                raise RefusedError(
                    "new online keys wait already for a root that names them",
                    hint="edgeseal repo stage DIR --fleet public.json, sign, publish. Were they stolen too? --force",
                )
            self.online_keys.prepare(force=force)
            return self._write_public(url)

    def announce(self) -> None:
        """Write public.json anew if a rotation was cut short before it did."""
        with locked(self.path / "rings.lock", wait=True):
            self._write_public(self.url())

    def rotate_data_key(self) -> int:
        """Seal the registry's secrets with a new key; returns how many there are. The caller holds the serve lock.

        Raises IntegrityError if one does not open: nothing was changed then.
        """
        with self.open() as fleet:
            return data_key.rotate(self.secrets, fleet.database, fleet.registry, fleet.vault)

    def public(self) -> FleetPublic:
        """Read public.json."""
        return FleetPublic.load(self.public_file)

    def destroy_expired_keys(self, *, now: int) -> None:
        """Overwrite ring files without the previous keys whose time is over."""
        with locked(self.path / "rings.lock", wait=True):
            for name in RINGS:
                ring = self.ring(name)
                if (kept := ring.without_expired(now)) != ring:
                    kept.save(self._ring_file(name))

    def sweep(self) -> None:
        """Remove what a killed process left half written; only while the serve lock is held."""
        sweep(self.path)
        sweep(self.secrets)

    @contextmanager
    def open(self) -> Iterator[Fleet]:
        """Open database, keys and objects."""
        fleet = Fleet(self)
        try:
            yield fleet
        finally:
            fleet.database.close()

    def _ring_file(self, name: str) -> Path:
        return self.secrets / f"{name}.ring"

    def _write_public(self, url: str) -> FleetPublic:
        session = self.ring("session")
        keys = sorted(
            (k for slot in ("current", "next") for k in session.slot(slot)),
            key=lambda k: (k.key.suite.number, k.slot),
        )
        public = FleetPublic(
            url=url,
            session=tuple(ServerKey(k.key.suite.number, k.key.public.raw, k.made + KEY_LIFETIME) for k in keys),
            wrap=self.ring("wrap").slot("current")[0].key.public,
            enrol=self.ring("enrol").slot("current")[0].key.public,
            snapshot=self.online_keys.announced("snapshot"),
            timestamp=self.online_keys.announced("timestamp"),
        )
        public.save(self.public_file)
        return public

    def _announced(self) -> bool:
        """Whether public.json names the online keys that the next root shall name."""
        public = self.public()
        found = {public.snapshot.keyid, public.timestamp.keyid}
        return found == {self.online_keys.announced(role).keyid for role in ROLES}

    def _check_announced(self, ring: KeyRing) -> None:
        with self.open() as fleet:
            announced = fleet.announced_keys()
        if announced is not None and not {k.key.public.raw for k in ring.slot("next")} <= announced:
            raise RefusedError(
                "the published fleet/servers.cbor does not name the next session key: devices would be locked out",
                hint="edgeseal repo stage DIR --fleet public.json, sign, publish; then rotate. After a theft: --force",
            )


class Fleet:
    """The open parts of one fleet server."""

    def __init__(self, data: DataDirectory) -> None:
        """Open everything; use `DataDirectory.open`."""
        self.data = data
        self.database = schema.open_database(data.database)
        try:
            self.vault = data_key.open_vault(data.secrets, self.database)
        except BaseException:
            self.database.close()
            raise
        self.registry = SqlRegistry(self.database, self.vault)
        self.objects = ObjectDirectory(data.path / "objects")
        self.tokens = Tokens(self.registry)
        self.stations = Stations(self.registry)
        self.publisher = Publisher(
            self.registry,
            self.objects,
            self.vault,
            keys=data.online_keys,
            wrap_ring=lambda: data.ring("wrap").ring(),
        )

    def announced_keys(self) -> set[bytes] | None:
        """Session keys that published metadata names; None if nothing is published."""
        from tuf.api.metadata import Targets

        published = self.publisher.published()
        if published is None or published.targets is None:
            return None
        target = metadata.read(published.targets, Targets, what="targets.json").signed.targets.get(TARGET_PATH)
        if target is None:
            return set()
        data = self.objects.read_file(metadata.target_file(TARGET_PATH, target.hashes["sha256"]))
        return {k.public for k in FleetServers.from_bytes(data).keys}


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.username:
        raise UsageError(f"{url!r} is not an address", hint="expected http(s)://host[:port], as devices reach it")
