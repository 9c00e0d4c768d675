"""A strict reader of tar archives from removable media: regular files and directories, nothing else.

The standard library's reader follows links, expands sparse files and trusts sizes in extended headers. Here a link, a
device, a sparse or oversized member, a path that leaves the archive or comes twice, or an extended header that would
change a name or size makes the whole archive unusable. Accepted: POSIX ustar, the plain part of GNU tar, and pax
headers that carry only times and owners.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, NamedTuple

from edgeseal.errors import FormatError

if TYPE_CHECKING:
    from pathlib import Path

_BLOCK: Final = 512
_MAX_MEMBERS: Final = 1_000_000  # a 1 TB disk of 1 MiB chunks
_MAX_PAX: Final = 65_536
_HARMLESS_PAX: Final = frozenset({"atime", "ctime", "mtime", "uid", "gid", "uname", "gname", "comment"})
_HINT: Final = "make it with: tar --format=ustar -cf FILE -C DIRECTORY ."


class Member(NamedTuple):
    """Where a file's bytes are in the archive."""

    offset: int
    size: int


def index(path: Path) -> dict[str, Member]:
    """Return the regular files of an archive by name.

    Raises FormatError (naming the member), OSError.
    """
    out: dict[str, Member] = {}
    with path.open("rb") as f:
        end = os.fstat(f.fileno()).st_size
        position = 0
        for _ in range(_MAX_MEMBERS):
            f.seek(position)
            header = f.read(_BLOCK)
            if not header.strip(b"\0"):
                return out
            name, kind, size = _header(header)
            data = position + _BLOCK
            position = data + -(-size // _BLOCK) * _BLOCK
            if position > end:
                raise FormatError(f"archive member {name!r} says {size} bytes, but the archive ends before", hint=_HINT)
            if kind == b"x":
                _check_pax(f.read(size) if size <= _MAX_PAX else b"")
            elif kind != b"5":
                _add(out, name, Member(data, size))
    raise FormatError(f"archive of more than {_MAX_MEMBERS} members")


def _add(out: dict[str, Member], name: str, member: Member) -> None:
    if name in out:
        raise FormatError(f"archive member {name!r} comes twice: which one counts is anybody's guess", hint=_HINT)
    out[name] = member


def _header(block: bytes) -> tuple[str, bytes, int]:
    if len(block) != _BLOCK or block[257:262] != b"ustar":
        raise FormatError("not a tar archive, or one that is cut short", hint=_HINT)
    if sum(block) - sum(block[148:156]) + 8 * 32 != _octal(block[148:156]):
        raise FormatError("tar header with a wrong checksum: the archive is damaged", hint="copy it again")
    kind = block[156:157]
    if kind not in {b"0", b"\0", b"5", b"x"}:
        raise FormatError(
            f"archive member of type {kind!r}: only plain files and directories are accepted (no links)", hint=_HINT
        )
    prefix = _text(block[345:500]) if block[257:263] == b"ustar\0" else ""  # GNU keeps times there
    name = _text(block[:100])
    return _clean(f"{prefix}/{name}" if prefix else name), kind, _octal(block[124:136])


def _clean(name: str) -> str:
    """Return the name without a leading `./`; refuse what leaves the archive."""
    parts = [p for p in name.split("/") if p != "."]
    if parts and not parts[-1]:
        parts.pop()  # a directory's final slash
    if ".." in parts or "" in parts:
        raise FormatError(f"archive member {name!r} does not stay inside the archive")
    return "/".join(parts)


def _octal(field: bytes) -> int:
    text = field.strip(b" \0")
    if not text or text.strip(b"01234567"):
        raise FormatError("tar header with a number that is not octal (sizes from 8 GiB are not accepted)", hint=_HINT)
    return int(text, 8)


def _text(field: bytes) -> str:
    try:
        return field.split(b"\0", 1)[0].decode("utf-8")
    except UnicodeDecodeError:
        raise FormatError("archive member whose name is not UTF-8") from None


def _check_pax(data: bytes) -> None:
    """Refuse extended headers that matter: `path`, `size`, `linkpath`, `GNU.sparse.*`."""
    while data:
        length, _, _ = data.partition(b" ")
        if not length.isdigit() or not 0 < int(length) <= len(data):
            raise FormatError("tar extended header is damaged or too long", hint=_HINT)
        record = data[len(length) + 1 : int(length)]
        key = record.partition(b"=")[0].decode("utf-8", "replace")
        if key not in _HARMLESS_PAX:
            raise FormatError(f"tar extended header sets {key!r}, which is not accepted", hint=_HINT)
        data = data[int(length) :]
