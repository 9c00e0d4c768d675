"""What a device keeps: whole files, two slots, sealed secrets. Torn, flipped, swapped, lost, worn out."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import stat
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeseal.durable import locked, sweep, write_atomic
from edgeseal.errors import (
    EdgesealError,
    FormatError,
    IntegrityError,
    NotAuthorisedError,
    RefusedError,
    TemporaryError,
    UsageError,
)
from edgeseal.keystore import ContentKey, KeyStore, systemd_credential
from edgeseal.session.device import Generation, Identity
from edgeseal.slots import MAX_LENGTH, TwoSlots

if TYPE_CHECKING:
    from pathlib import Path

CREDENTIAL = b"c" * 32
IDENTITY = Identity("press-7", Generation(1, b"s" * 32, b"p" * 32, provisioned=True))


# Whole files ----------------------------------------------------------------------------------------------------------


def test_file_is_replaced_whole_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for data in (b"old", b"newer", b""):
        write_atomic(path, data, mode=0o640)
        assert path.read_bytes() == data
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert list(tmp_path.iterdir()) == [path]


def test_failed_write_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()  # cannot be replaced by a file
    (tmp_path / "file" / "inside").write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        write_atomic(tmp_path / "file", b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_sweep_removes_only_what_a_crash_left(tmp_path: Path) -> None:
    for name in (".tmp-file", ".tmp-other", "file", ".hidden"):
        (tmp_path / name).write_bytes(b"")
    sweep(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".hidden", "file"]


def _try_lock(path: Path, answer: Any) -> None:
    try:
        with locked(path):
            answer.put("taken")
    except TemporaryError as e:
        answer.put(str(e))


def test_lock_keeps_another_process_out_until_it_is_dropped(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    answer = context.Queue()

    def ask() -> str:
        process = context.Process(target=_try_lock, args=(tmp_path / "lock", answer))
        process.start()
        process.join()
        return str(answer.get(timeout=10))

    with locked(tmp_path / "lock"):
        assert "held by another edgeseal process" in ask()
    assert ask() == "taken"


# Two slots ------------------------------------------------------------------------------------------------------------


def checksummed(sequence: int, payload: bytes) -> bytes:
    body = sequence.to_bytes(8, "big") + payload
    return body + hashlib.sha256(body).digest()


def unchecked(data: bytes) -> tuple[int, bytes]:
    if hashlib.sha256(data[:-32]).digest() != data[-32:]:
        raise FormatError("checksum")
    return int.from_bytes(data[:8], "big"), data[8:-32]


def slots(directory: Path) -> TwoSlots:
    return TwoSlots(directory, "state", wrap=checksummed, unwrap=unchecked)


def test_slots_alternate_and_the_newest_counts(tmp_path: Path) -> None:
    assert slots(tmp_path).read() is None
    for n in range(1, 6):
        slots(tmp_path).write(b"%d" % n)
        slot = slots(tmp_path).read()
        assert slot is not None
        assert (slot.sequence, slot.payload, slot.damaged) == (n, b"%d" % n, False)
    assert {unchecked(p.read_bytes())[1] for p in tmp_path.iterdir()} == {b"4", b"5"}


@pytest.mark.parametrize("fault", ["flip", "truncate", "empty", "huge", "unreadable"])
def test_damaged_newest_slot_costs_the_last_change_only(tmp_path: Path, fault: str) -> None:
    for n in (1, 2):
        slots(tmp_path).write(b"%d" % n)
    damage(tmp_path / "state.0", fault)
    slot = slots(tmp_path).read()
    assert slot is not None
    assert (slot.payload, slot.damaged) == (b"1", True)
    slots(tmp_path).write(b"3")
    healed = slots(tmp_path).read()
    assert healed is not None
    assert (healed.payload, healed.damaged) == (b"3", False)


def damage(path: Path, fault: str) -> None:
    data = path.read_bytes()
    if fault == "unreadable":  # reading it gives EIO, as a worn-out block does
        path.unlink()
        path.symlink_to("/proc/self/mem")
        with pytest.raises(OSError, match="Input/output error"):
            path.read_bytes()
        return
    path.write_bytes(
        {
            "flip": data[:-1] + bytes([data[-1] ^ 1]),
            "truncate": data[:-1],
            "empty": b"",
            "huge": bytes(MAX_LENGTH + 1),
        }[fault]
    )


def test_two_damaged_slots_are_an_error_and_not_a_fresh_start(tmp_path: Path) -> None:
    for n in (1, 2):
        slots(tmp_path).write(b"%d" % n)
    for name in ("state.0", "state.1"):
        damage(tmp_path / name, "flip")
    with pytest.raises(IntegrityError, match="no copy of it is sound"):
        slots(tmp_path).read()
    slots(tmp_path).write(b"anew")
    slot = slots(tmp_path).read()
    assert slot is not None
    assert slot.payload == b"anew"


def test_writing_everywhere_leaves_no_former_payload(tmp_path: Path) -> None:
    for n in (1, 2, 3):
        slots(tmp_path).write(b"former %d" % n)
    slots(tmp_path).write(b"new", everywhere=True)
    assert {unchecked(p.read_bytes())[1] for p in tmp_path.iterdir()} == {b"new"}


def test_slot_does_not_show_its_payload(tmp_path: Path) -> None:
    slots(tmp_path).write(b"secret")
    assert "secret" not in repr(slots(tmp_path).read())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.binary(max_size=80), st.binary(max_size=80))
def test_any_bytes_in_both_slots(tmp_path: Path, one: bytes, two: bytes) -> None:
    (tmp_path / "state.0").write_bytes(one)
    (tmp_path / "state.1").write_bytes(two)
    with pytest.raises(IntegrityError):
        slots(tmp_path).read()


# Sealed secrets -------------------------------------------------------------------------------------------------------


def draw(label: str, length: int) -> bytes:
    return hashlib.shake_256(label.encode()).digest(length)


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    """An enrolled store without a credential."""
    made = KeyStore(tmp_path / "keys")
    made.create(draw)
    made.enrol(IDENTITY, k_rng=b"k" * 32, sources={"kid": ["os: getrandom"]})
    return made


def opened(tmp_path: Path, credential: bytes | None = None) -> KeyStore:
    return KeyStore(tmp_path / "keys", credential=credential)


def test_identity_round_trip(store: KeyStore, tmp_path: Path) -> None:
    assert store.identity() == IDENTITY
    changed = replace(
        IDENTITY,
        current=Generation(2, b"S" * 64, b"P" * 32, accepted_at=9),
        former=IDENTITY.current,
        ceiling=31,
        resynced=True,
        refusals=2,
    )
    store.save(changed, sources={"new": ["os: getrandom", "stick: quantum, evidence vendor"]})
    again = opened(tmp_path)
    assert again.identity() == changed
    assert again.k_rng() == b"k" * 32
    assert again.sources() == {"kid": ["os: getrandom"], "new": ["os: getrandom", "stick: quantum, evidence vendor"]}


def test_nothing_is_readable_on_the_card(store: KeyStore, tmp_path: Path) -> None:
    store.keep_pending(1, b"t" * 32, ["os: getrandom"])
    store.keep_content_keys([ContentKey("bearing", 1, b"c" * 32, 99)])
    for path in (tmp_path / "keys").iterdir():
        data = path.read_bytes()
        for secret in (b"s" * 32, b"p" * 32, b"k" * 32, b"t" * 32, b"c" * 32, b"press-7", b"bearing"):
            assert secret not in data, path.name
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path.name
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700


def test_not_enrolled_says_what_to_do(tmp_path: Path) -> None:
    store = opened(tmp_path)
    assert not store.enrolled()
    store.create(draw)
    with pytest.raises(NotAuthorisedError, match="enrol request"):
        store.identity()
    assert store.pending() is None
    assert store.content_keys() == {}


def test_pending_key_pair_survives_until_the_grant(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.create(draw)
    store.keep_pending(2, b"t" * 64, ["os: getrandom"])
    pending = opened(tmp_path).pending()
    assert pending is not None
    assert (pending.suite, pending.seed) == (2, b"t" * 64)
    assert "tttt" not in repr(pending)
    store.enrol(IDENTITY, k_rng=b"k" * 32, sources={})
    assert opened(tmp_path).pending() is None
    assert not list((tmp_path / "keys").glob("pending*"))


def test_creating_twice_keeps_the_secret(store: KeyStore, tmp_path: Path) -> None:
    store.create(lambda _, length: bytes(length))
    assert opened(tmp_path).identity() == IDENTITY


@pytest.mark.parametrize("name", ["secret", "identity.0", "identity.1", "keys.1"])
def test_lost_files_are_told_apart(store: KeyStore, tmp_path: Path, name: str) -> None:
    store.save(replace(IDENTITY, ceiling=16))
    store.keep_content_keys([ContentKey("bearing", 1, b"c" * 32, 99)])
    (tmp_path / "keys" / name).unlink()
    again = opened(tmp_path)
    if name == "secret":
        for call in (again.identity, again.content_keys, lambda: again.create(draw)):
            with pytest.raises(IntegrityError, match="is missing, and without it"):
                call()
    elif name == "keys.1":
        assert again.content_keys() == {}
        assert again.identity().ceiling == 16
    else:
        assert again.identity().ceiling in {0, 16}


def test_every_bit_flip_of_a_sealed_slot_refused(store: KeyStore, tmp_path: Path) -> None:
    store.keep_content_keys([ContentKey("bearing", 1, b"c" * 32, 99)])
    path = tmp_path / "keys" / "keys.1"
    good = path.read_bytes()
    for bit in range(8 * len(good)):
        spoilt = bytearray(good)
        spoilt[bit // 8] ^= 1 << bit % 8
        path.write_bytes(spoilt)
        with pytest.raises((RefusedError, EdgesealError)):
            store.content_keys()
    path.write_bytes(good)
    assert len(store.content_keys()) == 1


def test_every_truncation_of_a_sealed_slot_refused(store: KeyStore, tmp_path: Path) -> None:
    store.keep_content_keys([ContentKey("bearing", 1, b"c" * 32, 99)])
    path = tmp_path / "keys" / "keys.1"
    good = path.read_bytes()
    for length in range(len(good)):
        path.write_bytes(good[:length])
        with pytest.raises(EdgesealError):
            store.content_keys()


def test_slot_of_another_kind_or_device_refused(store: KeyStore, tmp_path: Path) -> None:
    store.keep_content_keys([ContentKey("bearing", 1, b"c" * 32, 99)])
    identity = tmp_path / "keys" / "identity.1"
    (tmp_path / "keys" / "keys.1").write_bytes(identity.read_bytes())
    with pytest.raises(IntegrityError):
        store.content_keys()
    other = KeyStore(tmp_path / "other")
    other.create(lambda _, length: os.urandom(length))
    (tmp_path / "other" / "identity.1").write_bytes(identity.read_bytes())
    with pytest.raises(IntegrityError):
        other.identity()


def test_identity_restored_to_an_older_slot_opens(store: KeyStore, tmp_path: Path) -> None:
    """Not detected here: the fleet server's counter does (docs/spec/session.md §8)."""
    old = (tmp_path / "keys" / "identity.1").read_bytes()
    for ceiling in (16, 32, 48):
        store.save(replace(IDENTITY, ceiling=ceiling))
    for name in ("identity.0", "identity.1"):
        (tmp_path / "keys" / name).write_bytes(old)
    assert opened(tmp_path).identity() == IDENTITY


