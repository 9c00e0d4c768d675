"""Parts of the fleet server on their own: rings, vault, public keys, errors over the wire, body parsers, re-signing."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import sqlite3
import stat
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.fleet_world import World, make_bundle
from tuf.api.metadata import Metadata, Snapshot, Timestamp

from edgeseal import errors
from edgeseal.errors import (
    EdgesealError,
    FormatError,
    IncompatibleError,
    IntegrityError,
    NotAuthorisedError,
    UsageError,
)
from edgeseal_host.fleet import bodies, schema, static
from edgeseal_host.fleet.client import FleetClient
from edgeseal_host.fleet.data import DataDirectory
from edgeseal_host.fleet.objects import ObjectDirectory, is_served
from edgeseal_host.fleet.public import FleetPublic
from edgeseal_host.fleet.publishing import Publisher
from edgeseal_host.fleet.rings import PREVIOUS_KEPT, RINGS, KeyRing
from edgeseal_host.fleet.vault import Vault
from edgeseal_host.fleet.wire import error_from, status_of
from edgeseal_host.repository.metadata import now_utc
from edgeseal_host.repository.verify import Publication

if TYPE_CHECKING:
    import msgspec

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
SCHEMAS = st.sampled_from([bodies.Missing, bodies.Enrol, bodies.Revoke, bodies.Assign, bodies.Withdraw, bodies.Ticket])


@given(schema_=SCHEMAS, data=st.binary(max_size=300) | JSON.map(lambda v: json.dumps(v).encode()))
def test_any_body_parses_or_is_a_usage_error(schema_: type[msgspec.Struct], data: bytes) -> None:
    with contextlib.suppress(UsageError):
        assert isinstance(bodies.parse(data, schema_), schema_)


@given(JSON)
def test_any_publication_body_parses_or_is_a_format_error(value: object) -> None:
    try:
        body = bodies.parse_object(json.dumps(value).encode())
        Publication.from_json(body)
        bodies.envelopes_of(body)
    except (UsageError, FormatError):
        pass


@given(
    st.fixed_dictionaries(
        {}, optional=dict.fromkeys(("format", "url", "session", "wrap", "enrol", "snapshot", "timestamp"), JSON)
    )
)
def test_any_public_json_is_refused_with_a_reason(value: dict[str, object]) -> None:
    for body in (value, value | {"format": 1}, value | {"format": 1, "url": "u", "session": [{}]}):
        with pytest.raises((FormatError, IncompatibleError)):
            FleetPublic.from_json(body)


@given(st.text(max_size=200))
def test_only_names_of_public_files_are_served(name: str) -> None:
    if is_served(name):
        assert name.split("/", maxsplit=1)[0] in {"chunks", "tables", "metadata", "targets"}
        assert ".." not in name.split("/")
        assert "\n" not in name


@given(st.text(max_size=60), st.integers(1, 10_000))
def test_any_range_header_stays_inside_the_file(header: str, size: int) -> None:
    for value in (header, f"bytes={header}"):
        span = static._span({"range": value}, size, '"t"')
        if span is not None:
            assert span.start >= 0
            assert span.length > 0
            assert span.start + span.length <= size


# Keys --------------------------------------------------------------------------------------------------------------


def test_rotation_moves_next_to_current_and_keeps_the_former_for_a_week() -> None:
    ring = KeyRing.new("session", 100)
    rotated = ring.rotated("session", 200)
    for suite in (0, 1):
        assert rotated.slot("current")[suite].seed == ring.slot("next")[suite].seed
        assert rotated.slot("previous")[suite].seed == ring.slot("current")[suite].seed
    assert len(rotated.ring()) == 6
    assert len(rotated.without_expired(200 + PREVIOUS_KEPT - 1).ring()) == 6
    assert len(rotated.without_expired(200 + PREVIOUS_KEPT).ring()) == 4
    assert {k.seed for k in rotated.rotated("session", 300).keys}.isdisjoint({k.seed for k in ring.slot("current")})


def test_expired_session_seeds_are_destroyed_on_disk(tmp_path: Path) -> None:
    data = DataDirectory(tmp_path / "fleet")
    data.create("https://fleet.example", now=100)
    old = base64.b64encode(data.ring("session").slot("current")[0].seed)
    for name in RINGS:
        data.rotate(name, now=200)
    data.destroy_expired_keys(now=200 + PREVIOUS_KEPT - 1)
    assert old in (data.secrets / "session.ring").read_bytes()
    data.destroy_expired_keys(now=200 + PREVIOUS_KEPT)
    assert old not in (data.secrets / "session.ring").read_bytes()
    assert len(data.ring("wrap").slot("previous")) == 1


@pytest.mark.parametrize("name", RINGS)
def test_ring_file_reads_back_and_is_private(tmp_path: Path, name: str) -> None:
    ring = KeyRing.new(name, 100)
    ring.save(tmp_path / "ring")
    assert [k.seed for k in KeyRing.load(tmp_path / "ring").keys] == [k.seed for k in ring.keys]
    assert stat.S_IMODE((tmp_path / "ring").stat().st_mode) == 0o600
    assert ring.keys[0].seed.hex() not in repr(ring)


@given(st.binary(max_size=100))
def test_damaged_ring_file_is_named_and_not_quoted(data: bytes) -> None:
    seed = base64.b64encode(b"s" * 31).decode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "session.ring"
        for content in (
            data,
            json.dumps({"format": 1, "keys": [{"slot": "current", "suite": 1, "seed": seed}]}).encode(),
        ):
            path.write_bytes(content)
            with pytest.raises(IntegrityError, match=r"session\.ring is damaged") as caught:
                KeyRing.load(path)
            assert seed not in str(caught.value)


def test_sealed_value_opens_in_its_own_row_only() -> None:
    vault = Vault(os.urandom(32))
    sealed = vault.seal(b"psk", b"row 1", b"value")
    assert vault.open(b"psk", b"row 1", sealed) == b"value"
    assert vault.seal(b"psk", b"row 1", b"value") != sealed
    for purpose, owner, data in (
        (b"psk", b"row 2", sealed),
        (b"content key", b"row 1", sealed),
        (b"psk", b"row 1", sealed[:-1]),
        (b"psk", b"row 1", b""),
        (b"psk", b"row 1", bytes([sealed[0] ^ 1]) + sealed[1:]),
    ):
        with pytest.raises(IntegrityError):
            vault.open(purpose, owner, data)
    with pytest.raises(IntegrityError):
        Vault(os.urandom(32)).open(b"psk", b"row 1", sealed)


def test_public_json_reads_back(tmp_path: Path) -> None:
    data = DataDirectory(tmp_path / "fleet")
    public = data.create("https://fleet.example", now=1)
    again = FleetPublic.load(data.public_file)
    assert again.to_json() == public.to_json()
    assert [k.suite for k in again.session] == [1, 1, 2, 2]
    assert again.snapshot.keyid != again.timestamp.keyid
    with pytest.raises(IncompatibleError):
        FleetPublic.from_json(public.to_json() | {"format": 2})


def test_every_error_crosses_the_wire() -> None:
    for kind in [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, EdgesealError)]:
        error = error_from(kind("what", hint="then").as_dict())
        assert type(error) is kind
        assert (error.message, error.hint) == ("what", "then")
        assert 400 <= status_of(error) < 600
    unknown = error_from({"error": "NewerError", "message": "m", "hint": None, "exit_code": 4})
    assert type(unknown) is NotAuthorisedError
    assert error_from({}).exit_code == 1


def test_client_refuses_an_address_that_is_none() -> None:
    for url in ("fleet", "ftp://x", "http://", "https://user@x", "https://x?y"):
        with pytest.raises(UsageError):
            FleetClient(url)


# Database ----------------------------------------------------------------------------------------------------------


def test_database_of_another_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "fleet.db"
    schema.create(path)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE setting SET value = '99' WHERE name = 'schema'")
    connection.close()
    with pytest.raises(IncompatibleError, match="schema version 99"):
        schema.open_database(path)


def test_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "fleet.db"
    with pytest.raises(EdgesealError, match="not there"):
        schema.open_database(path)
    path.write_bytes(b"not a database, but long enough to be looked at" * 100)
    with pytest.raises(EdgesealError, match="not a fleet registry"):
        schema.open_database(path)


def test_old_interrupted_uploads_are_swept(tmp_path: Path) -> None:
    objects = ObjectDirectory(tmp_path)
    objects.prepare()
    for name, age in (("old", 8 * 86_400), ("new", 0)):
        partial = tmp_path / "incoming" / name
        partial.write_bytes(b"x")
        os.utime(partial, (partial.stat().st_mtime - age,) * 2)
    objects.prepare()
    assert [p.name for p in (tmp_path / "incoming").iterdir()] == ["new"]


# Signing again -----------------------------------------------------------------------------------------------------


def test_timestamp_is_signed_again_before_it_expires_and_not_earlier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World.make(tmp_path)
    objects = world.data.path / "objects"
    start = now_utc()
    with world.data.open() as fleet:
        bundle = make_bundle("bearing", 1)
        table = objects / "tables" / bundle.manifest.table_sha256.hex()[:2] / bundle.manifest.table_sha256.hex()
        table.parent.mkdir(parents=True)
        table.write_bytes(bundle.table)
        world.publisher.list_release(bundle)
        fleet.publisher.publish(world.publisher.publication(), {})
        seen: list[tuple[float, list[str]]] = []
        for days in (0.1, 0.6, 0.7, 1.3, 4.0, 4.1):
            moment = start + timedelta(days=days)
            monkeypatch.setattr(fleet.publisher, "_clock", lambda moment=moment: moment)
            seen.append((days, fleet.publisher.resign()))
    assert seen == [
        (0.1, []),
        (0.6, ["timestamp"]),
        (0.7, []),
        (1.3, ["timestamp"]),
        (4.0, ["snapshot", "timestamp"]),
        (4.1, []),
    ]
    timestamp = Metadata[Timestamp].from_bytes((objects / "metadata/timestamp.json").read_bytes()).signed
    assert (timestamp.version, timestamp.snapshot_meta.version) == (4, 2)
    snapshot = Metadata[Snapshot].from_bytes((objects / "metadata/2.snapshot.json").read_bytes()).signed
    assert set(snapshot.meta) == {"targets.json", "model-bearing.json"}


def test_nothing_is_signed_before_anything_is_published(tmp_path: Path) -> None:
    world = World.make(tmp_path)
    with world.data.open() as fleet:
        assert isinstance(fleet.publisher, Publisher)
        assert fleet.publisher.resign() == []
    assert not (world.data.path / "objects/metadata/timestamp.json").exists()
