"""Committed metadata read as plain JSON: versions, expiry and key sets at once, without importing tuf.

The files were verified before they were committed. What somebody *acts* on goes through `chain`, which verifies again;
this is for showing the state and for the floors.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import quote, unquote

from edgeseal.trust.floors import Floor, key_set
from edgeseal.trust.generations import COMPLETE

if TYPE_CHECKING:
    from collections.abc import Mapping

ISSUED: Final = "x-edgeseal-issued"  # Unix seconds at which a timestamp was signed
_SUFFIX: Final = ".json"
_TOP_LEVEL: Final = frozenset({"root", "timestamp", "snapshot", "targets"})


class RoleState(NamedTuple):
    """Version and expiry (Unix seconds) of one committed role."""

    version: int
    expires: int


def roles(files: Mapping[str, bytes]) -> dict[str, RoleState]:
    """Return the state of every role in a generation; files that cannot be read are left out."""
    out = {}
    for name in files:
        if "/" not in name and name.endswith(_SUFFIX) and (signed := _signed(files, name)):
            out[unquote(name.removesuffix(_SUFFIX))] = RoleState(signed["version"], _seconds(signed["expires"]))
    return out


def belongs_together(files: Mapping[str, bytes]) -> bool:
    """Whether the last refresh of this generation got to its end."""
    return bool(files) and not any(name.startswith(COMPLETE) for name in files) and "targets.json" in files


def version_floors(files: Mapping[str, bytes], before: Mapping[str, bytes], *, whole: bool) -> dict[str, Floor]:
    """Return the floors that a staged generation sets, bound to the key sets of its root.

    Which keys can push a version forward: snapshot lists the versions of targets and models, timestamp that of
    snapshot. A root's version never resets: roots form a chain. A role counts if it was verified under this root:
    because its file is new, because the keys are those of `before`, or because the refresh got to its end (`whole`,
    which covers the top-level roles). Anything else may be what the thief of a replaced key left behind.
    """
    sets, former = _key_sets(files), _key_sets(before)
    out = {}
    for role, state in roles(files).items():
        keys = sets.get(role, sets["other"])
        name = f"{quote(role, '')}.json"
        top = whole and role in _TOP_LEVEL
        if top or files[name] != before.get(name) or keys == former.get(role, former["other"]):
            out[role] = Floor(state.version, keys)
    return out


def provisioned_floors(root: bytes, versions: Mapping[str, int]) -> dict[str, Floor]:
    """Return the floors a manufacturing station gives with a root, bound to the key sets of that root."""
    sets = _key_sets({"root.json": root})
    return {role: Floor(version, sets.get(role, sets["other"])) for role, version in versions.items()}


def issued_floor(files: Mapping[str, bytes]) -> Floor:
    """Return the time that the timestamp vouches for, never beyond its own expiry."""
    signed = _signed(files, "timestamp.json")
    if not signed:
        return Floor(0, b"")
    issued = signed.get(ISSUED)
    if not isinstance(issued, int) or isinstance(issued, bool) or issued < 0:
        issued = 0
    return Floor(min(issued, _seconds(signed["expires"])), timestamp_keys(files))


def timestamp_keys(files: Mapping[str, bytes]) -> bytes:
    """Key set of the timestamp role; empty if there is no readable root."""
    return _key_sets(files)["timestamp"]


def _key_sets(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the key set that each role's floor is bound to; models go by "other"."""
    named = _signed(files, "root.json").get("roles")
    if named is None:
        return dict.fromkeys((*_TOP_LEVEL, "other"), b"")
    timestamp, snapshot = named["timestamp"]["keyids"], named["snapshot"]["keyids"]
    return {
        "root": bytes(32),
        "timestamp": key_set(timestamp),
        "snapshot": key_set(timestamp, snapshot),
        "targets": key_set(snapshot),
        "other": key_set(snapshot),
    }


def _signed(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """Signed part of a file; empty if it is missing or torn."""
    try:
        signed: dict[str, Any] = json.loads(files[name])["signed"]
        int(signed["version"]), _seconds(signed["expires"])
    except (KeyError, ValueError, TypeError, RecursionError):
        return {}
    return signed


def _seconds(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp())
