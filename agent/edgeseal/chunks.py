"""Chunks: one piece of a file, perhaps compressed, encrypted under a key of its own (docs/spec/bundle.md).

The key is derived from the publisher's family secret and the frame, so the same piece gives the same ciphertext in
every release: that is what makes delta downloads, resume and caching work. A decoder trusts only what the sealed table
says and never allocates more than that.

Not here: where pieces begin and end (edgeseal_host.cutting) and where chunks are kept (edgeseal.store).
"""

from __future__ import annotations

import hashlib
import hmac
import threading
from typing import Final

import zstandard
from cryptography.exceptions import InvalidTag

from edgeseal.errors import FormatError, IncompatibleError, IntegrityError
from edgeseal.manifest import CHUNK_MAX
from edgeseal.suite import NONCE, TAG_LENGTH, aead_encrypt
from edgeseal.suite import suite as known_suite
from edgeseal.table import CODEC_GROUPED, CODEC_RAW, CODEC_RESIDUAL, CODEC_ZSTD, WIDTHS, Record

FAMILY_SECRET_LENGTH: Final = 32
ZSTD_LEVEL: Final = 1  # of incompressible weights, higher levels take ten times longer and save no more
WORTHWHILE: Final = 0.95  # below this share of the raw size compression pays for its decoding
_KEY_LABEL: Final = b"edgeseal/chunk-key/v1"
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"  # RFC 8878 §3.1.1; keeps skippable frames (§3.1.2) out


def chunk_key(fs: bytes, suite: int, frame: bytes) -> bytes:
    """HMAC-SHA256(FS, label ‖ u8 suite ‖ SHA-256(frame)).

    From the frame, never the piece: a new zstd version would make another frame of the same piece, and the same key
    would then encrypt two messages under one nonce.
    """
    return hmac.digest(fs, _KEY_LABEL + bytes([suite]) + hashlib.sha256(frame).digest(), "sha256")


def encode_piece(piece: bytes, *, fs: bytes, suite: int, width: int = 1) -> tuple[Record, bytes]:
    """Return the record of `piece` and its chunk; `width` is the size of the tensor's elements, 1 if unknown.

    Deterministic for one version of zstd. Raises ValueError for arguments that no piece of a file can give.
    """
    if not 1 <= len(piece) <= CHUNK_MAX or width not in WIDTHS or len(fs) != FAMILY_SECRET_LENGTH:
        raise ValueError("a piece has 1 to 2^20 bytes, an element 1, 2, 4 or 8, a family secret 32")
    codec, frame = _encode_frame(piece, width)
    key = chunk_key(fs, suite, frame)
    stored = aead_encrypt(suite, key, None, frame)
    record = Record(
        stored_sha256=hashlib.sha256(stored).digest(),
        key=key,
        plain_sha256=hashlib.sha256(piece).digest(),
        plain_length=len(piece),
        stored_length=len(stored),
        codec=codec,
        width=width,
    )
    return record, stored


def check_stored(record: Record, stored: bytes | memoryview) -> None:
    """Raise IntegrityError unless `stored` is the chunk that `record` names: right length, right SHA-256.

    For bytes from a network or a disk, before they are kept. `decode_chunk` does not repeat it: the AEAD tag under a
    key that seals one message says the same.
    """
    if len(stored) != record.stored_length or hashlib.sha256(stored).digest() != record.stored_sha256:
        raise IntegrityError(
            f"chunk {record.stored_sha256.hex()} of {record.stored_length} bytes expected; "
            f"{len(stored)} other bytes came",
            hint="fetch it again; if that does not help the server or the disk changes data",
        )


def decode_chunk(record: Record, stored: bytes | memoryview, *, suite: int, out: memoryview) -> int:
    """Write the piece to the start of `out` and return its length; safe to call from several threads.

    Raises what `ChunkDecoder.decode_into` raises.
    """
    return _decoder(suite).decode_into(record, stored, out)


