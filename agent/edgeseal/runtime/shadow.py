"""Shadow mode: a release answers copies of live requests beside the one that serves, and the answers are compared.

    shadow           this: what the agent orders, and how it follows what comes of it
    shadow_figures   how far two answers are apart; the figures that are kept
    shadow_copies    one copy of a request and its answer, from process to process
    shadow_worker    the process that runs the new release
    shadow_keeper    starts and ends that process, for the supervisor

The order is a link beside `current` and a small file (ModelRepository.shadow). Callers never wait for any of it: a copy
is made after the reply has left, and dropped where the other side is busy. Only figures are kept, never a tensor.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec

from edgeseal.errors import FormatError
from edgeseal.runtime import serve_status

if TYPE_CHECKING:
    from pathlib import Path

    from edgeseal.runtime.repository import ModelRepository

MAX_ORDER: Final = 4096
Compare = Literal["values", "top-1"]


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a release is tried. `id` tells one try from another; `fraction` of the answered requests are copied.

    An answer differs if an output is further from the old one than `tolerance` (relative, shadow_figures.Difference),
    or with `compare` "top-1" if a class does. `memory_mb` (MiB) is what the new release may use beside its own files.
    After `seconds` and a little nobody is thought to wait for it any more.
    """

    id: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}\Z")]
    fraction: Annotated[float, msgspec.Meta(gt=0, le=1)]
    seconds: Annotated[int, msgspec.Meta(ge=1, le=86_400)]
    compare: Compare
    tolerance: Annotated[float, msgspec.Meta(ge=0)]
    memory_mb: Annotated[int, msgspec.Meta(ge=1, le=2**20)]

    def to_bytes(self) -> bytes:
        """Return the file's text."""
        return msgspec.json.encode(self)

    @classmethod
    def from_bytes(cls, data: bytes) -> Order:
        """Inverse of `to_bytes`. Raises FormatError."""
        if len(data) > MAX_ORDER:
            raise FormatError(f"a shadow order of {len(data)} bytes; {MAX_ORDER} are the most")
        try:
            return msgspec.json.decode(data, type=cls)
        except msgspec.MsgspecError as e:
            raise FormatError(f"shadow order: {e}") from e


def new_id() -> str:
    """Return an id that no other order has."""
    return secrets.token_hex(8)


class Shadow:
    """One order, as the agent follows it."""

    def __init__(self, repository: ModelRepository, status_file: Path, model: str, release: int, order: Order) -> None:
        """Nothing is ordered before `begin`."""
        self._repository = repository
        self._status_file = status_file
        self._model = model
        self._release = release
        self._order = order

    def begin(self) -> None:
        """Give the order to whoever serves."""
        self._repository.shadow(self._model, self._release, self._order.to_bytes())

    def look(self) -> serve_status.ShadowStatus | None:
        """Return what edgeseal-serve says of this order, None while it says nothing."""
        status = serve_status.read(self._status_file)
        found = status.models.get(self._model) if status is not None else None
        return found.shadow if found is not None and found.shadow and found.shadow.id == self._order.id else None

    def end(self) -> None:
        """Take the order back."""
        self._repository.unshadow(self._model)
