"""A fleet server's public keys and address: what a publisher needs. The file `public.json`; nothing secret.

The keys in it become trusted only when a root (snapshot, timestamp) and `fleet/servers.cbor` (session) signed offline
name them. Not here: the private halves (rings.py).
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self, cast

from securesystemslib.signer import Key

from edgeseal.durable import write_atomic
from edgeseal.errors import FormatError, IncompatibleError
from edgeseal.servers import ServerKey
from edgeseal.suite import PublicKey
from edgeseal_host.repository import metadata

if TYPE_CHECKING:
    from pathlib import Path

FORMAT: Final = 1
MAX_LENGTH: Final = 1_048_576


@dataclass(frozen=True)
class FleetPublic:
    """Session keys in order of preference (per suite: current, next); where to seal content keys and PSKs to."""

    url: str
    session: tuple[ServerKey, ...]
    wrap: PublicKey
    enrol: PublicKey
    snapshot: Key
    timestamp: Key

    def to_json(self) -> dict[str, Any]:
        """Body of public.json and of GET /api/v1/public."""
        return {
            "format": FORMAT,
            "url": self.url,
            "session": [{**_kem(k.suite, k.public), "not_after": k.not_after} for k in self.session],
            "wrap": _kem(self.wrap.suite.number, self.wrap.raw),
            "enrol": _kem(self.enrol.suite.number, self.enrol.raw),
            "snapshot": {"keyid": self.snapshot.keyid, **self.snapshot.to_dict()},
            "timestamp": {"keyid": self.timestamp.keyid, **self.timestamp.to_dict()},
        }

    @classmethod
    def from_json(cls, body: object) -> Self:
        """Inverse of `to_json`, with keys that load.

        Raises FormatError; IncompatibleError for a newer format or suite.
        """
        if not isinstance(body, dict):
            raise FormatError("public.json must be a JSON object")
        if type(body.get("format")) is not int:
            raise FormatError("public.json has no format number", hint="give the file that `edgeseal fleet init` wrote")
        if body["format"] != FORMAT:
            raise IncompatibleError(f"public.json has format {body['format']}; this version reads {FORMAT}")
        url, session = body.get("url"), body.get("session")
        if not isinstance(url, str) or not isinstance(session, list) or not 1 <= len(session) <= 16:  # noqa: PLR2004
            raise FormatError("public.json: expected `url` as text and `session` as a list of 1 to 16 keys")
        return cls(
            url=url,
            session=tuple(_session_key(item) for item in session),
            wrap=_public_key(body.get("wrap"), "wrap"),
            enrol=_public_key(body.get("enrol"), "enrol"),
            snapshot=_tuf_key(body.get("snapshot"), "snapshot"),
            timestamp=_tuf_key(body.get("timestamp"), "timestamp"),
        )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file.

        Raises FormatError, IncompatibleError, OSError.
        """
        data = path.read_bytes()
        if len(data) > MAX_LENGTH:
            raise FormatError(f"{path.name} is {len(data)} bytes; a fleet's public.json has at most {MAX_LENGTH}")
        try:
            return cls.from_json(json.loads(data))
        except (ValueError, RecursionError) as e:
            raise FormatError(f"{path.name} is not JSON: {e}", hint="fetch the fleet's public.json again") from e

    def save(self, path: Path) -> None:
        """Replace a file durably."""
        write_atomic(path, json.dumps(self.to_json(), indent=2).encode() + b"\n", mode=0o644)


def _kem(suite: int, raw: bytes) -> dict[str, Any]:
    return {"suite": suite, "public": base64.b64encode(raw).decode()}


def _public_key(value: object, what: str) -> PublicKey:
    suite = value.get("suite") if isinstance(value, dict) else None
    text = value.get("public") if isinstance(value, dict) else None
    if type(suite) is not int or not isinstance(text, str):
        raise FormatError(f"public.json: `{what}` must be {{suite, public}}")
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as e:
        raise FormatError(f"public.json: `{what}.public` must be base64") from e
    return PublicKey(suite, raw)


def _session_key(value: object) -> ServerKey:
    key = _public_key(value, "session")
    not_after = cast("dict[str, object]", value).get("not_after")
    if type(not_after) is not int or not 0 <= not_after < 2**63:
        raise FormatError("public.json: `session.not_after` must be a time in Unix seconds")
    return ServerKey(key.suite.number, key.raw, not_after)


def _tuf_key(value: object, role: str) -> Key:
    if not isinstance(value, dict):
        raise FormatError(f"public.json: `{role}` must be a TUF key")
    fields = dict(value)
    try:
        key = Key.from_dict(fields.pop("keyid"), fields)
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise FormatError(f"public.json: `{role}` is not a TUF key: {e}") from e
    metadata.check_keys([key], schemes=metadata.ONLINE_SCHEMES, role=role)
    return key