# Content keys held ----------------------------------------------------------------------------------------------------


def test_dropped_content_key_is_in_no_copy(store: KeyStore, tmp_path: Path) -> None:
    one, two = ContentKey("bearing", 1, b"1" * 32, 99), ContentKey("bearing", 2, b"2" * 32, 99)
    store.keep_content_keys([one])
    store.keep_content_keys([one, two])
    store.keep_content_keys([two])
    for survivor in ("keys.0", "keys.1"):
        alone = KeyStore(tmp_path / "keys")
        kept = {p.name: p.read_bytes() for p in (tmp_path / "keys").glob("keys.*")}
        for name in kept.keys() - {survivor}:
            (tmp_path / "keys" / name).unlink()
        assert alone.content_keys() == {("bearing", 2): two}
        for name, data in kept.items():
            (tmp_path / "keys" / name).write_bytes(data)


def test_unchanged_content_keys_write_nothing(store: KeyStore, tmp_path: Path) -> None:
    keys = [ContentKey("bearing", 1, b"1" * 32, 99), ContentKey("a", 2, b"2" * 32, 99)]
    store.keep_content_keys(keys)
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "keys").iterdir()}
    store.keep_content_keys(reversed(keys))
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "keys").iterdir()} == before
    assert "1111" not in repr(store.content_keys())


# The systemd credential -----------------------------------------------------------------------------------------------


def test_credential_is_added_at_the_next_write_and_needed_from_then_on(store: KeyStore, tmp_path: Path) -> None:
    assert store.identity() == IDENTITY
    with_credential = opened(tmp_path, CREDENTIAL)
    assert with_credential.identity() == IDENTITY, "sealed before there was a credential"
    for ceiling in (16, 32):  # both slots
        with_credential.save(replace(IDENTITY, ceiling=ceiling))
    with pytest.raises(IntegrityError, match="which is missing"):
        opened(tmp_path).identity()
    with pytest.raises(IntegrityError):
        opened(tmp_path, b"d" * 32).identity()
    assert opened(tmp_path, CREDENTIAL).identity().ceiling == 32


def test_credential_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert systemd_credential() is None
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert systemd_credential() is None
    (tmp_path / "edgeseal.at-rest").write_bytes(CREDENTIAL)
    assert systemd_credential() == CREDENTIAL
    for wrong in (b"", b"c" * 31, b"c" * 4097):
        (tmp_path / "edgeseal.at-rest").write_bytes(wrong)
        with pytest.raises(UsageError, match=f"{len(wrong)} bytes"):
            systemd_credential()
