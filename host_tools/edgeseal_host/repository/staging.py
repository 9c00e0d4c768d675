"""Changes to a repository, staged: each makes the next version of the roles it touches, unsigned.

Staging again before publication changes the same next version and drops its signatures: people sign what they saw.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tuf.api.metadata import DelegatedRole, Delegations, Metadata, Root, T, TargetFile, Targets

from edgeseal.errors import UsageError
from edgeseal.servers import FORMAT, TARGET_PATH, FleetServers
from edgeseal_host.repository import metadata
from edgeseal_host.repository.layout import digest
from edgeseal_host.repository.signing import check_spare_root_key

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from securesystemslib.signer import Key

    from edgeseal.manifest import Manifest
    from edgeseal_host.fleet.public import FleetPublic
    from edgeseal_host.repository.layout import RepositoryDirectory


def init(
    directory: RepositoryDirectory, *, roots: Sequence[Key], threshold: int, targets: Sequence[Key], fleet: FleetPublic
) -> None:
    """Stage version 1 of root and targets.

    Raises UsageError for fewer than two root keys to spare none, or a threshold that one lost key makes unreachable;
    RefusedError for a key that no device would accept.
    """
    metadata.check_keys(roots, schemes=metadata.OFFLINE_SCHEMES, role="root")
    metadata.check_keys(targets, schemes=metadata.OFFLINE_SCHEMES, role="targets")
    metadata.check_keys([fleet.snapshot], schemes=metadata.ONLINE_SCHEMES, role="snapshot")
    metadata.check_keys([fleet.timestamp], schemes=metadata.ONLINE_SCHEMES, role="timestamp")
    if len({k.keyid for k in roots}) != len(roots):
        raise UsageError("one root key is named twice")
    if not 1 < threshold < len(roots):
        raise UsageError(
            f"a threshold of {threshold} with {len(roots)} root keys",
            hint="at least two must sign, and losing one key must not end the repository: 2 of 3 is a good choice",
        )
    directory.create()
    root = Root(version=1, expires=metadata.now_utc() + metadata.LIFETIME["root"], consistent_snapshot=True)
    for role, keys, needed in (
        ("root", roots, threshold),
        ("targets", targets, 1),
        ("snapshot", [fleet.snapshot], 1),
        ("timestamp", [fleet.timestamp], 1),
    ):
        for key in keys:
            root.add_key(key, role)
        root.roles[role].threshold = needed
    directory.stage("root", Metadata(root).to_bytes())
    expires = metadata.now_utc() + metadata.LIFETIME["targets"]
    targets_ = Targets(version=1, expires=expires, delegations=Delegations({}, {}))
    directory.stage("targets", Metadata(targets_).to_bytes())
    stage_servers(directory, fleet, min_suite=1)


def stage_servers(directory: RepositoryDirectory, fleet: FleetPublic, *, min_suite: int) -> None:
    """List the fleet server's session keys, and name its online keys in root if they have changed."""
    data = FleetServers(FORMAT, min_suite, list(fleet.session)).to_bytes()
    targets = _edit(directory, "targets", Targets, metadata.LIFETIME["targets"])
    targets.signed.targets[TARGET_PATH] = TargetFile.from_data(TARGET_PATH, data, ["sha256"])
    directory.stage("targets", targets.to_bytes())
    directory.stage_file(TARGET_PATH, data)
    root = directory.next_root()
    online: tuple[tuple[metadata.TopLevel, Key], ...] = (("snapshot", fleet.snapshot), ("timestamp", fleet.timestamp))
    changed = [(role, key) for role, key in online if root.roles[role].keyids != [key.keyid]]
    if changed:
        new = _edit(directory, "root", Root, metadata.LIFETIME["root"])
        for role, key in changed:
            for keyid in list(new.signed.roles[role].keyids):
                new.signed.revoke_key(keyid, role)
            new.signed.add_key(key, role)
        directory.stage("root", new.to_bytes())


