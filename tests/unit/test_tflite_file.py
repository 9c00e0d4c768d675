"""The check of a TFLite file before an engine maps it: sound models pass, damaged ones are read or refused."""

from __future__ import annotations

import contextlib
import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="ai-edge-litert has no wheel for this platform")

from ai_edge_litert import schema_py_generated as schema
from hypothesis import given
from hypothesis import strategies as st
from tests.unit import tflite_models

from edgeseal.errors import FormatError
from edgeseal.runtime import tflite_file

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.unit
SOUND = {
    "affine": tflite_models.affine(bias=1.0),
    "without signature": tflite_models.affine(signed=False),
    "dense": tflite_models.dense_softmax(np.eye(3, 4, dtype=np.float32), np.zeros(3, np.float32)),
    "loop": tflite_models.endless(),
    "text": tflite_models.echo(tflite_models.TYPES["BYTES"]),
    "own operator": tflite_models.custom_operator("TFLite_Detection_PostProcess"),
}
BYTES = {name: model.to_bytes() for name, model in SOUND.items()}


def check(data: bytes) -> None:
    tflite_file.check_bytes(memoryview(data))


def reason(data: bytes) -> str:
    with pytest.raises(FormatError) as caught:
        check(data)
    return caught.value.message


@pytest.mark.parametrize("name", list(BYTES))
def test_sound_models_pass(name: str) -> None:
    check(BYTES[name])


def test_types_and_served_types_are_those_of_the_schema() -> None:
    numbers = {name: number for name, number in vars(schema.TensorType).items() if name.isupper()}
    assert [numbers[name] for name in tflite_file._TYPES] == list(range(len(tflite_file._TYPES)))
    assert set(tflite_models.TYPES.values()) == tflite_file.SERVED_TYPES
    assert tflite_file._CUSTOM == schema.BuiltinOperator.CUSTOM


@pytest.mark.parametrize("length", [0, 1, 7, 8, 11])
def test_files_that_are_too_short(length: int) -> None:
    assert "not a TFLite model" in reason(BYTES["affine"][:length])


@pytest.mark.parametrize("data", [b"\x08\x03\x12\x04onnx" * 9, b"PK\x03\x04" + bytes(60), bytes(64)])
def test_other_formats(data: bytes) -> None:
    assert "the identifier TFL3 is missing" in reason(data)


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "model.tflite").touch()
    with pytest.raises(FormatError, match=r"model\.tflite is empty"):
        tflite_file.check(tmp_path / "model.tflite")


def test_another_version_of_the_schema() -> None:
    model = tflite_models.affine()
    model.table.version = 2
    assert "schema version 2; engines read version 3" in reason(model.to_bytes())


def test_a_model_without_subgraphs() -> None:
    model = tflite_models.affine()
    model.table.subgraphs, model.table.signatureDefs = [], []
    assert "no subgraph" in reason(model.to_bytes())


def test_a_signature_of_a_subgraph_that_is_not_there() -> None:
    model = tflite_models.affine()
    model.table.signatureDefs[0].subgraphIndex = 5
    assert "a signature of subgraph 5; it has 1" in reason(model.to_bytes())


@pytest.mark.parametrize("index", [3, 4, -1, 2**31 - 1])
def test_a_graph_that_gives_a_tensor_it_does_not_have(index: int) -> None:
    model = tflite_models.affine(signed=False)
    model.table.subgraphs[0].outputs = [index + 1 if index == 3 else index]
    assert "its subgraph has 4" in reason(model.to_bytes())


@pytest.mark.parametrize(("offset", "size"), [(64, 10_000), (2**63, 2**63), (2**40, 1)])
def test_weights_behind_the_flatbuffer_that_lie_beyond_the_file(offset: int, size: int) -> None:
    model = tflite_models.affine()
    model.table.buffers[1].data = None
    model.table.buffers[1].offset, model.table.buffers[1].size = offset, size
    assert "weights lie beyond the end of the file" in reason(model.to_bytes())


def test_a_vector_longer_than_the_file() -> None:
    data = bytearray(BYTES["affine"])
    at = data.index(np.eye(4, dtype=np.float32).tobytes())
    data[at - 4 : at] = struct.pack("<I", 2**31)
    assert "a vector is longer than the file" in reason(bytes(data))


def test_more_tables_than_any_model_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tflite_file, "_MAX_TABLES", 5)
    assert "more than 5 tensors" in reason(BYTES["affine"])


def test_a_table_that_is_named_a_thousand_times_is_looked_at_once() -> None:
    # 1000 references to one subgraph of 1000 references to one tensor: a million if each were followed.
    model = tflite_models.affine(signed=False)
    graph = model.table.subgraphs[0]
    graph.tensors += [graph.tensors[0]] * 1000
    model.table.subgraphs += [schema.SubGraphT() for _ in range(1000)]
    data = bytearray(model.to_bytes())
    reader = tflite_file._Reader(memoryview(bytes(data)))
    root = reader.at("I", 0)
    start, count = reader._vector(root, 2, 4)
    first = reader.at("I", start)
    for i in range(count):
        struct.pack_into("<I", data, start + 4 * i, first - start - 4 * i)
    check(bytes(data))


# Anything -------------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(FormatError):
        check(data)
    with contextlib.suppress(FormatError):
        check(data[:4] + tflite_file.IDENTIFIER + data[4:])


@given(st.sampled_from(sorted(BYTES)), st.data())
def test_any_change_of_a_model_is_read_or_refused(name: str, draw: st.DataObject) -> None:
    data = bytearray(BYTES[name])
    for _ in range(draw.draw(st.integers(1, 3))):
        at = draw.draw(st.integers(0, len(data) - 4))
        value = draw.draw(
            st.sampled_from([0, 1, 4, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1]) | st.integers(0, 2**32 - 1)
        )
        struct.pack_into("<I", data, at, value)
    with contextlib.suppress(FormatError):
        check(bytes(data))


@given(st.sampled_from(sorted(BYTES)), st.data())
def test_any_truncation_is_read_or_refused(name: str, draw: st.DataObject) -> None:
    data = BYTES[name]
    with contextlib.suppress(FormatError):
        check(data[: draw.draw(st.integers(0, len(data)))])
