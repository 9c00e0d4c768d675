"""`edgeseal bundle` as a person types it: builds that resume and share, and every kind of damage found."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result

from edgeseal_host.cli import main
from edgeseal_host.keys import KeyDirectory

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def edgeseal(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


class Desk:
    """A workstation: two families of models and a model file."""

    def __init__(self, tmp: Path) -> None:
        self.tmp, self.keys = tmp, tmp / "keys"
        for name in ("bearing", "other"):
            KeyDirectory(self.keys).new(name, "family", None)
        self.model = tmp / "model.bin"
        self.model.write_bytes(random.Random(1).randbytes(3_000_000))

    def build(self, out: str, *more: object, release: int = 1, source: Path | None = None) -> Result:
        about = ["--model", "bearing", "--release", release, "--family", "bearing", "--keys", self.keys]
        return edgeseal("bundle", "build", source or self.model, *about, "--out", self.tmp / out, *more, "--json")

    def verify(self, out: str, family: str = "bearing") -> Result:
        return edgeseal("bundle", "verify", self.tmp / out, "--family", family, "--keys", self.keys, "--json")

    def chunks(self, out: str) -> dict[str, Path]:
        return {p.name: p for p in sorted((self.tmp / out / "chunks").glob("*/*"))}


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def about(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_the_same_file_gives_the_same_chunks_and_the_bundle_is_whole(desk: Desk) -> None:
    about(desk.build("a"))
    about(desk.build("b"))
    assert {n: p.read_bytes() for n, p in desk.chunks("a").items()} == {
        n: p.read_bytes() for n, p in desk.chunks("b").items()
    }
    assert about(desk.verify("a"))["plain_size"] == 3_000_000


def test_an_interrupted_build_is_completed_by_running_it_again(desk: Desk) -> None:
    about(desk.build("a"))
    whole = set(desk.chunks("a"))
    (desk.tmp / "a" / "manifest.cbor").unlink()
    next(iter(desk.chunks("a").values())).unlink()
    assert desk.verify("a").exit_code == 2
    about(desk.build("a"))
    assert set(desk.chunks("a")) == whole
    about(desk.verify("a"))
    assert desk.build("a").exit_code == 2, "a complete release was built over"


def test_a_next_release_shares_what_has_not_changed(desk: Desk) -> None:
    first = about(desk.build("a"))
    data = bytearray(desk.model.read_bytes())
    data[1_500_000] ^= 1
    desk.model.write_bytes(data)
    second = about(desk.build("b", "--previous", desk.tmp / "a", release=2))
    assert 0 < second["new_bytes"] < first["stored_size"]
    assert set(desk.chunks("a")) & set(desk.chunks("b"))
    assert desk.build("c", "--previous", desk.tmp / "b", release=2).exit_code == 3


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def swap(bundle: Path) -> None:
    one, two = sorted((bundle / "chunks").glob("*/*"))[:2]
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


def _chunk(bundle: Path) -> Path:
    return min((bundle / "chunks").glob("*/*"))


def _table(bundle: Path) -> Path:
    return min((bundle / "tables").glob("*/*"))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "chunk flipped": lambda b: flip(_chunk(b)),
    "chunk missing": lambda b: _chunk(b).unlink(),
    "chunks swapped": swap,
    "chunk cut short": lambda b: _chunk(b).write_bytes(b"x"),
    "table flipped": lambda b: flip(_table(b)),
    "table missing": lambda b: _table(b).unlink(),
    "manifest flipped": lambda b: flip(b / "manifest.cbor"),
    "manifest empty": lambda b: (b / "manifest.cbor").write_bytes(b""),
    "key flipped": lambda b: flip(b / "content.key"),
    "key cut short": lambda b: (b / "content.key").write_bytes(b"ESCK"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_verify_finds_damage(desk: Desk, damage: str) -> None:
    about(desk.build("a"))
    about(desk.verify("a"))
    DAMAGE[damage](desk.tmp / "a")
    result = desk.verify("a")
    assert result.exit_code in {3, 6}, result.output


def test_another_family_opens_nothing_and_no_output_shows_a_secret(desk: Desk) -> None:
    about(desk.build("a"))
    assert desk.verify("a", family="other").exit_code == 3
    plain = edgeseal("bundle", "inspect", desk.tmp / "a", "--json")
    assert "files" not in about(plain)
    full = edgeseal("bundle", "inspect", desk.tmp / "a", "--family", "bearing", "--keys", desk.keys, "--json")
    assert about(full)["files"][0]["path"] == "model.bin"
    assert KeyDirectory(desk.keys).family("bearing", None).hex() not in plain.output + full.output


def test_what_cannot_be_built_is_said_before_anything_is_written(desk: Desk) -> None:
    empty, folder = desk.tmp / "empty", desk.tmp / "folder"
    empty.touch()
    folder.mkdir()
    (folder / "link").symlink_to(desk.keys)
    for source in (empty, folder, desk.tmp / "missing"):
        assert desk.build("a", source=source).exit_code == 2
    assert desk.build("a", "--provenance", "no sign").exit_code == 2
    assert not (desk.tmp / "a").exists()


def test_requirements_and_provenance_are_in_the_manifest(desk: Desk) -> None:
    found = about(desk.build("a", "--hardware", "pi-4", "--runtime", "onnx", "--provenance", "run=17"))
    assert found["requirements"]["hw"] == ["pi-4"]
    assert found["requirements"]["rt"] == ["onnx"]
    assert found["provenance"]["run"] == "17"
