"""Building a bundle, checking it, and everything that can be wrong with its inputs or its directory."""

from __future__ import annotations

import hashlib
import os
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeseal.chunks import decode_chunk
from edgeseal.durable import locked
from edgeseal.errors import EdgesealError, FormatError, IntegrityError, RollbackError, TemporaryError, UsageError
from edgeseal.manifest import MAX_HINTS, MAX_RELEASE
from edgeseal.table import CODEC_GROUPED, CODEC_RAW, CODEC_ZSTD
from edgeseal_host.audit import audit, chunk_files, describe
from edgeseal_host.build import build_bundle, bundle_content_key
from edgeseal_host.bundle import CONTENT_KEY, MANIFEST, BundleDirectory

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from edgeseal.manifest import Manifest
    from edgeseal.table import Table

pytestmark = pytest.mark.unit

FS = bytes(range(32))
MIB = 2**20


def build(out: Path, *paths: Path, release: int = 1, **more: Any) -> Manifest:
    arguments: dict[str, Any] = {"model": "bearing", "release": release, "suite": 1, "family_secret": FS, **more}
    return build_bundle(paths, out=out, **arguments)


def table(out: Path, fs: bytes = FS) -> Table:
    bundle = BundleDirectory(out)
    return bundle.table(bundle.manifest(), bundle.content_key(bundle.manifest(), fs))


def chunks(out: Path) -> set[str]:
    return {p.name for p in BundleDirectory(out).objects("chunks")}


def new_bytes(out: Path, previous: Path) -> int:
    had = chunks(previous)
    return sum(p.stat().st_size for p in BundleDirectory(out).objects("chunks") if p.name not in had)