def stage_model(directory: RepositoryDirectory, model: str, keys: Sequence[Key]) -> None:
    """Delegate a model to its publishers' keys, or replace them; a new model's role starts empty."""
    name = metadata.role_of(model)
    metadata.check_keys(keys, schemes=metadata.OFFLINE_SCHEMES, role=name)
    targets = _edit(directory, "targets", Targets, metadata.LIFETIME["targets"])
    delegations = targets.signed.delegations or Delegations({}, {})
    roles = delegations.roles if delegations.roles is not None else {}
    roles[name] = DelegatedRole(name, [], 1, terminating=True, paths=[f"models/{model}/*"])
    delegations.roles = roles
    targets.signed.delegations = delegations
    for key in keys:
        targets.signed.add_key(key, name)
    used = {keyid for role in roles.values() for keyid in role.keyids}
    delegations.keys = {keyid: key for keyid, key in delegations.keys.items() if keyid in used}
    directory.stage("targets", targets.to_bytes())
    # Its metadata must be signed by the new keys: the next version of what is listed, also if nothing else changes.
    role = _edit(directory, name, Targets, metadata.MODEL_LIFETIME)
    directory.stage(name, role.to_bytes())


def stage_release(
    directory: RepositoryDirectory, manifest: Manifest, data: bytes, custom: dict[str, Any] | None = None
) -> str:
    """List a release; return its target path. `custom` adds to what devices read before they fetch anything.

    Raises UsageError if the model is not delegated, or the release number is taken by other content.
    """
    path, role = metadata.release_path(manifest.model, manifest.release), metadata.role_of(manifest.model)
    delegations = directory.next_targets().delegations
    if not delegations or role not in (delegations.roles or {}):
        raise UsageError(
            f"the repository does not know the model {manifest.model!r}",
            hint=f"edgeseal repo stage DIR --model {manifest.model} --publisher-key NAME, then sign and publish",
        )
    target = TargetFile.from_data(path, data, ["sha256"])
    about = {"v": 1, "name": manifest.model, "rel": manifest.release, "size": manifest.plain_size, **(custom or {})}
    target.unrecognized_fields["custom"] = {"edgeseal": about}
    had = directory.staged().get(role) or directory.current(role)
    there = metadata.read(had, Targets, what=f"{role}.json").signed.targets.get(path) if had else None
    if there is not None and there.hashes != target.hashes:
        raise UsageError(
            f"{path} is listed already with other content", hint="a release never changes; build the next number"
        )
    if there is None or there.custom != target.custom:
        edited = _edit(directory, role, Targets, metadata.MODEL_LIFETIME)
        edited.signed.targets[path] = target
        directory.stage(role, edited.to_bytes())
    if not directory.has_file(path, digest(data)):
        directory.stage_file(path, data)
    return path


def retire(directory: RepositoryDirectory, model: str, release: int) -> None:
    """Take a release off the list: it cannot be installed any more, and devices delete its key.

    Raises UsageError if it is not listed.
    """
    path, role = metadata.release_path(model, release), metadata.role_of(model)
    edited = _edit(directory, role, Targets, metadata.MODEL_LIFETIME)
    if edited.signed.targets.pop(path, None) is None:
        listed = ", ".join(sorted(edited.signed.targets)) or "nothing"
        raise UsageError(f"{path} is not listed", hint=f"listed: {listed}")
    directory.stage(role, edited.to_bytes())
    directory.unstage_file(path)  # there is one if it was never published


def renew(directory: RepositoryDirectory, role: str) -> None:
    """Stage the next version of a role with a new expiry and nothing else changed.

    Raises UsageError for a role that there is not, or that people do not sign.
    """
    if role in {"snapshot", "timestamp"}:
        raise UsageError(f"{role} is not signed by people", hint="the fleet server renews it by itself")
    delegations = directory.next_targets().delegations
    known = ["root", "targets", *sorted((delegations.roles if delegations else None) or {})]
    if role not in known:
        raise UsageError(f"there is no role {role!r}", hint=f"roles here: {', '.join(known)}")
    if role == "root":
        directory.stage(role, _edit(directory, role, Root, metadata.LIFETIME["root"]).to_bytes())
        return
    lifetime = metadata.LIFETIME["targets"] if role == "targets" else metadata.MODEL_LIFETIME
    directory.stage(role, _edit(directory, role, Targets, lifetime).to_bytes())


