"""The batch file: what a run wants of every device. One TOML file, every mistake named by its key.

Paths in it are relative to the file. `EXAMPLE` is the commented file that `edgeseal station init` writes.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec

from edgeseal.errors import EdgesealError, UsageError
from edgeseal.provisioning import Order
from edgeseal.suite import SUITES
from edgeseal_host.bundle import read_bounded
from edgeseal_host.repository.metadata import MAX_ROOT
from edgeseal_host.station.names import Naming

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edgeseal_host.fleet.public import FleetPublic

MAX_BATCH: Final = 65_536

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Name = Annotated[str, msgspec.Meta(max_length=256)]
Version = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class What(_Section, frozen=True):
    """`[batch]`: which devices, and how their keys are made."""

    name: Text
    suite: int = 1
    entropy: Literal["require", "mix"] = "require"
    hardware: list[Text] = []
    group: Name = ""
    scan: bool = False


class Where(_Section, frozen=True):
    """`[fleet]`: whom the devices will trust."""

    public: Text
    root: Text
    floors: dict[str, Version] = {}


class Names(_Section, frozen=True):
    """`[names]`: what devices are called."""

    pattern: Text
    first: Annotated[int, msgspec.Meta(ge=0, le=9_999_999)] = 1


class _Document(_Section, frozen=True):
    batch: What
    fleet: Where
    names: Names
    groups: dict[str, Name] = {}


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch file that was read and whose files are there and good."""

    what: What
    naming: Naming
    fleet: FleetPublic
    root: bytes
    floors: dict[str, int]

    @property
    def name(self) -> str:
        """The batch's name."""
        return self.what.name

    def order(self, *, station: str, pin: bytes, now: int) -> Order:
        """Return what the dialogue wants; `now` becomes the devices' time floor."""
        what = self.what
        return Order(
            batch=what.name,
            suite=what.suite,
            policy=what.entropy,
            hardware=tuple(what.hardware),
            station=station,
            pin=pin,
            fleet_url=self.fleet.url,
            root=self.root,
            enrol=self.fleet.enrol,
            time_floor=now,
            floors=self.floors,
        )


def load(path: Path) -> Batch:
    """Read a batch file and the files it names.

    Raises UsageError that names the key.
    """
    try:
        data = read_bounded(path, MAX_BATCH)
    except FileNotFoundError:
        raise UsageError(f"there is no batch file {path}", hint="edgeseal station init writes an example") from None
    document = parse(data, name=path.name)
    what = document.batch
    if what.suite not in SUITES:
        known = " or ".join(str(n) for n in SUITES)
        raise UsageError(f"{path.name}: batch.suite: expected {known}, got {what.suite}")
    with _at(path.name, "names.pattern"):
        naming = Naming(document.names.pattern, what.name, document.names.first, what.group, document.groups)
    with _at(path.name, "fleet.public"):
        from edgeseal_host.fleet.public import FleetPublic

        fleet = FleetPublic.load(_beside(path, document.fleet.public))
    with _at(path.name, "fleet.root"):
        root, version = _trusted_root(_beside(path, document.fleet.root))
    floors = {"root": version, **document.fleet.floors}
    return Batch(what, naming, fleet, root, floors)


def parse(data: bytes, *, name: str) -> _Document:
    """Parse the text of a batch file called `name`.

    Raises UsageError that names the key and, for an unknown one, what it may have meant.
    """
    try:
        document = tomllib.loads(data.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as e:
        raise UsageError(f"{name} is not TOML: {e}", hint="texts stand in double quotes") from e
    try:
        return msgspec.convert(document, _Document, strict=True)
    except msgspec.ValidationError as e:
        raise _named(str(e), name) from None


@contextmanager
def _at(file: str, key: str) -> Iterator[None]:
    """Put file and key in front of whatever is wrong with a key's value."""
    try:
        yield
    except EdgesealError as e:
        raise UsageError(f"{file}: {key}: {e.message}", hint=e.hint) from e
    except OSError as e:
        raise UsageError(f"{file}: {key}: {e.strerror}: {e.filename}") from e


def _beside(batch: Path, name: str) -> Path:
    return batch.parent / name


def _trusted_root(path: Path) -> tuple[bytes, int]:
    """Return a TUF root that its own keys signed, and its version."""
    from edgeseal_host.repository.verify import trust_root

    data = read_bounded(path, MAX_ROOT)
    return data, trust_root(data).signed.version


_SECTIONS: Final[dict[str, type[msgspec.Struct]]] = {"batch": What, "fleet": Where, "names": Names}


def _named(reason: str, name: str) -> UsageError:
    """Turn msgspec's message into one with the dotted key in front."""
    text, _, place = reason.partition(" - at `$")
    key = re.sub(r"[`$]", "", place).lstrip(".")
    field = re.search(r"(?:unknown|required) field `(.*)`", text)
    if not field:
        return UsageError(f"{name}: {key or 'top level'}: {text}")
    dotted = f"{key}.{field[1]}" if key else field[1]
    if "required" in text:
        return UsageError(f"{name}: {dotted}: it must be there", hint="edgeseal station init writes an example")
    known = _SECTIONS[key].__struct_fields__ if key in _SECTIONS else _Document.__struct_fields__
    close = difflib.get_close_matches(field[1], known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known are: {', '.join(known)}"
    return UsageError(f"{name}: {dotted}: there is no such key", hint=hint)


EXAMPLE: Final = """\
# What `edgeseal station run --batch THIS_FILE` wants of every device. Paths are relative to this file.

[batch]
name = "2026-11-a"          # in every device's profile and in the journal
suite = 1                   # 1: hybrid X25519 + ML-KEM-768; 2: ML-KEM-1024 alone
entropy = "require"         # a healthy noise source must take part in every key; "mix": if there is one
hardware = []               # boards allowed, for example ["raspberrypi,4-model-b"]; empty: any
group = ""                  # the fleet's group for all of them
scan = false                # true: a device waits until its serial number was scanned

[fleet]
public = "public.json"      # of the fleet server: edgeseal fleet init wrote it
root = "1.root.json"        # the TUF root that devices will trust first

[fleet.floors]              # lowest versions of signed metadata a device accepts; root's own version is always in
# timestamp = 120
# snapshot = 120

[names]
pattern = "press-{number:04}"  # also {serial} and {batch}; a name is given once and never again
first = 1

[groups]                    # by hardware, where one group for all is not right
# "raspberrypi,5-model-b" = "presses-pi5"
"""
