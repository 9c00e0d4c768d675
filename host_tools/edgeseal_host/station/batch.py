"""The batch file: what a run wants of every device. One TOML file, every mistake named by its key.

Paths in it are relative to the file. `EXAMPLE` is the commented file that `edgeseal station init` writes.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec

from edgeseal.errors import EdgesealError, UsageError
from edgeseal.provisioning import Order
from edgeseal.suite import SUITES
from edgeseal_host.bundle import read_bounded
from edgeseal_host.repository.metadata import MAX_ROOT
from edgeseal_host.station.names import Naming

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from edgeseal_host.fleet.public import FleetPublic

MAX_BATCH: Final = 65_536

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Name = Annotated[str, msgspec.Meta(max_length=256)]
Role = Annotated[str, msgspec.Meta(pattern=r"^(?:root|targets|snapshot|timestamp|model-[a-z0-9][a-z0-9._-]{0,62})\Z")]
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
    floors: dict[Role, Version] = {}


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
    floors: dict[Role, int]

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
    with _at(path.name, "names.pattern"):
        naming = Naming(document.names.pattern, what.name, document.names.first, what.group, document.groups)
    with _at(path.name, "fleet.public"):
        from edgeseal_host.fleet.public import FleetPublic

        fleet = FleetPublic.load(_beside(path, document.fleet.public))
    with _at(path.name, "fleet.root"):
        root, version = _trusted_root(_beside(path, document.fleet.root))
    floors: dict[Role, int] = {**document.fleet.floors}
    if floors.get("root", version) > version:
        raise UsageError(
            f"{path.name}: fleet.floors.root: devices would refuse the batch's own root, which is version {version}",
            hint="give the newest root.json, or leave this key out",
        )
    floors["root"] = version
    return Batch(what, naming, fleet, root, floors)


def parse(data: bytes, *, name: str) -> _Document:
    """Parse the text of a batch file called `name`.

    Raises UsageError that names the key and, for an unknown one, what it may have meant.
    """
    try:
        document = tomllib.loads(data.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as e:
        raise UsageError(f"{name} is not TOML: {e}", hint="texts stand in double quotes") from e
    _check_texts(document, name)
    try:
        found = msgspec.convert(document, _Document, strict=True)
    except msgspec.ValidationError as e:
        raise _named(str(e), name, document) from None
    if found.batch.suite not in SUITES:
        known = " or ".join(str(n) for n in SUITES)
        raise UsageError(f"{name}: batch.suite: expected {known}, got {found.batch.suite}")
    return found


def _check_texts(document: dict[str, Any], name: str) -> None:
    """Refuse what cannot be shown on a terminal or printed on a label; devices refuse it too."""
    for key, value in _flat(document):
        if not key.isprintable() or (isinstance(value, str) and not value.isprintable()):
            shown = "".join(c if c.isprintable() else "?" for c in key)
            raise UsageError(f"{name}: {shown}: there is a character in it that cannot be printed")


def _flat(document: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """All values under their dotted keys."""
    for key, value in document.items():
        dotted = f"{before}{key}"
        if isinstance(value, dict):
            yield from _flat(value, f"{dotted}.")
        elif isinstance(value, list):
            yield from ((f"{dotted}[{i}]", item) for i, item in enumerate(value))
        yield dotted, value


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


# Sections whose keys are the user's own, and what each value must be: msgspec does not name the key at fault there.
_OWN_KEYS: Final[dict[str, tuple[Any, Any]]] = {"fleet.floors": (Role, Version), "groups": (str, Name)}
_WORDS: Final = {
    "str": "text",
    "int": "a whole number",
    "bool": "true or false",
    "array": "a list",
    "object": "a section",
}
_SINGLE: Final = {
    "float": "a decimal number",
    "date": "a date",
    "datetime": "a time",
    "time": "a time",
    "null": "nothing",
}


def _named(reason: str, name: str, document: Mapping[str, Any]) -> UsageError:
    """Turn msgspec's message into one with the dotted key in front, in words of whoever writes a batch file."""
    text, _, place = reason.partition(" - at `")
    key = re.sub(r"^(key` in `)?\$\.?", "", place.rstrip("`"))
    section = key.removesuffix("[...]").removesuffix(".keys()")
    if section in _OWN_KEYS:
        key, text = _at_fault(section, document, text)
    field = re.fullmatch(r"Object (?:contains unknown|missing required) field `(.*)`", text)
    if not field:
        return UsageError(f"{name}: {key or 'top level'}: {_in_words(text)}")
    dotted = f"{key}.{field[1]}" if key else field[1]
    if "required" in text:
        return UsageError(f"{name}: {dotted}: it must be there", hint="edgeseal station init writes an example")
    known = _SECTIONS[key].__struct_fields__ if key in _SECTIONS else _Document.__struct_fields__
    close = difflib.get_close_matches(field[1], known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known are: {', '.join(known)}"
    return UsageError(f"{name}: {dotted}: there is no such key", hint=hint)


def _at_fault(section: str, document: Mapping[str, Any], otherwise: str) -> tuple[str, str]:
    """Return the first key of a section that is wrong, and why."""
    found: Any = document
    for part in section.split("."):
        found = found[part]
    for key, value in found.items() if isinstance(found, dict) else ():
        for what, kind in zip((key, value), _OWN_KEYS[section], strict=True):
            try:
                msgspec.convert(what, kind, strict=True)
            except msgspec.ValidationError as e:
                return f"{section}.{key}", str(e)
    return section, otherwise


def _in_words(text: str) -> str:
    """Say `expected text, got a whole number` for "Expected `str`, got `int`", and so on."""
    if text.startswith("Invalid enum value"):
        return f'expected "require" or "mix", got {text.removeprefix("Invalid enum value ")}'
    if "matching regex" in text:
        return "there is no such role; expected root, targets, snapshot, timestamp or model-NAME"
    words = re.sub(r"`(\w+)`", lambda m: {**_WORDS, **_SINGLE}.get(m[1], m[1]), text)
    words = words.replace(" of length >= 1", " that is not empty").replace(" of length <= ", " of at most length ")
    return words[0].lower() + words[1:]


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
