"""Enrolment records as they leave a station: each signed with its ML-DSA-65 key, alone or as lines of a carried file.

    {"format": "edgeseal/enrolments/1", "station": "pin, 48 bytes hex", "name": "line 1", "count": 2}
    {"record": base64, "signature": base64}    one for each device

A record is docs/spec/session.md §13 (the PSK in it is sealed to the fleet server); its signature is over the record's
bytes under `CONTEXT`. Each line stands for itself: files may be joined and read twice. Reading takes a line at a time,
so that a file of any size, or one endless line, costs no memory. Not here: who is trusted (fleet/stations.py).
"""

from __future__ import annotations

import base64
import itertools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, BinaryIO, Final, TypeAlias, TypeVar

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey

from edgeseal.enrolment import MAX_RECORD
from edgeseal.errors import FormatError, IncompatibleError, IntegrityError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Self

    from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey

    from edgeseal_host.station.directory import StationKey

FORMAT: Final = "edgeseal/enrolments/1"
CONTEXT: Final = b"edgeseal enrolment record"  # FIPS 204 §5.2: a signature for this serves nothing else
SIGNATURE_LENGTH: Final = 3309  # FIPS 204, table 2
PIN_LENGTH: Final = 48
MAX_LINE: Final = 65_536
MAX_LINES: Final = 200_000  # of one file, so that its reader comes to an end
MAX_OTHERS: Final = 1_000  # of them that are no records: a small file must not make a long report
_S = TypeVar("_S", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class SignedRecord:
    """A record, the pin of the station that is said to have signed it, and the signature: unverified."""

    record: bytes
    pin: bytes
    signature: bytes

    def check(self, public: bytes) -> None:
        """Raise IntegrityError unless the station with this ML-DSA-65 public key signed the record."""
        try:
            MLDSA65PublicKey.from_public_bytes(public).verify(self.signature, self.record, CONTEXT)
        except (InvalidSignature, ValueError):
            raise IntegrityError(
                "the signature is not its station's", hint="was the record altered on the way? Take it there again"
            ) from None


@dataclass(frozen=True, slots=True)
class Signer:
    """Signs for one station. `sign` signs a record's bytes under `CONTEXT`."""

    name: str
    pin: bytes
    sign: Callable[[bytes], bytes]

    @classmethod
    def of(cls, station: StationKey, private: MLDSA65PrivateKey) -> Self:
        """Return the signer of a station whose private key is at hand."""
        return cls(station.name, station.pin, lambda record: private.sign(record, CONTEXT))

    def signed(self, record: bytes) -> SignedRecord:
        """Return a record with this station's signature."""
        return SignedRecord(record, self.pin, self.sign(record))


@dataclass(frozen=True, slots=True)
class Header:
    """Where a station's records begin; `count` says how many follow. Unsigned: what counts is each signature."""

    pin: bytes
    name: str
    count: int


@dataclass(frozen=True, slots=True)
class Bad:
    """A line that is neither."""

    error: FormatError | IncompatibleError


Item: TypeAlias = Header | SignedRecord | Bad


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: str
    station: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{96}\Z")]
    name: Annotated[str, msgspec.Meta(max_length=256)]
    count: Annotated[int, msgspec.Meta(ge=0, le=MAX_LINES)]


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    record: Annotated[bytes, msgspec.Meta(min_length=1, max_length=MAX_RECORD)]
    signature: Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_LENGTH, max_length=SIGNATURE_LENGTH)]


class _Any(msgspec.Struct, frozen=True):
    """What tells one line from the other before either is read strictly."""

    format: msgspec.Raw = msgspec.Raw()


def write(records: Sequence[bytes], signer: Signer) -> Iterator[bytes]:
    """Yield the lines of a file."""
    header = {"format": FORMAT, "station": signer.pin.hex(), "name": signer.name, "count": len(records)}
    yield _line(header)
    for record in records:
        yield _line({"record": _text(record), "signature": _text(signer.sign(record))})


def _line(body: dict[str, object]) -> bytes:
    return json.dumps(body, ensure_ascii=False).encode() + b"\n"


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def read(file: BinaryIO) -> Iterator[tuple[int, Item]]:
    """Yield number (from 1) and content of every line that is not blank; the first one is a Header.

    After MAX_LINES, or MAX_OTHERS that are no records, a Bad one says that the rest was not read. Raises FormatError or
    IncompatibleError for what is no such file.
    """
    pin: bytes | None = None
    others = 0
    for number, line in _lines(file):
        if isinstance(line, FormatError):
            found: Item = Bad(line)
        else:
            found = _item(line, pin)
        if pin is None and isinstance(found, Bad) and isinstance(found.error, IncompatibleError):
            raise found.error
        if pin is None and not isinstance(found, Header):
            raise FormatError(
                "this is no file of enrolment records: its first line names no station",
                hint="edgeseal station carry makes one",
            )
        if isinstance(found, Header):
            pin = found.pin
        others += not isinstance(found, SignedRecord)
        if number > MAX_LINES or others > MAX_OTHERS:
            yield number, Bad(_too_much(number))
            return
        yield number, found
    if pin is None:
        raise FormatError("this file is empty", hint="edgeseal station carry makes one")


def _too_much(number: int) -> FormatError:
    what = f"more than {MAX_LINES} lines" if number > MAX_LINES else f"more than {MAX_OTHERS} lines are no records"
    return FormatError(f"{what}; the rest was not read", hint="carry the records again, or in several files")


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes | FormatError]]:
    """Yield lines, never holding more than MAX_LINE of one."""
    for number in itertools.count(1):
        line = file.readline(MAX_LINE + 1)
        if not line:
            return
        if len(line) > MAX_LINE:
            while line and not line.endswith(b"\n"):
                line = file.readline(MAX_LINE)
            yield number, FormatError(f"a line of more than {MAX_LINE} bytes; no record is as long")
        elif line.strip() or number > MAX_LINES:
            yield number, line


def _item(line: bytes, pin: bytes | None) -> Item:
    try:
        if said := bytes(_decode(line, _Any).format):
            return _header(line, said)
        body = _decode(line, _Record)
    except (FormatError, IncompatibleError) as e:
        return Bad(e)
    return SignedRecord(body.record, pin or b"", body.signature)


def _header(line: bytes, said: bytes) -> Header:
    if said != json.dumps(FORMAT).encode():
        raise IncompatibleError(
            "these enrolment records are of another format than this version reads",
            hint=f"this version reads {FORMAT}",
        )
    header = _decode(line, _Header)
    return Header(bytes.fromhex(header.station), header.name, header.count)


def _decode(line: bytes, schema: type[_S]) -> _S:
    try:
        return msgspec.json.decode(line, type=schema)
    except msgspec.ValidationError as e:
        raise FormatError(f"no enrolment record: {e}") from e
    except (msgspec.DecodeError, ValueError, RecursionError) as e:
        raise FormatError("it is not JSON: was the file cut off?") from e
