"""Which staged roles can be published now: those with enough signatures that stand without the ones that wait.

Root waits for people for weeks; a model's release must not wait with it. The choice is checked as a whole like any
publication (`verify`), so nothing goes out that devices would refuse. Not here: who signs what (`signing`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

from tuf.api.metadata import Targets

from edgeseal.errors import RefusedError, UsageError
from edgeseal_host.repository import metadata
from edgeseal_host.repository.verify import Publication, Published, trust_root, verify_publication

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from edgeseal_host.repository.layout import RepositoryDirectory
    from edgeseal_host.repository.verify import Verified


@dataclass(frozen=True, slots=True)
class Selection:
    """What is published together, as it was checked, and the staged roles that wait."""

    publication: Publication
    verified: Verified
    waiting: tuple[str, ...]
    why: str = ""  # what is wrong with those that wait


def select(directory: RepositoryDirectory, *, or_nothing: bool = False) -> Selection:
    """Return the most of what is staged that can be published now.

    With `or_nothing` that may be no change at all. Raises RefusedError saying what is missing if nothing is ready.
    """
    staged = directory.staged()
    try:
        return _checked(directory, staged, staged)
    except RefusedError as e:
        everything = e
    # A model's role that is complete and yet refused is an error, not something to wait for: it is in every choice.
    for chosen in _choices(directory, staged):
        if chosen or (or_nothing and directory.current("root")):
            try:
                return replace(_checked(directory, staged, chosen), why=str(everything))
            except RefusedError:
                continue  # something in it rests on a role that is not
    raise everything


def _checked(directory: RepositoryDirectory, staged: Mapping[str, bytes], chosen: Mapping[str, bytes]) -> Selection:
    root, current = chosen.get("root"), directory.published()
    if current is None:
        if root is None:
            raise UsageError("nothing was published and no root is staged", hint="edgeseal repo init")
        trust_root(root)
        current = Published(root)
    roles = {role: data for role, data in chosen.items() if role.startswith("model-")}
    roots = () if root is None else (root,)
    publication = Publication(roots, chosen.get("targets"), roles, _files(directory, chosen))
    verified = verify_publication(current, publication, now=metadata.now_utc(), has_file=directory.has_file)
    return Selection(publication, verified, tuple(sorted(set(staged) - set(chosen))))


def _choices(directory: RepositoryDirectory, staged: Mapping[str, bytes]) -> Iterator[dict[str, bytes]]:
    """Yield what could go, the most first: with or without root and targets, and the models complete under those."""
    for with_root, with_targets in product((True, False), repeat=2):
        out = {role for role, wanted in (("root", with_root), ("targets", with_targets)) if not wanted}
        if not out <= set(staged):
            continue  # the same as another choice
        chosen = {role: data for role, data in staged.items() if role not in out and not role.startswith("model-")}
        data = chosen.get("targets") or directory.current("targets")
        if data is None or ("root" not in chosen and directory.current("root") is None):
            continue
        targets = metadata.read(data, Targets, what="targets.json").signed
        models = {role: data for role, data in staged.items() if role.startswith("model-")}
        yield chosen | {role: data for role, data in models.items() if _complete(targets, role, data)}


def _complete(targets: Targets, role: str, data: bytes) -> bool:
    """Whether enough of the keys that `targets` names have signed a model's role."""
    if targets.delegations is None or role not in (targets.delegations.roles or {}):
        return False
    parsed = metadata.read(data, Targets, what=f"{role}.json")
    return bool(targets.get_verification_result(role, parsed.signed_bytes, parsed.signatures).verified)


def _files(directory: RepositoryDirectory, chosen: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the staged files of the chosen roles, and published ones that are staged again; the others wait."""
    new: set[str] = set()
    listed: dict[str, str | None] = {}
    for role in {*directory.published_roles(), *chosen} - {"root"}:
        data = chosen.get(role) or directory.current(role)
        if data is None:
            continue
        targets = metadata.read(data, Targets, what=f"{role}.json").signed.targets
        listed |= {path: target.hashes.get("sha256") for path, target in targets.items()}
        new |= set(targets) if role in chosen else set()
    files = directory.staged_files()
    return {p: d for p, d in files.items() if p in new or listed.get(p) == hashlib.sha256(d).hexdigest()}
