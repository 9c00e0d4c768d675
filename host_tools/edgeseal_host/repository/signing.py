"""Signing what is staged: who may, who has, and what changes, recomputed from the files that are signed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from securesystemslib.exceptions import UnverifiedSignatureError
from tuf.api.metadata import Metadata, Root, Targets

from edgeseal.errors import NotAuthorisedError, RefusedError, RollbackError, UsageError
from edgeseal_host.repository import metadata
from edgeseal_host.repository.selection import select
from edgeseal_host.repository.verify import check_model_role, check_root, check_targets

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from securesystemslib.signer import Key, Signer
    from tuf.api.metadata import DelegatedRole, TargetFile

    from edgeseal_host.repository.layout import RepositoryDirectory
    from edgeseal_host.repository.verify import Verified


@dataclass(frozen=True, slots=True)
class Standing:
    """Where one staged role stands for one of its delegators: root is signed for the old and for the new root."""

    role: str
    version: int
    by: str
    threshold: int
    signed: tuple[str, ...]
    open: tuple[str, ...]

    @property
    def done(self) -> bool:
        """Whether enough have signed."""
        return len(self.signed) >= self.threshold


def standings(directory: RepositoryDirectory) -> list[Standing]:
    """Return where every staged role stands."""
    out = []
    for role, data in directory.staged().items():
        parsed = Metadata.from_bytes(data)
        for by, delegator in _delegators(directory, role):
            result = delegator.get_verification_result(role, parsed.signed_bytes, parsed.signatures)
            names = [tuple(sorted(metadata.key_name(k) for k in g.values())) for g in (result.signed, result.unsigned)]
            out.append(Standing(role, parsed.signed.version, by, result.threshold, *names))
    return out


def sign(
    directory: RepositoryDirectory,
    signer: Signer,
    *,
    only: str | None = None,
    seen: Mapping[str, bytes] | None = None,
) -> list[str]:
    """Sign every staged role that names this key (or only one role); return which.

    `seen` is what a person was shown: anything else is not signed. Raises NotAuthorisedError if no role names the key,
    UsageError if nothing is staged, RefusedError if what is staged may not be.
    """
    staged = directory.staged()
    done = signable(directory, signer.public_key, only=only)
    if seen is not None and any(staged.get(role) != seen.get(role) for role in {*done, "root", "targets"}):
        raise RefusedError("what is staged has changed since it was shown; nothing was signed", hint="sign again")
    for role in done:
        parsed = Metadata.from_bytes(staged[role])
        if not _has_signed(parsed, signer):
            parsed.sign(signer, append=True)
            directory.stage(role, parsed.to_bytes())
    return done


def signable(directory: RepositoryDirectory, key: Key, *, only: str | None = None) -> list[str]:
    """Return the staged roles that `key` may sign, each checked as devices will.

    A signature is a promise about the whole file, whoever wrote it: the directory goes from hand to hand. Raises as
    `sign` does.
    """
    staged = directory.staged()
    if not staged:
        raise UsageError("nothing is staged", hint="edgeseal repo stage, or edgeseal bundle publish")
    if only is not None and only not in staged:
        raise UsageError(f"{only} is not staged", hint=f"staged: {', '.join(staged)}")
    found = [role for role in staged if only in {None, role} and _may_sign(directory, role, key.keyid)]
    if not found:
        raise NotAuthorisedError(
            f"{metadata.key_name(key)} is a key of none of the staged roles ({', '.join(staged)})",
            hint="edgeseal repo status says who can sign; a key must be named by root or targets first",
        )
    for role in found:
        _check_staged(directory, role, staged[role])
    return found


def changes(directory: RepositoryDirectory, role: str, *, staged: Mapping[str, bytes] | None = None) -> list[str]:
    """Return what the staged version of a role changes, one line each, recomputed from both files."""
    data, before = (directory.staged() if staged is None else staged)[role], directory.current(role)
    new, old = _read(role, data), _read(role, before) if before else None
    lines = [f"{role} version {old.version if old else 0} -> {new.version}, until {new.expires:%Y-%m-%d}"]
    if isinstance(new, Root):
        lines += _root_changes(old if isinstance(old, Root) else None, new)
    if isinstance(new, Targets):
        lines += _targets_changes(old if isinstance(old, Targets) else None, new)
    return lines


def verify(directory: RepositoryDirectory) -> Verified:
    """Check what is staged and ready on top of what is published, as the server and every device will.

    Raises RefusedError saying what is missing if nothing is ready.
    """
    return select(directory).verified


def _check_staged(directory: RepositoryDirectory, role: str, data: bytes) -> None:
    """Raise RefusedError unless the staged version of a role is one that devices would accept, signatures apart."""
    new, before = _read(role, data), directory.current(role)
    if before is not None and before != data:
        had = _read(role, before).version
        if new.version <= had or (role == "root" and new.version != had + 1):
            raise RollbackError(
                f"staged {role} version {new.version} does not follow published version {had}",
                hint="somebody published before you: edgeseal repo stage DIR --discard, then stage the change again",
            )
    if isinstance(new, Root):
        check_root(new)
        check_spare_root_key(new)
    elif role == "targets":
        check_targets(new)
    else:
        delegated = check_targets(directory.next_targets())
        check_model_role(delegated[role], new)


def check_spare_root_key(root: Root) -> None:
    """Raise RefusedError if losing one root key would end the repository."""
    role = root.roles["root"]
    if role.threshold >= len(role.keyids):
        raise RefusedError(
            f"root {root.version} would need {role.threshold} of {len(role.keyids)} keys: one lost key ends it",
            hint="there must be more root keys than must sign: 2 of 3 is a good choice",
        )


def _read(role: str, data: bytes) -> Root | Targets:
    if role == "root":
        return metadata.read(data, Root, what="root.json").signed
    return metadata.read(data, Targets, what=f"{role}.json").signed


def _has_signed(parsed: Metadata[Any], signer: Signer) -> bool:
    """Whether this key's signature is there already: a second one would make other bytes of the same version.

    ML-DSA signs with fresh randomness, and a server that has accepted the first bytes refuses the second.
    """
    had = parsed.signatures.get(signer.public_key.keyid)
    if had is None:
        return False
    try:
        signer.public_key.verify_signature(had, parsed.signed_bytes)
    except UnverifiedSignatureError:
        return False
    return True


def _may_sign(directory: RepositoryDirectory, role: str, keyid: str) -> bool:
    for _, delegator in _delegators(directory, role):
        named = delegator.roles[role] if isinstance(delegator, Root) else _delegated(delegator, role)
        if named is not None and keyid in named.keyids:
            return True
    return False


def _delegated(targets: Targets, role: str) -> DelegatedRole | None:
    roles = targets.delegations.roles if targets.delegations else None
    return (roles or {}).get(role)


def _delegators(directory: RepositoryDirectory, role: str) -> Iterator[tuple[str, Root | Targets]]:
    """Yield who says which keys sign a role. A new root is signed for the root before it, and for itself."""
    if role.startswith("model-"):
        targets = directory.next_targets()
        if _delegated(targets, role) is not None:
            yield "targets", targets
        return
    before = directory.current("root")
    if role == "root" and before is not None:
        old = metadata.read(before, Root, what="root.json").signed
        yield f"root {old.version}", old
    new = directory.next_root()
    yield f"root {new.version}", new


def _root_changes(old: Root | None, new: Root) -> Iterator[str]:
    for role in metadata.TOP_LEVEL:
        had = {_who(old.keys, i) for i in old.roles[role].keyids} if old else set()
        has = {_who(new.keys, i) for i in new.roles[role].keyids}
        yield from (f"  {role}: + key of {who}" for who in sorted(has - had))
        yield from (f"  {role}: - key of {who}" for who in sorted(had - has))
        before = (old.roles[role].threshold, len(old.roles[role].keyids)) if old else None
        after = (new.roles[role].threshold, len(new.roles[role].keyids))
        if before != after:
            yield f"  {role}: {after[0]} of {after[1]} must sign"


def _targets_changes(old: Targets | None, new: Targets) -> Iterator[str]:
    had: Mapping[str, TargetFile] = old.targets if old else {}
    for path in sorted({*had, *new.targets}):
        if path not in new.targets:
            yield f"  - {path}"
        elif path not in had or had[path].hashes != new.targets[path].hashes:
            sign_ = "+" if path not in had else "~"
            sha256 = new.targets[path].hashes["sha256"]
            yield f"  {sign_} {path}: {new.targets[path].length} bytes, SHA-256 {sha256[:16]}…"
        elif had[path].custom != new.targets[path].custom:
            yield f"  ~ {path}: who may install it"
    before, after = _delegations(old), _delegations(new)
    for role in sorted({*before, *after}):
        if before.get(role) != after.get(role):
            yield f"  {role}: {after.get(role, 'signed by nobody: no longer delegated')}"
    if new.delegations and new.delegations.succinct_roles is not None:
        yield "  delegates everything to hash bins"


def _delegations(targets: Targets | None) -> dict[str, str]:
    """Say of each delegated role who signs it and what it may list, in full: all of that is being signed."""
    if targets is None or not targets.delegations:
        return {}
    keys = targets.delegations.keys
    return {name: _delegation(keys, role) for name, role in (targets.delegations.roles or {}).items()}


def _delegation(keys: Mapping[str, Key], role: DelegatedRole) -> str:
    who = ", ".join(_who(keys, i) for i in role.keyids) or "nobody"
    what = ", ".join(role.paths) if role.paths is not None else f"path hashes {role.path_hash_prefixes}"
    end = "terminating" if role.terminating else "NOT terminating"
    return f"{role.threshold} of {len(role.keyids)} must sign: {who}; may list {what}; {end}"


def _who(keys: Mapping[str, Key], keyid: str) -> str:
    """Name a key by what it calls itself, and by its id, which nobody can choose."""
    name = metadata.key_name(keys[keyid]) if keyid in keys else "missing"
    return f"{name} ({keyid[:12]}…)"
