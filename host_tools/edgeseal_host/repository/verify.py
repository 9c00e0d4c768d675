"""Is this publication allowed on top of what is published? The same check for publisher, fleet server and doctor.

A `Publication` is unverified bytes; a `Verified` can only come from `verify_publication`. Nothing is read or written
here, and snapshot and timestamp are not part of it: they are signed afterwards (`online`).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

from tuf.api.metadata import Metadata, Root, Targets

from edgeseal.errors import FormatError, IntegrityError, RefusedError, RollbackError
from edgeseal_host.repository import metadata

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from tuf.api.metadata import DelegatedRole, Signed, TargetFile
    from tuf.api.metadata import Delegations as TufDelegations

MAX_ROOTS: Final = 256  # tuf's client follows as many rotations in one refresh


@dataclass(frozen=True)
class Publication:
    """New metadata and target files, as somebody sent them: nothing verified."""

    roots: tuple[bytes, ...] = ()
    targets: bytes | None = None
    roles: Mapping[str, bytes] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Body of POST /api/v1/metadata, without envelopes."""
        return {
            "roots": [_b64(r) for r in self.roots],
            "targets": None if self.targets is None else _b64(self.targets),
            "roles": {name: _b64(data) for name, data in self.roles.items()},
            "files": {path: _b64(data) for path, data in self.files.items()},
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`; other keys are the caller's business.

        Raises FormatError.
        """
        roots, targets = body.get("roots", []), body.get("targets")
        if not isinstance(roots, list) or len(roots) > MAX_ROOTS:
            raise FormatError(f"`roots` must be a list of at most {MAX_ROOTS} base64 strings")
        return cls(
            roots=tuple(_unb64(r, "roots") for r in roots),
            targets=None if targets is None else _unb64(targets, "targets"),
            roles=_unb64_map(body, "roles"),
            files=_unb64_map(body, "files"),
        )


@dataclass(frozen=True)
class Published:
    """Current state: what was verified before. `root` alone is where every repository starts."""

    root: bytes
    targets: bytes | None = None
    roles: Mapping[str, bytes] = field(default_factory=dict)
    snapshot: bytes | None = None
    timestamp: bytes | None = None


@dataclass(frozen=True)
class Verified:
    """The state after a publication, every signature and hash checked. Made by `verify_publication` only."""

    root: Metadata[Root]
    targets: Metadata[Targets]
    roles: Mapping[str, Metadata[Targets]]
    data: Mapping[str, bytes]  # role name -> the bytes as signed, for root, targets and every model role
    new_roots: Mapping[int, bytes]  # version -> bytes
    new_files: Mapping[str, bytes]  # target path -> bytes
    listed: Mapping[str, TargetFile]  # every target path that is installable afterwards
    changed: frozenset[str]  # role names whose metadata is new

    def files(self) -> dict[str, bytes]:
        """Relative path -> bytes of everything a repository directory or static server has to hold in addition."""
        out = {metadata.metadata_file("root", v): data for v, data in self.new_roots.items()}
        for role in self.changed - {"root"}:
            signed = self.targets.signed if role == "targets" else self.roles[role].signed
            out[metadata.metadata_file(role, signed.version)] = self.data[role]
        for path, data in self.new_files.items():
            out[metadata.target_file(path, self.listed[path].hashes["sha256"])] = data
        return out


def trust_root(data: bytes) -> Metadata[Root]:
    """Read the first root of a repository: signed by its own threshold. Where it came from is the caller's promise.

    Raises RefusedError (FormatError for anything but a root).
    """
    root = metadata.read(data, Root, what="root.json")
    check_root(root.signed)
    _check_signatures(root.signed, "root", root, by="its own keys")
    return root


def check_root(root: Root) -> None:
    """Raise RefusedError unless roles, keys and options of `root` are those of this design."""
    if root.consistent_snapshot is not True:
        raise RefusedError(f"root {root.version}: consistent_snapshot must be true")
    for name in metadata.TOP_LEVEL:
        role = root.roles[name]
        schemes = metadata.OFFLINE_SCHEMES if name in {"root", "targets"} else metadata.ONLINE_SCHEMES
        _check_role(root.keys, role.keyids, role.threshold, schemes=schemes, role=name)


def verify_publication(
    current: Published, publication: Publication, *, now: datetime, has_file: Callable[[str, str], bool]
) -> Verified:
    """Check everything a device will check, before any device can see it.

    `has_file(path, sha256)` says whether a listed target is already stored. Raises RefusedError (RollbackError,
    IntegrityError, FormatError) naming the role and what to do.
    """
    root, new_roots = _follow_roots(current.root, publication.roots)
    _check_expiry(root.signed, "root", now)
    targets, targets_data = _newer("targets", current.targets, publication.targets)
    _check_signatures(root.signed, "targets", targets, by="root")
    _check_expiry(targets.signed, "targets", now)
    delegated = check_targets(targets.signed)

    roles, data = _verify_roles(delegated, targets.signed, current, publication, now)
    listed = dict(targets.signed.targets)
    for role in roles.values():
        listed.update(role.signed.targets)
    _check_immutable(current, listed)
    new_files = _check_files(listed, publication.files, has_file)

    data |= {"root": _last(new_roots, current.root), "targets": targets_data}
    before = {"root": current.root, "targets": current.targets, **current.roles}
    changed = frozenset(role for role, now_bytes in data.items() if before.get(role) != now_bytes)
    return Verified(root, targets, roles, data, new_roots, new_files, listed, changed)


def check_targets(targets: Targets) -> dict[str, DelegatedRole]:
    """Return the model roles by name.

    Raises RefusedError unless the targets role lists only its own files and delegates only model roles.
    """
    for path, target in targets.targets.items():
        metadata.check_own_path(path)
        _check_target(path, target)
    delegations: TufDelegations | None = targets.delegations
    if delegations is None:
        return {}
    if delegations.succinct_roles is not None or delegations.roles is None:
        raise RefusedError("targets delegates to hash bins; expected one role per model")
    for name, role in delegations.roles.items():
        metadata.model_of(role)
        _check_role(delegations.keys, role.keyids, role.threshold, schemes=metadata.OFFLINE_SCHEMES, role=name)
    return dict(delegations.roles)


def check_model_role(role: DelegatedRole, signed: Targets) -> None:
    """Raise RefusedError unless a model's role lists only well-formed releases of that model."""
    model = metadata.model_of(role)
    if signed.delegations is not None:
        raise RefusedError(f"role {role.name} delegates further; a model's role must not")
    for path, target in signed.targets.items():
        owner, release = metadata.split_release_path(path)
        if owner != model:
            raise RefusedError(f"role {role.name} lists {path}, which belongs to another model")
        _check_target(path, target)
        _check_custom(path, target, release)


def _follow_roots(trusted: bytes, roots: tuple[bytes, ...]) -> tuple[Metadata[Root], dict[int, bytes]]:
    """Walk from the trusted root to the newest; each is signed by the one before it and by itself (TUF §5.3)."""
    current = metadata.read(trusted, Root, what="the trusted root")
    found: dict[int, bytes] = {}
    sent = [(data, metadata.read(data, Root, what="root.json")) for data in roots]
    reached = any(new.signed.version >= current.signed.version for _, new in sent)
    for data, new in sent:
        if new.signed.version == current.signed.version and new.signed == current.signed:
            continue  # sent again after an interruption
        if reached and new.signed.version < current.signed.version:
            continue  # sent for a server that may have missed it; this one has not, and never goes back
        if new.signed.version != current.signed.version + 1:
            raise RollbackError(
                f"root version {new.signed.version} cannot follow {current.signed.version}",
                hint="roots follow each other one by one; somebody may have published before you: fetch and restage",
            )
        check_root(new.signed)
        _check_signatures(current.signed, "root", new, by=f"root {current.signed.version}")
        _check_signatures(new.signed, "root", new, by="its own keys")
        found[new.signed.version] = data
        current = new
    return current, found


def _verify_roles(
    delegated: Mapping[str, DelegatedRole],
    targets: Targets,
    current: Published,
    publication: Publication,
    now: datetime,
) -> tuple[dict[str, Metadata[Targets]], dict[str, bytes]]:
    if unknown := sorted(set(publication.roles) - set(delegated)):
        raise RefusedError(f"targets does not delegate to {unknown[0]!r}; the targets role must be signed first")
    roles: dict[str, Metadata[Targets]] = {}
    data: dict[str, bytes] = {}
    for name, role in delegated.items():
        sent, had = publication.roles.get(name), current.roles.get(name)
        if sent is None and had is None:
            continue  # delegated, nothing listed yet
        roles[name], data[name] = _newer(name, had, sent)
        # Not sent again, and yet re-checked: the new targets may have taken this role's keys away.
        _check_signatures(targets, name, roles[name], by="targets")
        check_model_role(role, roles[name].signed)
        if sent is not None:  # an expired model stops its own installs, not the publication of others
            _check_expiry(roles[name].signed, name, now)
    return roles, data


def _newer(role: str, had: bytes | None, sent: bytes | None) -> tuple[Metadata[Targets], bytes]:
    """Pick what is current for `role` afterwards; never an older version, never another one under the same number."""
    if sent is None or sent == had:
        if had is None:
            raise RefusedError(f"no {role} metadata was ever published", hint="stage and sign it first")
        return metadata.read(had, Targets, what=f"{role}.json"), had
    new = metadata.read(sent, Targets, what=f"{role}.json")
    if had is not None:
        old = metadata.read(had, Targets, what=f"{role}.json")
        if new.signed.version <= old.signed.version:
            raise RollbackError(
                f"{role} version {new.signed.version} does not follow published version {old.signed.version}",
                hint="somebody published before you: fetch the repository and stage again",
            )
    return new, sent


def _check_signatures(delegator: Root | Targets, role: str, signed: Metadata[Any], *, by: str) -> None:
    result = delegator.get_verification_result(role, signed.signed_bytes, signed.signatures)
    if not result.verified:
        names = ", ".join(sorted(metadata.key_name(k) for k in result.signed.values())) or "nobody"
        could = ", ".join(sorted(metadata.key_name(k) for k in result.unsigned.values())) or "nobody"
        raise IntegrityError(
            f"{role} version {signed.signed.version} has {len(result.signed)} valid of {result.threshold} signatures "
            f"that {by} asks for (signed: {names})",
            hint=f"still able to sign: {could}",
        )


def _check_expiry(signed: Signed, role: str, now: datetime) -> None:
    if signed.is_expired(now):
        raise RefusedError(
            f"{role} version {signed.version} expired on {signed.expires:%Y-%m-%d}",
            hint=f"edgeseal repo stage DIR --renew {role}, then sign it",
        )


def _check_role(keys: Mapping[str, Any], ids: list[str], threshold: int, *, schemes: frozenset[str], role: str) -> None:
    if missing := [i for i in ids if i not in keys]:
        raise RefusedError(f"role {role} names key {missing[0][:12]}, which is not there")
    metadata.check_keys([keys[i] for i in ids], schemes=schemes, role=role)
    if not 1 <= threshold <= len(ids):
        raise RefusedError(f"role {role} asks for {threshold} signatures but has {len(ids)} keys")


def _check_target(path: str, target: TargetFile) -> None:
    if set(target.hashes) != {"sha256"} or target.path != path:
        raise RefusedError(f"target {path} must be listed with exactly its SHA-256")


def _check_custom(path: str, target: TargetFile, release: int) -> None:
    """`custom.edgeseal`: integers and strings, `rel` equal to the path's release (a device keeps its floor by it)."""
    custom = (target.custom or {}).get("edgeseal")
    if not isinstance(custom, dict) or custom.get("v") != 1:
        raise RefusedError(f'target {path} has no custom {{"edgeseal": {{"v": 1, …}}}}')
    if custom.get("rel") != release or isinstance(custom.get("rel"), bool):
        raise RefusedError(f"target {path} says release {custom.get('rel')!r} in its custom part")


def _check_immutable(current: Published, listed: Mapping[str, TargetFile]) -> None:
    """One release number means one content for ever: devices that installed it will not look again."""
    for role, data in current.roles.items():
        before = metadata.read(data, Targets, what=f"{role}.json").signed.targets
        for path, target in before.items():
            if path in listed and listed[path].hashes != target.hashes:
                raise RefusedError(
                    f"{path} is already published with other content", hint="publish it under the next release number"
                )


def _check_files(
    listed: Mapping[str, TargetFile], files: Mapping[str, bytes], has_file: Callable[[str, str], bool]
) -> dict[str, bytes]:
    if unlisted := sorted(set(files) - set(listed)):
        raise RefusedError(f"file {unlisted[0]!r} is not listed by any signed role")
    for path, data in files.items():
        target = listed[path]
        if len(data) != target.length or hashlib.sha256(data).hexdigest() != target.hashes["sha256"]:
            raise IntegrityError(f"file {path} is not the one that was signed: length or SHA-256 differs")
    for path, target in listed.items():
        if path not in files and not has_file(path, target.hashes["sha256"]):
            raise RefusedError(f"target {path} is listed, but its file was neither sent nor stored before")
    return dict(files)


def _last(roots: Mapping[int, bytes], otherwise: bytes) -> bytes:
    return roots[max(roots)] if roots else otherwise


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _unb64(text: object, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True) if isinstance(text, str) else _refuse(what)
    except (binascii.Error, ValueError) as e:
        raise FormatError(f"`{what}` must be base64: {e}") from e


def _unb64_map(body: Mapping[str, Any], what: str) -> dict[str, bytes]:
    value = body.get(what, {})
    if not isinstance(value, dict):
        raise FormatError(f"`{what}` must be an object of base64 strings")
    return {str(k): _unb64(v, f"{what}.{k}") for k, v in value.items()}


def _refuse(what: str) -> bytes:
    raise FormatError(f"`{what}` must be a base64 string")
