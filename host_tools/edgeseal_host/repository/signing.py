"""Signing what is staged: who may, who has, and what changes, recomputed from the files that are signed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from securesystemslib.exceptions import UnverifiedSignatureError
from tuf.api.metadata import Metadata, Root, Targets

from edgeseal.errors import NotAuthorisedError, UsageError
from edgeseal_host.repository import metadata
from edgeseal_host.repository.verify import Published, verify_publication

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from securesystemslib.signer import Signer
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


def sign(directory: RepositoryDirectory, signer: Signer, *, only: str | None = None) -> list[str]:
    """Sign every staged role that names this key (or only one role); return which.

    Raises NotAuthorisedError if none does, UsageError if nothing is staged.
    """
    staged = directory.staged()
    if not staged:
        raise UsageError("nothing is staged", hint="edgeseal repo stage, or edgeseal bundle publish")
    if only is not None and only not in staged:
        raise UsageError(f"{only} is not staged", hint=f"staged: {', '.join(staged)}")
    done = []
    for role, data in staged.items():
        if only not in {None, role} or not _may_sign(directory, role, signer.public_key.keyid):
            continue
        parsed = Metadata.from_bytes(data)
        if not _has_signed(parsed, signer):
            parsed.sign(signer, append=True)
            directory.stage(role, parsed.to_bytes())
        done.append(role)
    if not done:
        raise NotAuthorisedError(
            f"{metadata.key_name(signer.public_key)} is a key of none of the staged roles ({', '.join(staged)})",
            hint="edgeseal repo status says who can sign; a key must be named by root or targets first",
        )
    return done


def changes(directory: RepositoryDirectory, role: str) -> list[str]:
    """Return what the staged version of a role changes, one line each, recomputed from both files."""
    data, before = directory.staged()[role], directory.current(role)
    new, old = _read(role, data), _read(role, before) if before else None
    lines = [f"{role} version {old.version if old else 0} -> {new.version}, until {new.expires:%Y-%m-%d}"]
    if isinstance(new, Root):
        lines += _root_changes(old if isinstance(old, Root) else None, new)
    if isinstance(new, Targets):
        lines += _targets_changes(old if isinstance(old, Targets) else None, new)
    return lines


def verify(directory: RepositoryDirectory) -> Verified:
    """Check what is staged on top of what is published, as the server and every device will.

    Raises RefusedError saying what is missing.
    """
    publication = directory.publication()
    current = directory.published()
    if current is None:
        staged_root = directory.staged().get("root")
        if staged_root is None:
            raise UsageError("nothing was published and no root is staged", hint="edgeseal repo init")
        current = Published(staged_root)
        from edgeseal_host.repository.verify import trust_root

        trust_root(staged_root)
        publication = replace(publication, roots=())
    else:
        staged = directory.staged().get("root")
        publication = replace(publication, roots=() if staged is None else (staged,))
    return verify_publication(current, publication, now=metadata.now_utc(), has_file=directory.has_file)


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
        had = set(old.roles[role].keyids) if old else set()
        has = set(new.roles[role].keyids)
        yield from (f"  {role}: + key of {metadata.key_name(new.keys[i])}" for i in sorted(has - had))
        if old:
            yield from (f"  {role}: - key of {metadata.key_name(old.keys[i])}" for i in sorted(had - has))
        threshold = old.roles[role].threshold if old else None
        if threshold != new.roles[role].threshold:
            yield f"  {role}: {new.roles[role].threshold} of {len(has)} must sign"


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
    before, after = _publishers(old), _publishers(new)
    for role in sorted({*before, *after}):
        if before.get(role) != after.get(role):
            yield f"  {role}: signed by {', '.join(after.get(role, ['nobody: no longer delegated']))}"


def _publishers(targets: Targets | None) -> dict[str, list[str]]:
    if targets is None or not targets.delegations:
        return {}
    keys = targets.delegations.keys
    return {n: [metadata.key_name(keys[i]) for i in r.keyids] for n, r in (targets.delegations.roles or {}).items()}
