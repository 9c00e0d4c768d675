"""API tokens: who may do what. Only argon2id hashes are kept, so a stolen database authorises nobody.

    edgeseal_<id>_<secret>     id: 8 hex digits, names the row; secret: 256 bits

Hashing is slow on purpose; a token that was verified once is remembered in memory by a keyed hash, and revocation is
looked up at every request.
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from edgeseal.errors import NotAuthorisedError, UsageError
from edgeseal_host.fleet.schema import token
from edgeseal_host.fleet.wire import SCOPES

if TYPE_CHECKING:
    from edgeseal_host.fleet.registry import SqlRegistry

_FORM: Final = re.compile(r"edgeseal_([0-9a-f]{8})_([A-Za-z0-9_-]{43})")
_REMEMBERED: Final = 1024


class Tokens:
    """All tokens of one server."""

    def __init__(self, registry: SqlRegistry) -> None:
        """Keep tokens in the registry's database."""
        self._registry = registry
        self._hasher = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)  # OWASP's argon2id minimum
        self._memory_key = os.urandom(32)
        self._verified: dict[str, bytes] = {}

    def create(self, scopes: tuple[str, ...], *, now: int) -> str:
        """Return a new token; it is shown this once.

        Raises UsageError for an unknown scope.
        """
        if not scopes or (unknown := sorted(set(scopes) - set(SCOPES))):
            raise UsageError(
                f"unknown scope {unknown[0]!r}" if scopes else "a token needs a scope", hint=", ".join(SCOPES)
            )
        name, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
        values = {
            "id": name,
            "scopes": " ".join(sorted(set(scopes))),
            "hash": self._hasher.hash(secret),
            "made_at": now,
        }
        with self._registry.durably() as connection:
            connection.execute(sa.insert(token).values(**values))
        return f"edgeseal_{name}_{secret}"

    def listing(self) -> list[dict[str, Any]]:
        """Return id, scopes, time and state of every token."""
        query = sa.select(token.c.id, token.c.scopes, token.c.made_at, token.c.revoked).order_by(token.c.made_at)
        with self._registry.read() as connection:
            return [{**row, "scopes": row["scopes"].split()} for row in connection.execute(query).mappings()]

    def revoke(self, name: str) -> None:
        """Refuse a token from now on.

        Raises NotAuthorisedError for an unknown id.
        """
        with self._registry.durably() as connection:
            if connection.execute(sa.update(token).where(token.c.id == name).values(revoked=True)).rowcount != 1:
                raise NotAuthorisedError(f"no token has the id {name[:20]!r}", hint="edgeseal fleet token list")

    def authorise(self, presented: str, scope: str) -> str:
        """Return the id of a token that is good for `scope` (or for everything: admin).

        Raises NotAuthorisedError, the same one for unknown, wrong and revoked.
        """
        found = _FORM.fullmatch(presented)
        row = None
        if found:
            query = sa.select(token.c.scopes, token.c.hash).where(token.c.id == found[1], sa.not_(token.c.revoked))
            with self._registry.read() as connection:
                row = connection.execute(query).one_or_none()
        if found is None or row is None or not self._right(found[1], found[2], row.hash):
            raise NotAuthorisedError(
                "this token is unknown, wrong or revoked", hint="edgeseal fleet token new makes one"
            )
        scopes = row.scopes.split()
        if scope not in scopes and "admin" not in scopes:
            raise NotAuthorisedError(
                f"token {found[1]} is for {', '.join(scopes)}; this needs {scope}",
                hint=f"edgeseal fleet token new --scope {scope}",
            )
        return found[1]

    def _right(self, name: str, secret: str, hash_: str) -> bool:
        short = hmac.digest(self._memory_key, f"{hash_} {secret}".encode(), "sha256")
        if hmac.compare_digest(self._verified.get(name, b""), short):
            return True
        try:
            self._hasher.verify(hash_, secret)
        except (VerificationError, InvalidHashError):
            return False
        if len(self._verified) >= _REMEMBERED:
            self._verified.clear()
        self._verified[name] = short
        return True
