"""What the publisher API's two sides agree on: paths, scopes, limits, and how an error crosses it."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from edgeseal import errors
from edgeseal.errors import (
    EdgesealError,
    IncompatibleError,
    NoSpaceError,
    NotAuthorisedError,
    RefusedError,
    TemporaryError,
    UsageError,
)
from edgeseal.manifest import CHUNK_MAX, MAX_TABLE_LENGTH

if TYPE_CHECKING:
    from collections.abc import Mapping

Kind: TypeAlias = Literal["chunks", "tables"]
KINDS: Final[tuple[Kind, ...]] = ("chunks", "tables")
SCOPES: Final = ("publish", "operate", "enrol", "admin")
MAX_OBJECT: Final[dict[str, int]] = {"chunks": CHUNK_MAX + 65_536, "tables": MAX_TABLE_LENGTH}
MAX_JSON: Final = 48 * 2**20  # a full targets file of 5 MB and hundreds of manifests, in base64
MAX_SMALL_JSON: Final = 65_536
MAX_NAMES: Final = 4096  # of one question which objects are missing
MAX_MISSING_JSON: Final = 512 * 1024
OFFSET_HEADER: Final = "Upload-Offset"
LENGTH_HEADER: Final = "Upload-Length"

_STATUS: Final[dict[type[EdgesealError], int]] = {
    UsageError: 400,
    NoSpaceError: 507,
    NotAuthorisedError: 403,
    TemporaryError: 503,
    IncompatibleError: 409,
    RefusedError: 422,
}
_BY_NAME: Final = {
    name: kind for name, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, EdgesealError)
}
_BY_EXIT_CODE: Final[dict[object, type[EdgesealError]]] = {
    2: UsageError,
    3: RefusedError,
    4: NotAuthorisedError,
    5: TemporaryError,
    6: IncompatibleError,
}


def status_of(error: EdgesealError) -> int:
    """HTTP status under which an error travels; the body says the rest."""
    return next((status for kind, status in _STATUS.items() if isinstance(error, kind)), 500)


def error_from(body: Mapping[str, object]) -> EdgesealError:
    """Inverse of `EdgesealError.as_dict`, for an error another process raised; unknown names keep their exit code."""
    kind = _BY_NAME.get(str(body.get("error"))) or _BY_EXIT_CODE.get(body.get("exit_code"), EdgesealError)
    hint = body.get("hint")
    return kind(str(body.get("message") or "the fleet server gave no reason"), hint=str(hint) if hint else None)