class ChunkDecoder:
    """Decrypts and decodes chunks of one suite; reuses one scratch buffer, so each thread needs its own."""

    def __init__(self, suite: int) -> None:
        """Raise IncompatibleError for an unknown suite."""
        self._aead = known_suite(suite).aead
        # One frame at a time, no window larger than a piece: zstd cannot be made to allocate more (RFC 8878 §7.1).
        self._zstd = zstandard.ZstdDecompressor(max_window_size=CHUNK_MAX)
        self._scratch = bytearray()

    def decode_into(self, record: Record, stored: bytes | memoryview, out: memoryview) -> int:
        """Write the piece to the start of `out` and return its length; a raw chunk is decrypted right there.

        Raises FormatError or IntegrityError if the chunk is not the one of the record, IncompatibleError for a
        residual. `out` is then zeroed: nothing unverified is left in it.
        """
        record.check()
        length = record.plain_length
        if len(out) < length:
            raise ValueError(f"buffer of {len(out)} bytes for a piece of {length}")
        target = out[:length]
        try:
            self._decode(record, stored, target)
            _check_piece(record, target)
        except BaseException:
            target[:] = bytes(length)
            raise
        return length

    def _decode(self, record: Record, stored: bytes | memoryview, target: memoryview) -> None:
        if record.codec == CODEC_RESIDUAL:
            raise IncompatibleError(
                f"chunk {record.stored_sha256.hex()} is a residual (codec 3), which this version cannot decode",
                hint="use the plain record of the same piece, or update edgeseal on this machine",
            )
        if record.codec == CODEC_RAW:
            self._decrypt(record, stored, target)
            return
        plain = self._decompress(record, self._decrypt_to_scratch(record, stored))
        if record.codec == CODEC_ZSTD or record.width == 1:
            target[:] = plain
        else:
            # Strided assignment is three times faster on a bytearray than on a memoryview.
            ungroup(plain, record.width, self._scratch)
            target[:] = memoryview(self._scratch)[: len(plain)]

    def _decrypt_to_scratch(self, record: Record, stored: bytes | memoryview) -> memoryview:
        if not self._scratch:
            self._scratch = bytearray(CHUNK_MAX)
        frame = memoryview(self._scratch)[: record.stored_length - TAG_LENGTH]
        self._decrypt(record, stored, frame)
        return frame

    def _decrypt(self, record: Record, stored: bytes | memoryview, target: memoryview) -> None:
        if len(stored) != record.stored_length:
            raise IntegrityError(
                f"chunk {record.stored_sha256.hex()} has {len(stored)} bytes, its record says {record.stored_length}"
            )
        try:
            self._aead(record.key).decrypt_into(NONCE, stored, None, target)
        except InvalidTag:
            raise IntegrityError(
                f"chunk {record.stored_sha256.hex()} does not open with the key of its record",
                hint="the bytes were changed, or they are another chunk's; fetch it again",
            ) from None

    def _decompress(self, record: Record, frame: memoryview) -> bytes:
        """One frame that declares exactly the record's length; zstd allocates what a frame declares."""
        name, length = record.stored_sha256.hex(), record.plain_length
        try:
            header = zstandard.get_frame_parameters(frame)
            if bytes(frame[:4]) != _ZSTD_MAGIC or header.content_size != length or header.window_size > CHUNK_MAX:
                raise FormatError(f"chunk {name} is not one zstd frame of the {length} bytes of its record")
            plain = self._zstd.decompress(
                frame, max_output_size=length, read_across_frames=False, allow_extra_data=False
            )
        except zstandard.ZstdError as e:
            raise FormatError(f"chunk {name}: {e}") from e
        if len(plain) != length:
            raise FormatError(f"chunk {name} decompresses to {len(plain)} bytes, its record says {length}")
        return plain


def _check_piece(record: Record, piece: memoryview) -> None:
    if hashlib.sha256(piece).digest() != record.plain_sha256:
        raise IntegrityError(f"chunk {record.stored_sha256.hex()} decodes to another piece than its record's")


def group(piece: bytes, width: int) -> bytes:
    """Byte-group: all first bytes of the elements, all second bytes, …, then what is left over as it is."""
    whole = len(piece) // width * width
    return b"".join([*(piece[i:whole:width] for i in range(width)), piece[whole:]])


def ungroup(grouped: bytes, width: int, out: bytearray) -> None:
    """Inverse of `group`, written to the start of `out`."""
    count = len(grouped) // width
    whole = count * width
    for i in range(width):
        out[i:whole:width] = grouped[i * count : (i + 1) * count]
    out[whole : len(grouped)] = grouped[whole:]


def _encode_frame(piece: bytes, width: int) -> tuple[int, bytes]:
    """Return codec and frame: compressed if that saves enough, else the piece itself."""
    compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_content_size=True, write_checksum=False)
    frame = compressor.compress(piece if width == 1 else group(piece, width))
    if len(frame) >= WORTHWHILE * len(piece):
        return CODEC_RAW, piece
    return (CODEC_ZSTD if width == 1 else CODEC_GROUPED), frame


_local = threading.local()


def _decoder(suite: int) -> ChunkDecoder:
    """One decoder per thread and suite."""
    decoders: dict[int, ChunkDecoder] = _local.__dict__.setdefault("decoders", {})
    if suite not in decoders:
        decoders[suite] = ChunkDecoder(suite)
    return decoders[suite]
