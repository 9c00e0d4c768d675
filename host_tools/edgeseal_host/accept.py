"""Acceptance vectors on a workstation: read from .npz or .json, recorded by running the model (docs/spec/bundle.md §8).

    .npz    arrays inputs/<name> and outputs/<name>, each with one case per entry of its first axis;
            `settings`, a string of JSON, holds tolerances and budgets
    .json   {"cases": [{"inputs": {name: {"datatype", "shape", "data"}}, "outputs": {…}}], "atol": …, …}

Strings (BYTES) exist in JSON only: numpy would store them as pickles, and a pickle is a program.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec
import numpy as np

from edgeseal.errors import FormatError, UsageError
from edgeseal.runtime import oip
from edgeseal.runtime.vectors import MAX_CASES, VERSION, Tensor, Vectors, parse

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from edgeseal_host.sources import Source

Array: TypeAlias = "NDArray[np.generic]"
Side: TypeAlias = "dict[str, Tensor]"

SETTINGS: Final = ("atol", "rtol", "top1", "warmup", "latency_ms", "memory_mb")
_NAMES: Final = {dtype: name for name, dtype in oip.DTYPES.items()}
_MAX_FILE: Final = 256 * 2**20  # vectors travel with every release; a few samples are enough


def read(path: Path) -> Vectors:
    """Return the vectors in a file.

    Raises FormatError naming what is wrong with it, UsageError for another kind of file.
    """
    cases, settings = read_cases(path)
    return _checked([{"inputs": i, "outputs": o} for i, o in cases], settings, path.name)


def read_cases(path: Path) -> tuple[list[tuple[Side, Side]], dict[str, Any]]:
    """Return inputs and outputs (maybe none) of each case, and the settings. Raises as `read` does."""
    if path.stat().st_size > _MAX_FILE:
        raise FormatError(f"{path.name} is larger than {_MAX_FILE // 2**20} MiB; a few samples are enough")
    if path.suffix == ".npz":
        return _from_npz(path)
    if path.suffix == ".json":
        return _from_json(path)
    raise UsageError(f"{path.name} is neither .npz nor .json")


def record(directory: Path, cases: Sequence[tuple[Side, Side]], settings: Mapping[str, Any]) -> Vectors:
    """Run the model of a release's directory on the inputs of `cases` and return what it answered as vectors.

    Raises FormatError if the model does not take them, or answers values that are not finite.
    """
    from edgeseal.runtime import engine

    model = engine.load(directory)
    datatypes = {s.name: s.datatype for s in model.outputs}
    recorded = []
    for number, (inputs, _) in enumerate(cases, 1):
        if unknown := sorted(inputs.keys() ^ {s.name for s in model.inputs}):
            has = ", ".join(s.name for s in model.inputs)
            raise FormatError(f"case {number}: input {unknown[0]!r} is not in both; the model has {has}")
        values = {n: oip.from_raw(t.datatype, t.shape, t.data, n) for n, t in inputs.items()}
        outputs = {}
        for name, value in model.infer(values, list(datatypes)).items():
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise FormatError(f"case {number}: the model answers NaN or infinite values in {name!r}")
            outputs[name] = Tensor(datatypes[name], list(value.shape), oip.to_raw(datatypes[name], value))
        recorded.append({"inputs": dict(inputs), "outputs": outputs})
    return _checked(recorded, settings, "the recording")


def lay_out(sources: Sequence[Source], directory: Path) -> None:
    """Put the files of a release into `directory` as a device has them: linked where the disk allows, else copied."""
    for source in sources:
        place = directory / source.name
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            place.hardlink_to(source.path.resolve())
        except OSError:
            shutil.copyfile(source.path, place)


def to_table(vectors: Vectors) -> object:
    """Return the vectors as the sealed table holds them."""
    return _builtins(vectors)


def write(vectors: Vectors, path: Path) -> None:
    """Write a .json file, every number in full. Raises OSError."""
    document = {
        "cases": [
            {side: {n: _json_tensor(t) for n, t in getattr(case, side).items()} for side in ("inputs", "outputs")}
            for case in vectors.cases
        ],
        **{name: getattr(vectors, name) for name in SETTINGS},
    }
    path.write_text(json.dumps(document) + "\n", encoding="utf-8")


def describe(tests: object) -> dict[str, object] | None:
    """Return what `bundle inspect` shows of a table's vectors; never the values."""
    vectors = parse(tests)
    if vectors is None:
        return None
    first = vectors.cases[0]
    return {
        "cases": len(vectors.cases),
        "inputs": {n: [t.datatype, t.shape] for n, t in first.inputs.items()},
        "outputs": {n: [t.datatype, t.shape] for n, t in first.outputs.items()},
        **{name: getattr(vectors, name) for name in SETTINGS},
    }