def replace_key(directory: RepositoryDirectory, role: str, old: Key, new: Key) -> None:
    """Stage a root that names `new` instead of `old` for `role` (root or targets).

    Raises UsageError if `old` is not a key of that role or `new` is one already, RefusedError if that would leave root
    without a key to spare.
    """
    edited = _edit(directory, "root", Root, metadata.LIFETIME["root"])
    _check_names(edited.signed, role, old)
    _check_new(edited.signed, role, new)
    edited.signed.revoke_key(old.keyid, role)
    edited.signed.add_key(new, role)
    _stage_keys(directory, edited, role, newly_signed=True)


def add_key(directory: RepositoryDirectory, role: str, key: Key, *, threshold: int | None = None) -> None:
    """Stage a root that names one key more for `role` (root or targets); `threshold`: how many must sign from then on.

    Raises UsageError if it is one already or the threshold is out of range, RefusedError for a key no device accepts or
    if root had no key to spare.
    """
    edited = _edit(directory, "root", Root, metadata.LIFETIME["root"])
    _check_new(edited.signed, role, key)
    edited.signed.add_key(key, role)
    raised = _set_threshold(edited.signed, role, threshold)
    _stage_keys(directory, edited, role, newly_signed=raised)


def remove_key(directory: RepositoryDirectory, role: str, key: Key, *, threshold: int | None = None) -> None:
    """Stage a root that does not name `key` for `role` any more; `threshold` is how many must sign from then on.

    Raises UsageError if it is none, or the threshold is out of range then; RefusedError if root had no key to spare.
    """
    edited = _edit(directory, "root", Root, metadata.LIFETIME["root"])
    _check_names(edited.signed, role, key)
    edited.signed.revoke_key(key.keyid, role)
    _set_threshold(edited.signed, role, threshold)
    _stage_keys(directory, edited, role, newly_signed=True)


def _check_names(root: Root, role: str, key: Key) -> None:
    if key.keyid not in root.roles[role].keyids:
        names = ", ".join(metadata.key_name(root.keys[i]) for i in root.roles[role].keyids)
        raise UsageError(f"{metadata.key_name(key)} is not a key of {role}", hint=f"its keys: {names}")


def _check_new(root: Root, role: str, key: Key) -> None:
    if key.keyid in root.roles[role].keyids:  # one key fewer, and as many that must sign
        raise UsageError(
            f"{metadata.key_name(key)} is a key of {role} already", hint="edgeseal key new NAME makes another key"
        )
    metadata.check_keys([key], schemes=metadata.OFFLINE_SCHEMES, role=role)


def _set_threshold(root: Root, role: str, threshold: int | None) -> bool:
    """Set how many must sign; whether that is more than before.

    Raises UsageError for a number that nobody could reach, or that leaves root to a single person.
    """
    named = root.roles[role]
    before, after = named.threshold, named.threshold if threshold is None else threshold
    lowest = 2 if role == "root" else 1
    if not lowest <= after <= len(named.keyids):
        raise UsageError(
            f"{after} of {len(named.keyids)} {role} keys must sign: the number must be {lowest} to {len(named.keyids)}",
            hint="--threshold N says how many must sign from then on; add a key before another one goes",
        )
    named.threshold = after
    return after > before


def _stage_keys(directory: RepositoryDirectory, edited: Metadata[Root], role: str, *, newly_signed: bool) -> None:
    check_spare_root_key(edited.signed)
    directory.stage("root", edited.to_bytes())
    if role == "targets" and newly_signed:
        renew(directory, "targets")  # what the old keys signed no longer counts, or not enough


def _edit(directory: RepositoryDirectory, role: str, kind: type[T], lifetime: timedelta) -> Metadata[T]:
    """Return the next version of a role without signatures, to change; it expires a lifetime from now."""
    staged, published = directory.staged().get(role), directory.current(role)
    data = staged or published
    if data is None:
        if kind is not Targets:
            raise UsageError(f"there is no {role} metadata", hint="edgeseal repo init makes it")
        fresh: Metadata[Any] = Metadata(Targets(version=1, expires=metadata.now_utc() + lifetime))
        return fresh
    edited = metadata.read(data, kind, what=f"{role}.json")
    if staged is None:
        edited.signed.version += 1
    edited.signed.expires = metadata.now_utc() + lifetime
    edited.signatures.clear()
    return edited
