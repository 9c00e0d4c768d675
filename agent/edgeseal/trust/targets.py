"""What verified metadata say about a file: its length, its hashes, which release it is. `trust` does the fetching."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from edgeseal.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tuf.api.metadata import TargetFile

_RELEASE: Final = re.compile(r"([1-9][0-9]{0,18})\.cbor")
_DIGITS: Final = {"sha256": 64, "sha512": 128}  # what TUF §4.5 names and what is common; others prove nothing here
_SIGN_AGAIN: Final = "the publisher must sign it again"


@dataclass(frozen=True)
class TargetInfo:
    """A listed target: verified metadata about a file, not the file. `hashes` are lower-case hex by algorithm."""

    path: str
    length: int
    hashes: Mapping[str, str]
    custom: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sha256(self) -> bytes:
        """Return the SHA-256 that a manifest is known by. Raises FormatError if it is not listed."""
        known = dict(self._known())
        if "sha256" not in known:
            raise FormatError(f"{self.path} is listed without its SHA-256", hint=_SIGN_AGAIN)
        return bytes.fromhex(known["sha256"])

    @property
    def name(self) -> str:
        """Return the file's name in a repository with consistent snapshots (TUF §5.7.3): `<hash>.<last part>`."""
        _, digest = self._known()[0]
        directory, slash, last = self.path.rpartition("/")
        return f"{directory}{slash}{digest}.{last}"

    def matches(self, data: bytes) -> bool:
        """Whether `data` is the listed file: its length and every listed hash of a kind we know (TUF §5.7.4).

        Raises FormatError if there is no hash of such a kind.
        """
        known = self._known()
        return len(data) == self.length and all(hashlib.new(kind, data).hexdigest() == hashed for kind, hashed in known)

    def _known(self) -> list[tuple[str, str]]:
        found = [(kind, self.hashes[kind]) for kind in _DIGITS if kind in self.hashes]
        if not found:
            raise FormatError(
                f"{self.path} is listed with the hashes {sorted(self.hashes)}; needed is one of {sorted(_DIGITS)}",
                hint=_SIGN_AGAIN,
            )
        for kind, digest in found:
            if not re.fullmatch(f"[0-9a-f]{{{_DIGITS[kind]}}}", digest):
                raise FormatError(f"{self.path} is listed with a {kind} that is not one", hint=_SIGN_AGAIN)
        return found

    @property
    def release(self) -> int:
        """Return the release number in the path of a manifest, 0 for other targets."""
        found = _RELEASE.fullmatch(self.path.rpartition("/")[2])
        return int(found[1]) if found else 0


def target_info(path: str, target: TargetFile) -> TargetInfo:
    """Return what tuf's object says, without tuf."""
    custom = target.custom if isinstance(target.custom, dict) else {}
    return TargetInfo(path, target.length, target.hashes, custom)
