"""A hostile server, mirror or disk changes bytes of a bundle: every single bit, every length, every swap is refused."""

from __future__ import annotations

import hashlib
import tracemalloc
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import zstandard

from edgeseal.chunks import check_stored, chunk_key, decode_chunk, encode_piece
from edgeseal.contentkey import check_commitment, commitment
from edgeseal.errors import FormatError, IncompatibleError, IntegrityError, RefusedError
from edgeseal.manifest import Manifest
from edgeseal.suite import aead_encrypt
from edgeseal.table import CODEC_GROUPED, CODEC_RAW, CODEC_ZSTD, FileEntry, Record, Table, open_pinned, open_table
from edgeseal.table import seal_table as seal

if TYPE_CHECKING:
    from collections.abc import Iterator

FS, CK, SALT = b"f" * 32, b"c" * 32, b"s" * 32
MODEL, RELEASE = "bearing", 7
SUITES = pytest.mark.parametrize("suite", [1, 2])
PIECES = {
    CODEC_RAW: hashlib.shake_256(b"noise").digest(60),
    CODEC_ZSTD: b"healthy " * 20,
    CODEC_GROUPED: b"\x00\x00\x80\x3f" * 40,
}


def encoded(codec: int, suite: int) -> tuple[Record, bytes]:
    record, stored = encode_piece(PIECES[codec], fs=FS, suite=suite, width=4 if codec == CODEC_GROUPED else 1)
    assert record.codec == codec
    return record, stored


def table(suite: int) -> Table:
    record, _ = encoded(CODEC_RAW, suite)
    content = PIECES[CODEC_RAW]
    return Table((FileEntry("m", len(content), 0o644, hashlib.sha256(content).digest(), 0, 1),), None, [record])


def sealed(suite: int) -> bytes:
    return seal(table(suite), ck=CK, suite=suite, model=MODEL, release=RELEASE, salt=SALT)


def manifest(suite: int, data: bytes) -> Manifest:
    return Manifest(
        model=MODEL,
        release=RELEASE,
        suite=suite,
        ck_commitment=commitment(CK, MODEL, RELEASE),
        table_sha256=hashlib.sha256(data).digest(),
        table_length=len(data),
        plain_size=len(PIECES[CODEC_RAW]),
        stored_size=len(PIECES[CODEC_RAW]) + 16,
    )