def tensors(seed: int = 1) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    shapes = {f"layer{i}": (512, 700) for i in range(5)} | {"head": (512, 40), "norm": (512,)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def save_onnx(
    path: Path, weights: Mapping[str, NDArray[np.float32]], *, extra_node: bool = False, note: str = ""
) -> Path:
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"], name=f"use_{name}") for name in weights]
    if extra_node:
        nodes.insert(2, helper.make_node("Relu", [f"{next(iter(weights))}_out"], ["extra"], name="inserted"))
    outputs = [helper.make_tensor_value_info(f"{n}_out", TensorProto.FLOAT, list(w.shape)) for n, w in weights.items()]
    graph = helper.make_graph(nodes, "g", [], outputs, [numpy_helper.from_array(w, n) for n, w in weights.items()])
    onnx.save(helper.make_model(graph, doc_string=note), str(path))
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_onnx(tmp_path / "in.onnx", tensors())


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.bin"
    path.write_bytes(np.random.default_rng(3).bytes(150_000))
    return path


# What a build makes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suite", [1, 2])
def test_files_come_back_byte_for_byte(tmp_path: Path, model: Path, suite: int) -> None:
    seen: list[int] = []
    manifest = build(tmp_path / "b", model, suite=suite, progress=seen.append)
    found = table(tmp_path / "b")
    (entry,) = found.files
    out = bytearray()
    for record in found.pieces(entry):
        piece = bytearray(record.plain_length)
        stored = BundleDirectory(tmp_path / "b").object_path("chunks", record.stored_sha256).read_bytes()
        decode_chunk(record, stored, suite=suite, out=memoryview(piece))
        out += piece
    assert bytes(out) == model.read_bytes()
    assert entry.path == "model.onnx"
    assert sum(seen) == manifest.plain_size == model.stat().st_size
    assert manifest.stored_size == sum(p.stat().st_size for p in BundleDirectory(tmp_path / "b").objects("chunks"))
    assert manifest.requirements["format"] == "onnx"
    assert not list((tmp_path / "b").rglob(".tmp-*"))
    assert not (tmp_path / "b" / ".lock").exists()


def test_same_input_gives_same_chunks_but_another_content_key(tmp_path: Path, model: Path) -> None:
    one, two = build(tmp_path / "b1", model), build(tmp_path / "b2", model)
    assert chunks(tmp_path / "b1") == chunks(tmp_path / "b2")
    assert one.ck_commitment != two.ck_commitment
    assert one.table_sha256 != two.table_sha256
    assert bundle_content_key(tmp_path / "b1", FS) != bundle_content_key(tmp_path / "b2", FS)


def test_another_family_shares_no_chunk(tmp_path: Path, model: Path) -> None:
    build(tmp_path / "b1", model)
    build(tmp_path / "b2", model, family_secret=bytes(32))
    assert not chunks(tmp_path / "b1") & chunks(tmp_path / "b2")


def test_neither_content_nor_keys_lie_in_the_bundle_in_clear(tmp_path: Path) -> None:
    canary = b"a canary of plaintext that no bundle may show "
    (tmp_path / "m.bin").write_bytes(canary * 2000)
    build(tmp_path / "b", tmp_path / "m.bin")
    ck = bundle_content_key(tmp_path / "b", FS)
    for path in (p for p in (tmp_path / "b").rglob("*") if p.is_file()):
        data = path.read_bytes()
        assert canary not in data
        assert ck not in data
        assert FS not in data
        assert hashlib.sha256(canary * 2000).digest() not in data
    assert (tmp_path / "b" / CONTENT_KEY).stat().st_mode & 0o777 == 0o600


def test_codec_follows_what_compression_saves(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    weights = {
        "smooth": (rng.standard_normal((512, 256)) * 0.02).astype(np.float32),  # exponents alike: grouping helps
        "noise": rng.integers(0, 2**32, (512, 256), dtype=np.uint32).view(np.float32),
    }
    save_onnx(tmp_path / "m.onnx", {k: np.nan_to_num(v) if k == "smooth" else v for k, v in weights.items()})
    (tmp_path / "text.txt").write_bytes(b"the same words " * 20_000)
    build(tmp_path / "b", tmp_path / "m.onnx", tmp_path / "text.txt")
    large = {r.codec for r in table(tmp_path / "b").records if r.plain_length == 512 * 256 * 4}
    assert large == {CODEC_GROUPED, CODEC_RAW}
    text = next(f for f in table(tmp_path / "b").files if f.path == "text.txt")
    assert {r.codec for r in table(tmp_path / "b").pieces(text)} == {CODEC_ZSTD}


def test_empty_looking_gigabyte_costs_little(tmp_path: Path) -> None:
    with (tmp_path / "zeros.bin").open("wb") as f:
        f.truncate(64 * MIB + 1)
    manifest = build(tmp_path / "b", tmp_path / "zeros.bin")
    assert manifest.plain_size == 64 * MIB + 1
    assert manifest.stored_size < 100_000  # one chunk many times is stored once


# Deltas -------------------------------------------------------------------------------------------------------------


def _change_head(weights: dict[str, NDArray[np.float32]], path: Path) -> Path:
    return save_onnx(path, {**weights, "head": weights["head"] + 1})


def _insert_node(weights: dict[str, NDArray[np.float32]], path: Path) -> Path:
    return save_onnx(path, weights, extra_node=True)


def _metadata_only(weights: dict[str, NDArray[np.float32]], path: Path) -> Path:
    return save_onnx(path, weights, note="retrained on a Monday")


def _prune_layer(weights: dict[str, NDArray[np.float32]], path: Path) -> Path:
    return save_onnx(path, {k: v for k, v in weights.items() if k != "layer1"})


@pytest.mark.parametrize(
    ("change", "most"),
    [(_change_head, 120_000), (_insert_node, 20_000), (_metadata_only, 20_000), (_prune_layer, 20_000)],
)
def test_delta_fetches_little_more_than_what_changed(
    tmp_path: Path, model: Path, change: Callable[[Any, Path], Path], most: int
) -> None:
    build(tmp_path / "b1", model)
    changed = change(tensors(), tmp_path / "changed.onnx")
    after = build(tmp_path / "b2", changed, release=2, previous=tmp_path / "b1")
    assert 0 < new_bytes(tmp_path / "b2", tmp_path / "b1") < most < after.stored_size // 20


def test_delta_of_other_weights_is_the_whole_model(tmp_path: Path, model: Path) -> None:
    """Negative control of the test above."""
    build(tmp_path / "b1", model)
    other = save_onnx(tmp_path / "other.onnx", tensors(seed=2))
    after = build(tmp_path / "b2", other, release=2, previous=tmp_path / "b1")
    assert new_bytes(tmp_path / "b2", tmp_path / "b1") > 0.95 * after.stored_size


def test_external_data_is_cut_at_its_tensors(tmp_path: Path) -> None:
    weights = tensors()

    def save(name: str, values: Mapping[str, NDArray[np.float32]]) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        whole = onnx.load(str(save_onnx(tmp_path / "whole.onnx", values)))
        onnx.save(
            whole,
            str(folder / "model.onnx"),
            save_as_external_data=True,
            location="weights.bin",
            size_threshold=1024,
        )
        return folder

    build(tmp_path / "b1", save("one", weights))
    # A tensor in the middle grows: everything behind it moves by an odd amount.
    grown = {k: np.vstack([v, v[:3, :]]) if k == "layer2" else v for k, v in weights.items()}
    after = build(tmp_path / "b2", save("two", grown), release=2, previous=tmp_path / "b1")
    assert {f.path for f in table(tmp_path / "b2").files} == {"model.onnx", "weights.bin"}
    assert new_bytes(tmp_path / "b2", tmp_path / "b1") < 0.2 * after.stored_size


def test_hints_name_earlier_tables_nearest_first_and_are_bounded(tmp_path: Path, small: Path) -> None:
    names: list[bytes] = []
    previous = None
    for release in range(1, MAX_HINTS + 4):
        manifest = build(tmp_path / str(release), small, release=release, previous=previous)
        assert manifest.hints == names[: -MAX_HINTS - 1 : -1]
        names.append(manifest.table_sha256)
        previous = tmp_path / str(release)


def test_previous_chunks_are_kept_when_zstd_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.bin").write_bytes(b"compress me " * 50_000)
    build(tmp_path / "b1", tmp_path / "m.bin")
    monkeypatch.setattr("edgeseal.chunks.ZSTD_LEVEL", 9)  # stands for another version: other frames of the same piece
    build(tmp_path / "alone", tmp_path / "m.bin", release=2)
    build(tmp_path / "b2", tmp_path / "m.bin", release=2, previous=tmp_path / "b1")
    assert chunks(tmp_path / "alone") != chunks(tmp_path / "b1")
    assert chunks(tmp_path / "b2") == chunks(tmp_path / "b1")


@pytest.mark.parametrize("spoil", ["missing", "flipped"])
def test_previous_with_damaged_chunks_costs_a_delta_not_the_build(tmp_path: Path, small: Path, spoil: str) -> None:
    build(tmp_path / "b1", small)
    for path in BundleDirectory(tmp_path / "b1").objects("chunks"):
        if spoil == "missing":
            path.unlink()
        else:
            flip(path)
    build(tmp_path / "b2", small, release=2, previous=tmp_path / "b1")
    assert audit(tmp_path / "b2", FS).files == 1


def test_previous_of_another_suite_is_not_reused(tmp_path: Path, small: Path) -> None:
    build(tmp_path / "b1", small, suite=2)
    build(tmp_path / "b2", small, release=2, suite=1, previous=tmp_path / "b1")
    assert not chunks(tmp_path / "b1") & chunks(tmp_path / "b2")
    assert audit(tmp_path / "b2", FS).chunks


@pytest.mark.parametrize("release", [1, 2])
def test_previous_that_is_not_earlier(tmp_path: Path, small: Path, release: int) -> None:
    build(tmp_path / "b1", small, release=2)
    with pytest.raises(RollbackError, match="does not follow release 2"):
        build(tmp_path / "b2", small, release=release, previous=tmp_path / "b1")
    assert not (tmp_path / "b2").exists()


def test_previous_of_another_model_or_family_or_none(tmp_path: Path, small: Path) -> None:
    build(tmp_path / "b1", small)
    with pytest.raises(UsageError, match="is a bundle of 'bearing'"):
        build(tmp_path / "b2", small, release=2, model="other", previous=tmp_path / "b1")
    with pytest.raises(IntegrityError, match="family secret"):
        build(tmp_path / "b2", small, release=2, family_secret=bytes(32), previous=tmp_path / "b1")
    with pytest.raises(UsageError, match="no complete bundle"):
        build(tmp_path / "b2", small, release=2, previous=tmp_path)
    assert not (tmp_path / "b2").exists()


# Interruptions ------------------------------------------------------------------------------------------------------


class StoppedError(Exception):
    """Stands for ctrl-C in the middle."""


def _stop_after(count: int) -> Callable[[int], None]:
    done = 0

    def progress(_bytes: int) -> None:
        nonlocal done
        done += 1
        if done == count:
            raise StoppedError

    return progress


def test_interrupted_build_is_resumed_by_the_same_call(tmp_path: Path, model: Path) -> None:
    build(tmp_path / "whole", model)
    with pytest.raises(StoppedError):
        build(tmp_path / "b", model, progress=_stop_after(4))
    assert chunks(tmp_path / "b")
    with pytest.raises(UsageError, match="no complete bundle"):
        audit(tmp_path / "b", FS)
    before = {p: p.stat().st_mtime_ns for p in BundleDirectory(tmp_path / "b").objects("chunks")}
    build(tmp_path / "b", model)
    assert audit(tmp_path / "b", FS).files == 1
    assert chunks(tmp_path / "b") == chunks(tmp_path / "whole")
    assert all(p.stat().st_mtime_ns == then for p, then in before.items()), "a chunk that was there was written again"


def test_interrupted_build_with_torn_files_is_repaired(tmp_path: Path, model: Path) -> None:
    with pytest.raises(StoppedError):
        build(tmp_path / "b", model, progress=_stop_after(4))
    path = next(BundleDirectory(tmp_path / "b").objects("chunks"))
    path.write_bytes(path.read_bytes()[:100])  # as a power cut leaves what was never flushed
    path.with_name(".tmp-1-torn").write_bytes(b"x")
    build(tmp_path / "b", model)
    assert audit(tmp_path / "b", FS).files == 1
    assert not list((tmp_path / "b").rglob(".tmp-*"))


def test_interrupted_build_whose_input_changed_leaves_no_leftovers(tmp_path: Path, small: Path) -> None:
    with pytest.raises(StoppedError):
        build(tmp_path / "b", small, progress=_stop_after(1))
    small.write_bytes(os.urandom(70_000))
    build(tmp_path / "b", small)
    assert {bytes.fromhex(n) for n in chunks(tmp_path / "b")} == set(table(tmp_path / "b").chunks())


@pytest.mark.parametrize("other", [{"release": 2}, {"model": "other"}, {"family_secret": bytes(32)}])
def test_interrupted_build_of_something_else_is_not_taken_over(
    tmp_path: Path, small: Path, other: dict[str, Any]
) -> None:
    with pytest.raises(StoppedError):
        build(tmp_path / "b", small, progress=_stop_after(1))
    with pytest.raises(UsageError, match="interrupted build of another release or family"):
        build(tmp_path / "b", small, **other)


def test_complete_bundle_is_never_built_over(tmp_path: Path, small: Path) -> None:
    build(tmp_path / "b", small)
    before = (tmp_path / "b" / MANIFEST).read_bytes()
    with pytest.raises(UsageError, match="already holds a complete bundle"):
        build(tmp_path / "b", small)
    assert (tmp_path / "b" / MANIFEST).read_bytes() == before


def test_two_builds_into_one_directory(tmp_path: Path, small: Path) -> None:
    (tmp_path / "b").mkdir()
    with locked(tmp_path / "b" / ".lock"), pytest.raises(TemporaryError, match="another edgeseal process"):
        build(tmp_path / "b", small)


# Inputs -------------------------------------------------------------------------------------------------------------


def test_empty_missing_and_special_inputs(tmp_path: Path) -> None:
    (tmp_path / "empty.bin").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for path, message in (
        (tmp_path / "empty.bin", "is empty"),
        (tmp_path / "folder", "no file"),
        (tmp_path / "pipe", "not a regular file"),
        (tmp_path / "nowhere", "cannot read"),
    ):
        with pytest.raises(UsageError, match=message):
            build(tmp_path / "b", path)
    with pytest.raises(UsageError, match="no file"):
        build(tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_links_to_files_are_followed_and_to_directories_refused(tmp_path: Path, small: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "weights.bin").symlink_to(small)
    build(tmp_path / "b", folder)
    (entry,) = table(tmp_path / "b").files
    assert (entry.path, entry.sha256) == ("weights.bin", hashlib.sha256(small.read_bytes()).digest())
    (folder / "loop").symlink_to(folder)
    with pytest.raises(UsageError, match="link to a directory"):
        build(tmp_path / "b2", folder)
    (folder / "loop").unlink()
    (folder / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="cannot read"):
        build(tmp_path / "b2", folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_input(tmp_path: Path, small: Path) -> None:
    small.chmod(0)
    with pytest.raises((UsageError, PermissionError)):
        build(tmp_path / "b", small)


def test_names_that_collide_or_cannot_travel(tmp_path: Path, small: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    for folder in ("one", "two"):
        shutil.copy(small, tmp_path / folder / "weights.bin")
    with pytest.raises(UsageError, match="cannot be in one bundle"):
        build(tmp_path / "b", tmp_path / "one", tmp_path / "two")
    shutil.copy(small, tmp_path / "two" / "a\nb")
    with pytest.raises(UsageError, match="cannot be in one bundle"):
        build(tmp_path / "b", tmp_path / "two")
    (tmp_path / "two" / "a\nb").rename(tmp_path / "two" / os.fsdecode(b"\xff\xfe"))
    with pytest.raises(UsageError, match="cannot be in one bundle"):
        build(tmp_path / "b", tmp_path / "two")


def test_executable_bit_and_folders_travel(tmp_path: Path, small: Path) -> None:
    folder = tmp_path / "m" / "deep" / "er"
    folder.mkdir(parents=True)
    shutil.copy(small, folder / "run.sh")
    (folder / "run.sh").chmod(0o777)
    shutil.copy(small, tmp_path / "m" / "model.onnx")
    build(tmp_path / "b", tmp_path / "m")
    assert [(f.path, f.mode) for f in table(tmp_path / "b").files] == [
        ("deep/er/run.sh", 0o755),
        ("model.onnx", 0o644),
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": "Bearing"},
        {"model": "bearing/../x"},
        {"model": "targets"},
        {"model": ""},
        {"release": 0},
        {"release": MAX_RELEASE + 1},
        {"suite": 9},
        {"family_secret": b"short"},
        {"requirements": {"x": object()}},
        {"provenance": {"x": {1: object()}}},
        {"tests": object()},
    ],
)
def test_arguments_that_no_release_can_have(tmp_path: Path, small: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(EdgesealError) as caught:
        build(tmp_path / "b", small, **wrong)
    assert caught.value.exit_code in {2, 3, 6}
    assert "short" not in str(caught.value)
    assert not (tmp_path / "b").exists()


# Audit --------------------------------------------------------------------------------------------------------------


def flip(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def test_audit_of_a_whole_bundle_changes_nothing(tmp_path: Path, model: Path) -> None:
    build(tmp_path / "b", model)
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in (tmp_path / "b").rglob("*")}
    seen: list[int] = []
    found = audit(tmp_path / "b", FS, progress=seen.append)
    assert (found.files, found.plain_size, sum(seen)) == (1, model.stat().st_size, model.stat().st_size)
    assert before == {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in (tmp_path / "b").rglob("*")}


def test_audit_finds_one_flipped_bit_in_every_kind_of_file(tmp_path: Path, small: Path) -> None:
    build(tmp_path / "b", small)
    files = [p for p in (tmp_path / "b").rglob("*") if p.is_file()]
    assert {p.relative_to(tmp_path / "b").parts[0] for p in files} == {MANIFEST, CONTENT_KEY, "tables", "chunks"}
    for path in files:
        whole = path.read_bytes()
        for at in (0, 5, len(whole) // 2, -1):
            flip(path, at)
            with pytest.raises(EdgesealError) as caught:
                audit(tmp_path / "b", FS)
            assert caught.value.exit_code in {2, 3, 6}, f"{path.name} at {at}"
            path.write_bytes(whole)
    assert audit(tmp_path / "b", FS).files == 1


@pytest.mark.parametrize("how", ["missing", "short", "long", "swapped", "directory"])
def test_audit_finds_chunks_that_are_not_theirs(tmp_path: Path, model: Path, how: str) -> None:
    build(tmp_path / "b", model)
    one, two, *_ = BundleDirectory(tmp_path / "b").objects("chunks")
    data = one.read_bytes()
    one.unlink()
    if how == "short":
        one.write_bytes(data[:-1])
    elif how == "long":
        one.write_bytes(data + b"\0")
    elif how == "swapped":
        one.write_bytes(two.read_bytes())
    elif how == "directory":
        one.mkdir()
    with pytest.raises((IntegrityError, FormatError, IsADirectoryError)) as caught:
        audit(tmp_path / "b", FS)
    assert one.name in str(caught.value)


def test_audit_with_another_family_or_without_its_key(tmp_path: Path, small: Path) -> None:
    build(tmp_path / "b", small)
    with pytest.raises(IntegrityError, match="family secret"):
        audit(tmp_path / "b", bytes(32))
    (tmp_path / "b" / CONTENT_KEY).unlink()
    with pytest.raises(UsageError, match=r"holds no content\.key"):
        audit(tmp_path / "b", FS)


def test_content_key_of_another_release_does_not_open(tmp_path: Path, small: Path) -> None:
    build(tmp_path / "b1", small)
    build(tmp_path / "b2", small, release=2)
    shutil.copy(tmp_path / "b1" / CONTENT_KEY, tmp_path / "b2" / CONTENT_KEY)
    with pytest.raises(IntegrityError):
        audit(tmp_path / "b2", FS)
    build(tmp_path / "again", small)  # the same release, built twice: another key
    shutil.copy(tmp_path / "b1" / CONTENT_KEY, tmp_path / "again" / CONTENT_KEY)
    with pytest.raises(IntegrityError, match="commits to"):
        audit(tmp_path / "again", FS)


def test_chunk_files_of_an_incomplete_bundle(tmp_path: Path, small: Path) -> None:
    build(tmp_path / "b", small)
    bundle, found = BundleDirectory(tmp_path / "b"), table(tmp_path / "b")
    assert {p.name for p in chunk_files(bundle, found).values()} == chunks(tmp_path / "b")
    path = next(bundle.objects("chunks"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match=path.name):
        chunk_files(bundle, found)


def test_describe_shows_files_only_with_the_family_secret_and_never_a_key(tmp_path: Path, small: Path) -> None:
    build(tmp_path / "b", small, provenance={"source_commit": "abc"}, requirements={"rt": ["onnxruntime"]})
    public, full = describe(tmp_path / "b", None), describe(tmp_path / "b", FS)
    assert "files" not in public
    assert hashlib.sha256(small.read_bytes()).hexdigest() not in repr(public)
    assert full["files"] == [
        {"path": "model.bin", "size": 150_000, "sha256": hashlib.sha256(small.read_bytes()).hexdigest()}
    ]
    secrets = [bundle_content_key(tmp_path / "b", FS), FS, *(r.key for r in table(tmp_path / "b").records)]
    for secret in secrets:
        assert secret.hex() not in repr(full)
        assert repr(secret) not in repr(full)