def _checked(cases: Sequence[Mapping[str, Side]], settings: Mapping[str, Any], what: str) -> Vectors:
    if not 0 < len(cases) <= MAX_CASES:
        raise FormatError(f"{what} has {len(cases)} cases; 1 to {MAX_CASES} are possible")
    if unknown := sorted(settings.keys() - set(SETTINGS)):
        raise FormatError(f"{what}: unknown setting {unknown[0]!r}; there are {', '.join(SETTINGS)}")
    vectors = parse({"v": VERSION, "cases": [_builtins(case) for case in cases], **settings})
    assert vectors is not None  # noqa: S101 - only None gives None
    return vectors


def _builtins(value: object) -> Any:  # noqa: ANN401 - whatever CBOR carries
    return msgspec.to_builtins(value, builtin_types=(bytes,))


# .npz ----------------------------------------------------------------------------------------------------------------


def _from_npz(path: Path) -> tuple[list[tuple[Side, Side]], dict[str, Any]]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except (ValueError, OSError, zipfile.BadZipFile, EOFError) as e:
        raise FormatError(f"{path.name} is not an .npz of plain arrays: {e}") from None
    settings = _settings(found.pop("settings", None), path.name)
    sides: dict[str, dict[str, Array]] = {"inputs": {}, "outputs": {}}
    for key, value in found.items():
        side, _, name = key.partition("/")
        if side not in sides or not name:
            raise FormatError(f"{path.name}: array {key!r}; expected inputs/<name>, outputs/<name> or settings")
        sides[side][name] = value
    counts = {key: value.shape[0] if value.ndim else 0 for key, value in found.items()}
    if not sides["inputs"] or len(set(counts.values())) != 1:
        raise FormatError(f"{path.name}: the first axis counts cases and must be the same everywhere: {counts}")
    cases = [
        (_cut(sides["inputs"], number, path.name), _cut(sides["outputs"], number, path.name))
        for number in range(next(iter(counts.values())))
    ]
    return cases, settings


def _settings(value: Array | None, name: str) -> dict[str, Any]:
    if value is None:
        return {}
    try:
        settings = json.loads(str(value[()]))
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise FormatError(f"{name}: `settings` must be a string with a JSON object")
    return settings


def _cut(arrays: Mapping[str, Array], number: int, file: str) -> Side:
    return {name: _tensor(name, value[number], file) for name, value in arrays.items()}


def _tensor(name: str, value: Array, file: str) -> Tensor:
    datatype = _NAMES.get(value.dtype.newbyteorder("<") if value.dtype.itemsize > 1 else value.dtype)
    if datatype is None:
        raise FormatError(f"{file}: {name!r} is of type {value.dtype}; known are {', '.join(oip.DTYPES)}")
    return Tensor(datatype, list(value.shape), oip.to_raw(datatype, np.asarray(value)))


# .json ---------------------------------------------------------------------------------------------------------------


def _from_json(path: Path) -> tuple[list[tuple[Side, Side]], dict[str, Any]]:
    try:
        document = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as e:
        raise FormatError(f"{path.name} is not JSON: {e}") from None
    if not isinstance(document, dict) or not isinstance(cases := document.pop("cases", None), list):
        raise FormatError(f"{path.name}: expected an object with a list `cases`")
    return [_json_case(case, f"{path.name}: case {n}") for n, case in enumerate(cases, 1)], document


def _json_case(case: object, where: str) -> tuple[Side, Side]:
    if not isinstance(case, dict) or not {"inputs"} <= case.keys() <= {"inputs", "outputs"}:
        raise FormatError(f"{where}: expected an object with `inputs` and `outputs`")
    return _json_side(case["inputs"], where), _json_side(case.get("outputs", {}), where)


def _json_side(side: object, where: str) -> Side:
    if not isinstance(side, dict):
        raise FormatError(f"{where}: inputs and outputs are objects, one member for each tensor")
    found = {}
    for name, item in side.items():
        if not isinstance(item, dict) or item.keys() != {"datatype", "shape", "data"}:
            raise FormatError(f"{where}: {name!r} needs exactly `datatype`, `shape` and `data`")
        datatype, shape = item["datatype"], item["shape"]
        if not isinstance(datatype, str) or not isinstance(shape, list):
            raise FormatError(f"{where}: {name!r} needs a `datatype` like FP32 and a `shape` like [1, 3]")
        value = oip.from_json(datatype, shape, item["data"], name)
        found[name] = Tensor(datatype, list(value.shape), oip.to_raw(datatype, value))
    return found


def _json_tensor(tensor: Tensor) -> dict[str, object]:
    value = oip.from_raw(tensor.datatype, tensor.shape, tensor.data, "")
    return {"datatype": tensor.datatype, "shape": tensor.shape, "data": oip.to_json(tensor.datatype, value, "")}
