"""How a release asks to be run: the map `engine` of its manifest's requirements (docs/spec/bundle.md §7).

    {"threads": 1 to 64, "prepack": bool, "spin": bool, "providers": [name, …]}

Whoever unpacks a release leaves the map beside its files, so that the gate and what serves later open the model the
same way. A device may use less than it says (its cores, its owner's limit), never more.

Not here: what an engine makes of it (edgeseal.runtime.engine_onnx, engine_litert).
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from edgeseal.durable import write_atomic
from edgeseal.errors import FormatError, IncompatibleError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

KEY: Final = "engine"
FILE: Final = ".engine.json"
MAX_THREADS: Final = 64  # more than any board has; what an engine would reserve for each is bounded with it
MAX_PROVIDERS: Final = 8
LITERT_PROVIDERS: Final = ("xnnpack", "cpu")  # in every build of LiteRT; the usual one first
_MAX_FILE: Final = 4096

_Provider = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9-]{0,31}\Z")]


class EngineSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a release asks for. What it does not is None or empty and the engine's choice.

    `threads`: of one inference, else as many as the device has cores. `prepack`: let the engine keep a second copy of
    the weights in the order its kernels like. `spin`: let threads wait for their next piece of work without sleeping.
    `providers`: what may compute, most wanted first.
    """

    threads: Annotated[int, msgspec.Meta(ge=1, le=MAX_THREADS)] | None = None
    prepack: bool | None = None
    spin: bool | None = None
    providers: Annotated[tuple[_Provider, ...], msgspec.Meta(min_length=1, max_length=MAX_PROVIDERS)] = ()

    def threads_here(self, most: int) -> int:
        """Return the threads of one inference where `most` are allowed."""
        return min(self.threads or most, most)

    def provider_here(self, available: Sequence[str]) -> str:
        """Return the first wanted provider that is in `available`, else the first of those.

        Raises IncompatibleError if none of the wanted ones is available.
        """
        for name in self.providers or available:
            if name in available:
                return name
        raise IncompatibleError(
            f"the release wants to be computed by {' or '.join(self.providers)}; here is {', '.join(available)}",
            hint="install an engine that has it, or build the release with --provider cpu as well",
        )


def most_threads(limit: int = 0) -> int:
    """Return the most threads of one inference on this device; `limit` is its owner's (0: none).

    For who starts a process that loads: the process itself may be kept to fewer cores for a while (background).
    """
    cores = cores_here()
    return min(limit or cores, cores)


def cores_here() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def parse(requirements: Mapping[str, object]) -> EngineSettings:
    """Return the settings in a manifest's requirements.

    Raises FormatError for values out of bounds, IncompatibleError for a setting that this version does not know.
    """
    return EngineSettings() if KEY not in requirements else _convert(requirements[KEY])


def leave(directory: Path, requirements: Mapping[str, object]) -> None:
    """Write the settings of a release beside its files, if it has any.

    Raises FormatError if it brought a file of that name: its settings are in its signed manifest and nowhere else.
    """
    path = directory / FILE
    check_names([FILE] if os.path.lexists(path) else [])
    if KEY in requirements:
        parse(requirements)
        write_atomic(path, json.dumps(requirements[KEY]).encode("ascii"), mode=0o600)


def check_names(paths: Iterable[str]) -> None:
    """Raise FormatError if one of a release's files has the name that `leave` gives to its own."""
    if FILE in paths:
        raise FormatError(f"the release holds a file called {FILE}", hint="that name is the device's; rename the file")


def read(directory: Path) -> EngineSettings:
    """Return what `leave` left in a release's directory. Raises as `parse` does."""
    try:
        with (directory / FILE).open("rb") as f:
            data = f.read(_MAX_FILE + 1)
    except FileNotFoundError:
        return EngineSettings()
    if len(data) > _MAX_FILE:
        raise FormatError(f"{FILE} is longer than {_MAX_FILE} bytes")
    try:
        return _convert(json.loads(data))
    except (ValueError, RecursionError):
        raise FormatError(f"{FILE} is not JSON") from None


def _convert(value: object) -> EngineSettings:
    if not isinstance(value, dict):
        raise FormatError(f"requirements: {KEY!r} must be a map")
    known = EngineSettings.__struct_fields__
    if unknown := sorted(str(k) for k in value if k not in known):
        raise IncompatibleError(
            f"requirements: {KEY} has {unknown[0][:32]!r}; this version knows {', '.join(known)}",
            hint="update edgeseal on this machine",
        )
    try:
        settings = msgspec.convert(value, EngineSettings)
    except msgspec.ValidationError as e:
        raise FormatError(f"requirements: {KEY}: {e}") from e
    if nothing := [k for k, v in value.items() if v is None]:
        raise FormatError(f"requirements: {KEY}: {nothing[0]} is null; a setting that is not made is left out")
    if len(set(settings.providers)) != len(settings.providers):
        raise FormatError(f"requirements: {KEY}: the same provider is named twice")
    return settings