def flips(data: bytes) -> Iterator[bytes]:
    for bit in range(8 * len(data)):
        spoilt = bytearray(data)
        spoilt[bit // 8] ^= 1 << bit % 8
        yield bytes(spoilt)


def decode(record: Record, stored: bytes, suite: int) -> bytes:
    out = bytearray(b"\xaa" * record.plain_length)
    try:
        decode_chunk(record, stored, suite=suite, out=memoryview(out))
    except (RefusedError, IncompatibleError):
        assert not any(out), "unverified bytes are left"
        raise
    return bytes(out)


# The sealed table -----------------------------------------------------------------------------------------------------


@SUITES
def test_the_table_itself_opens(suite: int) -> None:
    """Negative control of everything below."""
    data = sealed(suite)
    assert open_pinned(data, manifest(suite, data), ck=CK).plain_size == 60


@SUITES
def test_every_bit_flip_of_a_table_refused(suite: int) -> None:
    data = sealed(suite)
    pinned = manifest(suite, data)
    for spoilt in flips(data):
        with pytest.raises(IntegrityError):
            open_pinned(spoilt, pinned, ck=CK)
        with pytest.raises((RefusedError, IncompatibleError)):  # even where nothing pins it
            open_table(spoilt, ck=CK, suite=suite, model=MODEL, release=RELEASE)


@SUITES
def test_every_truncation_of_a_table_refused(suite: int) -> None:
    data = sealed(suite)
    for length in range(len(data)):
        with pytest.raises(IntegrityError):
            open_pinned(data[:length], manifest(suite, data), ck=CK)
        with pytest.raises(RefusedError):
            open_table(data[:length], ck=CK, suite=suite, model=MODEL, release=RELEASE)


@SUITES
def test_table_with_bytes_appended_refused(suite: int) -> None:
    data = sealed(suite)
    for more in (b"\0", data):
        with pytest.raises(RefusedError):
            open_table(data + more, ck=CK, suite=suite, model=MODEL, release=RELEASE)


@pytest.mark.parametrize(
    ("model", "release", "ck"), [("bearinh", 7, CK), ("bearin", 7, CK), (MODEL, 8, CK), (MODEL, 7, b"d" * 32)]
)
def test_table_in_the_place_of_another_release_or_key_refused(model: str, release: int, ck: bytes) -> None:
    with pytest.raises(IntegrityError, match="does not open with this content key"):
        open_table(sealed(1), ck=ck, suite=1, model=model, release=release)


def test_table_of_the_other_suite_refused() -> None:
    with pytest.raises(IntegrityError, match="suite 2"):
        open_table(sealed(2), ck=CK, suite=1, model=MODEL, release=RELEASE)


def test_every_bit_flip_of_a_content_key_refused() -> None:
    expected = commitment(CK, MODEL, RELEASE)
    check_commitment(CK, expected, MODEL, RELEASE)
    for spoilt in flips(CK):
        with pytest.raises(IntegrityError, match="commits to"):
            check_commitment(spoilt, expected, MODEL, RELEASE)
    for model, release in ((MODEL, RELEASE + 1), (MODEL + "x", RELEASE)):
        with pytest.raises(IntegrityError):
            check_commitment(CK, expected, model, release)


def test_every_bit_flip_of_a_manifest_changes_what_it_says_or_is_refused() -> None:
    """TUF pins its hash; the parser alone must still never read two encodings as one manifest."""
    data = manifest(1, sealed(1)).to_bytes()
    first = Manifest.from_bytes(data)
    for spoilt in flips(data):
        try:
            assert Manifest.from_bytes(spoilt) != first
        except (RefusedError, IncompatibleError):
            continue


# Chunks ---------------------------------------------------------------------------------------------------------------


@SUITES
@pytest.mark.parametrize("codec", PIECES)
def test_every_bit_flip_and_truncation_of_a_chunk_refused(codec: int, suite: int) -> None:
    record, stored = encoded(codec, suite)
    assert decode(record, stored, suite) == PIECES[codec]
    for spoilt in (*flips(stored), *(stored[:n] for n in range(len(stored))), stored + b"\0"):
        with pytest.raises(IntegrityError):
            check_stored(record, spoilt)
        with pytest.raises(IntegrityError):
            decode(record, spoilt, suite)


def test_swapped_chunks_refused() -> None:
    (one, stored_one), (two, stored_two) = encoded(CODEC_RAW, 1), encoded(CODEC_ZSTD, 1)
    for record, stored in ((one, stored_two), (two, stored_one)):
        with pytest.raises(IntegrityError):
            check_stored(record, stored)
        with pytest.raises(IntegrityError):
            decode(record, stored, 1)


def test_chunk_of_another_release_with_the_same_length_refused() -> None:
    record, _ = encoded(CODEC_RAW, 1)
    _, other = encode_piece(hashlib.shake_256(b"other").digest(60), fs=FS, suite=1)
    assert len(other) == record.stored_length
    with pytest.raises(IntegrityError):
        decode(record, other, 1)


def test_chunk_of_another_family_refused() -> None:
    record, _ = encoded(CODEC_RAW, 1)
    _, other = encode_piece(PIECES[CODEC_RAW], fs=b"g" * 32, suite=1)
    with pytest.raises(IntegrityError):
        decode(record, other, 1)


def test_residual_refused_with_a_reason() -> None:
    record, stored = encoded(CODEC_ZSTD, 1)
    with pytest.raises(IncompatibleError, match=r"residual \(codec 3\)") as caught:
        decode(replace(record, codec=3, base=bytes(32)), stored, 1)
    assert "plain record" in str(caught.value)


# Bombs: the record is signed, but a publisher may be hostile too ------------------------------------------------------


def framed(frame: bytes, piece: bytes, *, codec: int = CODEC_ZSTD) -> tuple[Record, bytes]:
    key = chunk_key(FS, 1, frame)
    stored = aead_encrypt(1, key, None, frame)
    names = hashlib.sha256(stored).digest(), key, hashlib.sha256(piece).digest()
    return Record(*names, len(piece), len(stored), codec, 1), stored


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "undeclared"])
def test_decompression_bomb_costs_no_memory(declared: bool) -> None:
    bomb = zstandard.ZstdCompressor(level=3, write_content_size=declared).compressobj(size=2**28 if declared else -1)
    frame = b"".join(bomb.compress(bytes(2**20)) for _ in range(256)) + bomb.flush()
    record, stored = framed(frame, bytes(2**20))
    decode(*encoded(CODEC_ZSTD, 1), 1)  # the scratch buffer is there
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            decode(record, stored, 1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * 2**20


@pytest.mark.parametrize("length", [0, 2**20 + 1, 2**32 - 1])
def test_record_with_an_absurd_length_refused_before_allocating(length: int) -> None:
    record, stored = encoded(CODEC_RAW, 1)
    with pytest.raises(FormatError):
        decode_chunk(replace(record, plain_length=length), stored, suite=1, out=memoryview(bytearray(1)))


def test_table_that_claims_more_than_it_holds_costs_no_memory() -> None:
    good = sealed(1)
    huge = good[:8] + b"\x7f" + good[9:]
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="sealed in it"):
            open_table(huge, ck=CK, suite=1, model=MODEL, release=RELEASE)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**20
