"""The two ML-DSA-44 keys that sign snapshot and timestamp without a person: PKCS#8 files of mode 0600.

Root names the one key that may sign each of the two roles, so a key is replaced in steps: `prepare` makes the next one,
public.json announces it, people sign and publish a root that names it, and `settle` then destroys the former. Until
that root is published the former signs on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner, SSlibKey

from edgeseal.durable import fsync_directory, write_atomic
from edgeseal.errors import IntegrityError, NotAuthorisedError
from edgeseal_host.repository import metadata

if TYPE_CHECKING:
    from pathlib import Path

    from securesystemslib.signer import Key
    from tuf.api.metadata import Root

SCHEME: Final = "ml-dsa-44/1"
ROLES: Final[tuple[metadata.TopLevel, ...]] = ("snapshot", "timestamp")


class OnlineKeys:
    """The files `<role>.key` and, while a root that names it is awaited, `<role>.next.key`."""

    def __init__(self, directory: Path) -> None:
        """Keep keys in the server's directory of secrets; nothing is read yet."""
        self._directory = directory

    def create(self) -> None:
        """Make a new server's keys."""
        for role in ROLES:
            _create(self._current(role))

    def prepare(self, *, force: bool = False) -> None:
        """Make the next keys that are not there yet, or with `force` all of them anew."""
        for role in ROLES:
            if force or not self._next(role).exists():
                _create(self._next(role))

    def waiting(self) -> bool:
        """Whether next keys are there for both roles."""
        return all(self._next(role).exists() for role in ROLES)

    def announced(self, role: metadata.TopLevel) -> Key:
        """Return the public key that the next root shall name."""
        place = self._next(role) if self._next(role).exists() else self._current(role)
        return _load(place, role).public_key

    def signer(self, role: metadata.TopLevel, root: Root) -> CryptoSigner:
        """Return the key that `root` names for a role as the one that signs alone.

        Raises NotAuthorisedError if it names none of this server's, IntegrityError for a damaged file, OSError.
        """
        named = root.roles[role]
        for place in (self._current(role), self._next(role)):
            found = _load(place, role) if place.exists() else None
            if found is not None and found.public_key.keyid in named.keyids and named.threshold == 1:
                return found
        raise NotAuthorisedError(
            f"root version {root.version} does not name this {role} key as the one that signs alone",
            hint="edgeseal repo stage DIR --fleet public.json, sign the new root, publish it",
        )

    def settle(self, root: Root) -> list[str]:
        """Destroy keys that the published `root` has replaced; returns their roles. May be called at any time."""
        done: list[str] = []
        for role in ROLES:
            place = self._next(role)
            if place.exists() and _load(place, role).public_key.keyid in root.roles[role].keyids:
                place.replace(self._current(role))
                fsync_directory(self._directory)
                done.append(role)
        return done

    def _current(self, role: str) -> Path:
        return self._directory / f"{role}.key"

    def _next(self, role: str) -> Path:
        return self._directory / f"{role}.next.key"


def _create(path: Path) -> None:
    write_atomic(path, CryptoSigner.generate_mldsa(scheme=SCHEME).private_bytes, mode=0o600)


def _load(path: Path, role: str) -> CryptoSigner:
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
        public = SSlibKey.from_crypto(key.public_key(), scheme=SCHEME)
        signer = CryptoSigner(key, public)
    except (ValueError, TypeError) as e:
        # Not the reason: it could quote the file.
        raise IntegrityError(
            f"signing key {path.name} is damaged ({type(e).__name__})", hint="restore it from the backup of the secrets"
        ) from None
    signer.public_key.unrecognized_fields[metadata.NAME_FIELD] = f"fleet {role}"  # what people see in messages
    return signer
