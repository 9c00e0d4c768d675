"""Where files are cut: at tensors if they parse, by content if not, and never wrongly whatever the bytes are."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save as save_safetensors

from edgeseal.manifest import CHUNK_MAX
from edgeseal_host.cutting import SMALLEST_RUN, Gear, Run, cut, external_runs, tensors
from edgeseal_host.cutting import onnx as onnx_reader
from edgeseal_host.cutting.gear import limits
from edgeseal_host.cutting.runs import NotThisFormatError, sound

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgeseal_host.cutting import Piece

pytestmark = pytest.mark.unit

FS = bytes(range(32))
GEAR = Gear(FS)
BIG = 300_000  # bytes of a tensor that gets its own run


def pieces(data: bytes, known: Sequence[Run] = ()) -> list[Piece]:
    """Cut, and hold every promise of `cut` against the result."""
    found = list(cut(data, GEAR, known=known))
    position = 0
    for piece in found:
        assert piece.offset == position
        assert 1 <= piece.length <= CHUNK_MAX
        assert piece.width in {1, 2, 4, 8}
        position += piece.length
    assert position == len(data)
    return found


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def onnx_model(weights: dict[str, NDArray[Any]]) -> bytes:
    initializers = [numpy_helper.from_array(w, n) for n, w in weights.items()]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [], [], initializers)
    data: bytes = helper.make_model(graph).SerializeToString()
    return data


def starts(data: bytes, content: bytes) -> int:
    place = data.find(content)
    assert place >= 0
    return place


# Tensors are found --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "width"),
    [("float64", 8), ("float32", 4), ("float16", 2), ("int64", 8), ("int32", 4), ("int8", 1), ("uint8", 1)],
)
@pytest.mark.parametrize("kind", ["onnx", "safetensors"])
def test_every_large_tensor_starts_a_piece_of_its_width(kind: str, dtype: str, width: int) -> None:
    weights = {n: np.frombuffer(rng(i).bytes(BIG), dtype="u1").view(dtype) for i, n in enumerate("abc")}
    data = onnx_model(weights) if kind == "onnx" else save_safetensors(weights)
    name, runs = tensors(data)
    assert name == kind
    assert len(runs) == 3
    found = {(p.offset, p.length, p.width) for p in pieces(data)}
    for w in weights.values():
        assert (starts(data, w.tobytes()), BIG, width) in found


def test_tensor_longer_than_a_chunk_is_cut_from_its_own_start() -> None:
    weight = np.frombuffer(rng().bytes(2 * CHUNK_MAX + 4096), dtype="f4")
    data = onnx_model({"pad": np.frombuffer(rng(9).bytes(777), dtype="u1"), "w": weight})
    begin = starts(data, weight.tobytes())
    cuts = [(p.offset - begin, p.length) for p in pieces(data) if p.width == 4]
    assert cuts == [(0, CHUNK_MAX), (CHUNK_MAX, CHUNK_MAX), (2 * CHUNK_MAX, 4096)]


def test_small_tensors_stay_in_the_glue() -> None:
    weights = {str(i): rng(i).standard_normal(100).astype("f4") for i in range(50)}
    weights["big"] = np.frombuffer(rng().bytes(SMALLEST_RUN), dtype="f4")
    found = pieces(onnx_model(weights))
    assert [p.length for p in found if p.width == 4] == [SMALLEST_RUN]


def test_typed_data_of_onnx_is_found_as_well_as_raw() -> None:
    values = rng().standard_normal(BIG // 4).astype("f4")
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [len(values)], values.tolist())
    assert not tensor.HasField("raw_data")
    data = helper.make_model(helper.make_graph([], "g", [], [], [tensor])).SerializeToString()
    assert Run(starts(data, values.tobytes()), len(values) * 4, 4) in tensors(data)[1]


def test_tensors_inside_attributes_and_subgraphs_are_found() -> None:
    inner = numpy_helper.from_array(np.frombuffer(rng(1).bytes(BIG), dtype="f4"), "inner")
    constant = numpy_helper.from_array(np.frombuffer(rng(2).bytes(BIG), dtype="f4"), "constant")
    branch = helper.make_graph([helper.make_node("Identity", ["inner"], ["z"])], "branch", [], [], [inner])
    nodes = [
        helper.make_node("Constant", [], ["c"], value=constant),
        helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch),
    ]
    data = helper.make_model(helper.make_graph(nodes, "g", [], [])).SerializeToString()
    assert len(tensors(data)[1]) == 3  # the constant once, the branch's weights in both branches


def test_external_tensors_are_found_by_location() -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT16, dims=[10], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "weights.bin"), ("offset", "4096"), ("length", "70000")):
        tensor.external_data.add(key=key, value=value)
    data = helper.make_model(helper.make_graph([], "g", [], [], [tensor])).SerializeToString()
    assert external_runs(data) == {"weights.bin": [Run(4096, 70_000, 2)]}
    assert external_runs(b"no model") == {}


def test_known_runs_cut_a_file_that_says_nothing_itself() -> None:
    data = rng().bytes(400_000)
    found = pieces(data, known=[Run(100_000, 200_000, 2)])
    assert [(p.offset, p.length) for p in found if p.width == 2] == [(100_000, 200_000)]


def test_tied_weights_are_one_run() -> None:
    run = Run(100_000, 200_000, 4)
    assert sound([run, run], 400_000) == [run]
    assert [p.width for p in pieces(rng().bytes(400_000), known=[run, run])].count(4) == 1


@pytest.mark.parametrize(
    "known",
    [
        [Run(0, 300_000, 4), Run(299_999, 100_000, 4)],
        [Run(350_000, 100_000, 4)],
        [Run(-1, 100_000, 4)],
        [Run(2**62, 2**62, 4)],
    ],
)
def test_runs_that_overlap_or_leave_the_file_are_not_believed(known: list[Run]) -> None:
    data = rng().bytes(400_000)
    with pytest.raises(NotThisFormatError):
        sound(known, len(data))
    assert pieces(data, known=known) == pieces(data)


# Content-defined cutting --------------------------------------------------------------------------------------------


def test_insertion_moves_only_the_cuts_near_it() -> None:
    data = rng().bytes(8 * 2**20)
    changed = data[:1_000_000] + b"inserted" + data[1_000_000:]
    one = {data[p.offset : p.offset + p.length] for p in pieces(data)}
    two = [changed[p.offset : p.offset + p.length] for p in pieces(changed)]
    assert sum(len(p) for p in two if p not in one) < 2 * CHUNK_MAX


def test_cuts_depend_on_the_family_secret_and_nothing_else() -> None:
    data = rng().bytes(3 * 2**20)
    ends = [p.offset for p in cut(data, Gear(FS))]
    assert ends == [p.offset for p in cut(memoryview(data), Gear(FS))]
    assert ends != [p.offset for p in cut(data, Gear(bytes(32)))]


def test_cuts_stay_where_they_were_in_earlier_versions() -> None:
    """Another cut would make every fleet fetch everything once."""
    data = bytes(i * i * 7 % 251 ^ i >> 8 & 255 for i in range(600_000))
    assert list(Gear(FS).boundaries(data, 0, len(data), average=64 * 1024)) == list(
        _slow_boundaries(data, average=64 * 1024)
    )


def _slow_boundaries(data: bytes, *, average: int) -> list[int]:
    """Byte by byte, from the docstring of edgeseal_host.cutting.gear."""
    shortest, longest, threshold = limits(average)
    numbers = GEAR._table.tolist()
    ends, last = [], 0
    state = 0
    for i, byte in enumerate(data, 1):
        state = (state * 2 + numbers[byte]) % 2**32
        length = i - last
        if (state < threshold and length >= shortest) or length == longest:
            ends.append(i)
            last = i
    return ends if last == len(data) else [*ends, len(data)]


@given(st.binary(max_size=200_000) | st.integers(1, 3 * 2**20).map(bytes), st.integers(64, 2**18))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_every_piece_keeps_the_limits(data: bytes, average: int) -> None:
    shortest, longest, _ = limits(average)
    ends = list(GEAR.boundaries(data, 0, len(data), average=average))
    lengths = np.diff([0, *ends]).tolist()
    assert sum(lengths) == len(data)
    assert all(shortest <= n <= longest for n in lengths[:-1])
    assert all(1 <= n <= longest for n in lengths[-1:])


# Hostile and broken input: never an exception, always the whole file ------------------------------------------------


ONNX = onnx_model({"a": np.frombuffer(rng(1).bytes(70_000), dtype="f4"), "b": np.ones(64, dtype="f4")})
SAFETENSORS = save_safetensors({"a": np.frombuffer(rng(1).bytes(70_000), dtype="f4"), "b": np.ones(64, dtype="f4")})


@given(st.binary(max_size=5000))
@settings(max_examples=300, deadline=None)
def test_random_bytes_are_cut_by_content(data: bytes) -> None:
    pieces(data)
    external_runs(data)


@given(st.sampled_from([ONNX, SAFETENSORS]), st.data())
@settings(max_examples=300, deadline=None)
def test_flipped_and_truncated_models_are_still_covered(model: bytes, data: st.DataObject) -> None:
    changed = bytearray(model[: data.draw(st.integers(0, len(model)))])
    # Near the start and the end lie headers and names; the middle is weights.
    for _ in range(data.draw(st.integers(0, 4))):
        if changed:
            at = data.draw(st.integers(0, min(400, len(changed) - 1)) | st.integers(0, len(changed) - 1))
            changed[at] = data.draw(st.integers(0, 255))
    pieces(bytes(changed))
    external_runs(bytes(changed))


def test_every_truncation_of_the_structure_of_a_model() -> None:
    small = onnx_model({"a": np.ones(4, dtype="f4")})
    for length in range(len(small)):
        pieces(small[:length])
        external_runs(small[:length])


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def nested(number: int, depth: int) -> bytes:
    data = b""
    for _ in range(depth):
        data = varint(number << 3 | 2) + varint(len(data)) + data
    return data


@pytest.mark.parametrize(
    "data",
    [
        b"\x3a" + varint(2**63) + b"x",  # a graph of 8 EiB
        b"\x3a" + b"\xff" * 11,  # a varint that does not end
        b"\x3a\x00\x0b",  # a group, which protobuf 3 has not
        b"\x00\x00",  # field number 0
        b"\x3a\x00" + b"\x39" + b"\x00" * 3,  # a fixed64 cut short
        b"\x3a" + varint(4) + b"\x2a" + varint(2**32) + b"x",  # a tensor that leaves its graph
        nested(7, 50),
        b"\x3a" + varint(len(nested(11, 200))) + nested(11, 200),
    ],
    ids=["huge", "varint", "group", "zero", "fixed", "leaves", "deep-graphs", "deep-attributes"],
)
def test_protobuf_that_lies(data: bytes) -> None:
    pieces(data + b"\0" * 100)
    pieces(data)
    assert external_runs(data) == {}


def test_protobuf_nested_deeper_than_any_model(monkeypatch: pytest.MonkeyPatch) -> None:
    body = b""
    for _ in range(200):  # graph in attribute in node in graph …
        attribute = b"\x32" + varint(len(body)) + body
        node = b"\x2a" + varint(len(attribute)) + attribute
        body = b"\x0a" + varint(len(node)) + node
    data = b"\x3a" + varint(len(body)) + body
    with pytest.raises(NotThisFormatError, match="deep"):
        onnx_reader.tensors(data)
    monkeypatch.setattr(onnx_reader, "MAX_FIELDS", 1000)
    with pytest.raises(NotThisFormatError, match="too many"):
        onnx_reader.tensors(b"\x3a\x00" * 2000)


@pytest.mark.parametrize(
    ("offset", "length"),
    [("-1", "100"), ("0", "99999999999999999999"), ("x", "1"), ("0", ""), ("1e3", "4"), ("²", "4")],
)
def test_external_tensor_without_a_sane_place(offset: str, length: str) -> None:
    tensor = TensorProto(name="w", data_type=1, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "../../etc/passwd"), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=value)
    data = helper.make_model(helper.make_graph([], "g", [], [], [tensor])).SerializeToString()
    assert external_runs(data) == {}


def header(value: object, tail: bytes = b"\0" * 200_000) -> bytes:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return struct.pack("<Q", len(text)) + text + tail


@pytest.mark.parametrize(
    "data",
    [
        header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 10**9]}}),
        header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [10, 4]}}),
        header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 4]}}),
        header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0.0, 4]}}),
        header({"a": {"dtype": 7, "data_offsets": [0, 4]}}),
        header({"a": [0, 4]}),
        header(
            {
                "a": {"dtype": "F32", "data_offsets": [0, 100_000]},
                "b": {"dtype": "F32", "data_offsets": [99_999, 190_000]},
            }
        ),
        header([1, 2]),
        header(b"{" + b'"a":' * 100_000),
        header(b'{"a":' + b"[" * 100_000),
        header(b'{"a": ' + b"9" * 10_000 + b"}"),
        header(b"{\xff\xfe}"),
        struct.pack("<Q", 2**64 - 1) + b"{}",
        struct.pack("<Q", 2) + b"{",
        b"\x02\0\0",
    ],
)
def test_safetensors_header_that_lies(data: bytes) -> None:
    assert tensors(data)[0] == "unknown"
    pieces(data)


def test_unknown_element_types_are_bytes() -> None:
    data = header({"a": {"dtype": "F8_E4M3", "data_offsets": [0, 200_000]}})
    assert tensors(data)[1][0].width == 1


def test_empty_file_has_no_piece() -> None:
    assert pieces(b"") == []


def test_onnx_written_by_the_library_is_recognised_as_such() -> None:
    """Negative control of the hostile cases: the reader does accept what is right."""
    assert onnx.load_from_string(ONNX).graph.name == "g"
    assert tensors(ONNX)[0] == "onnx"
    assert tensors(SAFETENSORS)[0] == "safetensors"
