"""A second auditor of a station's journal, from docs/spec/station-journal.md alone: SQLite, SHA-384 and ML-DSA.

It shares no code with edgeseal: where the two disagree, one of them or the page is wrong.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey
from tests.unit.second_reader import Refused, require

if TYPE_CHECKING:
    from pathlib import Path

COLUMNS = (
    *(
        "n",
        "kind",
        "provision_ts",
        "operator",
        "fixture",
        "batch",
        "device",
        "serial",
        "eth_mac",
        "mmc_cid",
        "rpi_duid",
    ),
    *("board_revision", "kid", "offer", "timings", "detail", "previous", "hash"),
)


def cbor(value: str | bytes | int | list[Any]) -> bytes:
    """RFC 8949 §4.2.1, as far as entries need it."""
    if isinstance(value, list):
        return _head(4, len(value)) + b"".join(map(cbor, value))
    if isinstance(value, str):
        return _head(3, len(value.encode())) + value.encode()
    if isinstance(value, bytes):
        return _head(2, len(value)) + value
    return _head(0, value)


def _head(major: int, number: int) -> bytes:
    if number < 24:
        return bytes([major << 5 | number])
    for code, length in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if number < 1 << 8 * length:
            return bytes([major << 5 | code]) + number.to_bytes(length, "big")
    raise Refused("a number of more than 64 bits")


def audit(directory: Path, public: bytes) -> list[dict[str, Any]]:
    """Return the entries of a journal that is whole. Raises Refused, naming the entry at fault first."""
    with closing(sqlite3.connect(f"file:{directory / 'journal.db'}?mode=ro", uri=True)) as connection:
        rows = connection.execute(f"SELECT {', '.join(COLUMNS)} FROM entry ORDER BY n").fetchall()  # noqa: S608
        (damage,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    before = bytes(48)
    for n, row in enumerate(rows, 1):
        *values, own = row
        entry = dict(zip(COLUMNS, row, strict=True))
        require(entry["n"] == n, f"{n}: there is a gap")
        require(hashlib.sha384(cbor(["edgeseal/journal/1", *values])).digest() == own, f"{n}: was changed")
        require(entry["previous"] == before, f"{n}: does not follow the one before")
        if entry["kind"] == "ended":
            _verify(public, json.loads(entry["detail"])["signature"], before, n)
        before = own
    number, _, digest = (directory / "journal.head").read_text().rstrip("\n").partition(" ")
    require(int(number) <= len(rows), f"{len(rows) + 1}: was cut off")
    require(rows[int(number) - 1][-1].hex() == digest, f"{number}: is not what the head says")
    require(damage == "ok", damage)
    require(rows[0][1] == "opened", "1: is no beginning")
    return [dict(zip(COLUMNS, row, strict=True)) for row in rows]


def _verify(public: bytes, signature: str, message: bytes, n: int) -> None:
    try:
        MLDSA65PublicKey.from_public_bytes(public).verify(
            bytes.fromhex(signature), message, b"edgeseal station journal"
        )
    except (InvalidSignature, ValueError):
        raise Refused(f"{n}: was not signed by this station") from None
