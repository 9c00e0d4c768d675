"""What the repository's metadata may be: role names, lifetimes, target paths, key algorithms.

Bytes become `tuf` objects here and nowhere else. Signatures are checked in `verify`.
"""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from cryptography.hazmat.primitives import serialization
from securesystemslib.formats import encode_canonical
from tuf.api.metadata import Metadata, Root, T, Timestamp
from tuf.api.serialization import DeserializationError

from edgeseal.errors import FormatError, RefusedError
from edgeseal.names import check_model_name, is_model_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tuf.api.metadata import DelegatedRole, Key

TopLevel: TypeAlias = Literal["root", "targets", "snapshot", "timestamp"]
TOP_LEVEL: Final[tuple[TopLevel, ...]] = ("root", "targets", "snapshot", "timestamp")
LIFETIME: Final = {
    "root": timedelta(days=5 * 365),
    "targets": timedelta(days=365),
    "snapshot": timedelta(days=7),
    "timestamp": timedelta(days=1),
}
MODEL_LIFETIME: Final = timedelta(days=180)
MAX_METADATA: Final = 5_000_000  # what tuf's client reads of a targets file at most
MAX_ROOT: Final = 512_000  # and of a root
NAME_FIELD: Final = "x-edgeseal-name"  # whose key this is; outside the key id, inside the signature

_RELEASE_PATH = re.compile(r"models/([^/]+)/([1-9][0-9]{0,18})\.cbor")
_OWN_PATH = re.compile(r"fleet/[a-z0-9][a-z0-9._-]{0,62}")  # what the targets role itself may list

# Offline keys outlive the devices they protect: category 3. Online keys are replaced in a day: category 2 will do.
OFFLINE_SCHEMES: Final = frozenset({"ml-dsa-65/1", "ml-dsa-87/1"})
ONLINE_SCHEMES: Final = OFFLINE_SCHEMES | {"ml-dsa-44/1"}


def now_utc() -> datetime:
    """Return the present to the second, as TUF writes times."""
    return datetime.now(UTC).replace(microsecond=0)


def read(data: bytes, kind: type[T], *, what: str) -> Metadata[T]:
    """Parse metadata of one kind; its signatures are still to be verified.

    Raises FormatError.
    """
    limit = MAX_ROOT if kind is Root else MAX_METADATA
    if len(data) > limit:
        raise FormatError(f"{what} is {len(data)} bytes; at most {limit} are allowed")
    try:
        metadata: Metadata[T] = Metadata.from_bytes(data)
    except (DeserializationError, RecursionError) as e:
        raise FormatError(f"{what} is not TUF metadata: {e.__cause__ or e}") from e
    if type(metadata.signed) is not kind:
        raise FormatError(f"{what} holds {metadata.signed.type} metadata; expected {kind.type}")
    return metadata


def role_of(model: str) -> str:
    """Name of the delegated role that lists a model's releases; the prefix keeps it apart from TUF's own roles."""
    return f"model-{check_model_name(model)}"


def model_of(role: DelegatedRole) -> str:
    """Model that a delegated role is about.

    Raises RefusedError unless the role is terminating and its one path is models/<model>/*.
    """
    if role.path_hash_prefixes is None and role.terminating and role.paths and len(role.paths) == 1:
        model = role.paths[0].removeprefix("models/").removesuffix("/*")
        if role.paths[0] == f"models/{model}/*" and is_model_name(model) and role.name == f"model-{model}":
            return model
    raise RefusedError(
        f"delegated role {role.name!r} does not have the shape of a model's role",
        hint="expected: name model-<model>, terminating, paths [models/<model>/*]",
    )


def release_path(model: str, release: int) -> str:
    """Target path of a release's manifest."""
    return f"models/{check_model_name(model)}/{release}.cbor"


def split_release_path(path: str) -> tuple[str, int]:
    """Inverse of `release_path`.

    Raises FormatError.
    """
    found = _RELEASE_PATH.fullmatch(path)
    if not found or not is_model_name(found[1]):
        raise FormatError(f"target path {path!r}; expected models/<model>/<release>.cbor")
    return found[1], int(found[2])


def check_own_path(path: str) -> None:
    """Raise RefusedError unless the targets role itself may list `path`; models belong to their own roles."""
    if not _OWN_PATH.fullmatch(path):
        raise RefusedError(f"the targets role lists {path!r}; it may list only fleet/…, models have roles of their own")


def metadata_file(role: str, version: int) -> str:
    """Path of a metadata file in a published repository (TUF consistent snapshots)."""
    return "metadata/timestamp.json" if role == Timestamp.type else f"metadata/{version}.{role}.json"


def target_file(path: str, sha256: str) -> str:
    """Path of a target in a published repository (TUF: prefix with the hash)."""
    directory, _, name = path.rpartition("/")
    return f"targets/{directory}/{sha256}.{name}"


def key_id(key: Key) -> str:
    """Return the key's own id: SHA-256 of its canonical JSON (TUF §4.2); names and other extras stay outside."""
    canonical = encode_canonical({"keytype": key.keytype, "scheme": key.scheme, "keyval": key.keyval})
    assert isinstance(canonical, str)  # noqa: S101 - without an output function it always returns text
    return hashlib.sha256(canonical.encode()).hexdigest()


def key_name(key: Key) -> str:
    """Whose key it is, for messages; a short id if nobody said."""
    name = key.unrecognized_fields.get(NAME_FIELD)
    return name if isinstance(name, str) and name.isprintable() else key.keyid[:12]


def check_keys(keys: Iterable[Key], *, schemes: frozenset[str], role: str) -> None:
    """Raise RefusedError unless each key is ML-DSA of an allowed strength and under its own id.

    One key in two encodings has two ids and would count twice towards a threshold: so the encoding must be the
    canonical one and the id its hash.
    """
    for key in keys:
        if key.keytype != "ml-dsa" or key.scheme not in schemes:
            raise RefusedError(
                f"role {role}: key {key_name(key)} is {key.keytype}/{key.scheme}; allowed: {', '.join(sorted(schemes))}"
            )
        if key.keyid != key_id(key) or not _canonical_pem(key.keyval.get("public")):
            raise RefusedError(f"role {role}: key {key_name(key)} is not under its own id: it could be counted twice")


def _canonical_pem(pem: object) -> bool:
    try:
        loaded = serialization.load_pem_public_key(pem.encode()) if isinstance(pem, str) else None
    except ValueError:
        return False
    if loaded is None:
        return False
    again = loaded.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return again.decode() == pem
