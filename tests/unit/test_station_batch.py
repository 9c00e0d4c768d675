"""Batch files as people write them: every mistake is named by its key, and says what was expected."""

from __future__ import annotations

import json
import tomllib
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit import station_world

from edgeseal.errors import UsageError
from edgeseal_host.station import batch as batches

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.unit
WHOLE: dict[str, Any] = {
    "batch": {
        "name": "2026-11-a",
        "suite": 1,
        "entropy": "require",
        "hardware": ["raspberrypi,4-model-b"],
        "group": "presses",
        "scan": False,
    },
    "fleet": {"public": "public.json", "root": "root.json", "floors": {"timestamp": 120}},
    "names": {"pattern": "press-{number:04}", "first": 1},
    "groups": {"raspberrypi,5-model-b": "presses-pi5"},
}
WRONG: dict[type, list[Any]] = {
    str: [1, True, 1.5, ["x"], {"x": 1}],
    int: ["1", 1.5, True, [1], -1, 2**64],
    bool: ["yes", 1, [True]],
    list: ["x", 1, {"x": 1}],
    dict: ["x", 1, [1]],
}


def paths(document: dict[str, Any], before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in document.items():
        yield (*before, key)
        if isinstance(value, dict):
            yield from paths(value, (*before, key))


PATHS = list(paths(WHOLE))
OWN = {("groups", "raspberrypi,5-model-b")}  # keys that are the user's: any other would be as good


def at(document: dict[str, Any], path: tuple[str, ...]) -> Any:
    for key in path:
        document = document[key]
    return document


def toml(document: dict[str, Any]) -> bytes:
    """A document with every section in one line."""

    def text(value: Any) -> str:
        if isinstance(value, dict):
            return f"{{{', '.join(f'{json.dumps(k)} = {text(v)}' for k, v in value.items())}}}"
        return f"[{', '.join(map(text, value))}]" if isinstance(value, list) else json.dumps(value)

    return "\n".join(f"{json.dumps(key)} = {text(value)}" for key, value in document.items()).encode()


def says(document: dict[str, Any]) -> str:
    with pytest.raises(UsageError) as found:
        batches.parse(toml(document), name="batch.toml")
    return f"{found.value.message} ({found.value.hint})"


def test_the_whole_example_is_good() -> None:
    """Negative control of everything below, and of the file that `init` writes."""
    assert batches.parse(toml(WHOLE), name="batch.toml").batch.name == "2026-11-a"
    assert batches.parse(batches.EXAMPLE.encode(), name="batch.toml").names.pattern == "press-{number:04}"
    assert set(tomllib.loads(batches.EXAMPLE)) == set(WHOLE)


@pytest.mark.parametrize("path", PATHS, ids=".".join)
def test_a_value_of_another_kind_is_named_by_its_key(path: tuple[str, ...]) -> None:
    for wrong in WRONG[type(at(WHOLE, path))]:
        document = deepcopy(WHOLE)
        at(document, path[:-1])[path[-1]] = wrong
        text = says(document)
        assert text.startswith(f"batch.toml: {'.'.join(path)}"), (wrong, text)
        assert "`" not in text, "no jargon of a library"


@pytest.mark.parametrize("path", [p for p in PATHS if p not in OWN], ids=".".join)
@given(data=st.data())
@settings(max_examples=8)
def test_a_misspelt_key_is_named_with_what_it_may_have_meant(path: tuple[str, ...], data: st.DataObject) -> None:
    *before, key = path
    place = data.draw(st.integers(0, len(key) - 1))
    misspelt = key[:place] + data.draw(st.sampled_from("abcxyz")) + key[place + 1 :]
    document = deepcopy(WHOLE)
    section = at(document, tuple(before))
    if misspelt in section:
        return
    section[misspelt] = section.pop(key)
    text = says(document)
    dotted = ".".join([*before, misspelt])
    required = ".".join(path)
    assert f"batch.toml: {dotted}: there is no such" in text or f"batch.toml: {required}: it must be there" in text, (
        text
    )
    if len(key) > 4 and "no such key" in text:
        assert f"did you mean {key}?" in text


@pytest.mark.parametrize("path", [("batch",), ("batch", "name"), ("fleet", "root"), ("names",), ("names", "pattern")])
def test_what_is_missing_is_named(path: tuple[str, ...]) -> None:
    document = deepcopy(WHOLE)
    del at(document, path[:-1])[path[-1]]
    assert says(document) == f"batch.toml: {'.'.join(path)}: it must be there (edgeseal station init writes an example)"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("batch", "name"), "", "batch.name: expected text that is not empty"),
        (("batch", "name"), "x" * 129, "batch.name: expected text of at most length 128"),
        (("batch", "name"), "a\x1b[2Jb", "batch.name: there is a character in it that cannot be printed"),
        (("batch", "hardware"), ["pi", "a\nb"], "batch.hardware[1]: there is a character in it"),
        (("groups", "a\x07b"), "x", "groups.a?b: there is a character in it"),
        (("batch", "entropy"), "never", 'batch.entropy: expected "require" or "mix", got \'never\''),
        (("fleet", "floors", "tiemstamp"), 1, "fleet.floors.tiemstamp: there is no such role; expected root,"),
    ],
)
def test_values_that_are_no_good(path: tuple[str, ...], value: Any, message: str) -> None:
    document = deepcopy(WHOLE)
    at(document, path[:-1])[path[-1]] = value
    assert message in says(document)


@given(st.text(max_size=60) | st.binary(max_size=60))
@settings(max_examples=200)
def test_any_file_is_read_or_refused_with_a_message(content: str | bytes) -> None:
    data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    with pytest.raises(UsageError, match=r"^x\.toml"):
        batches.parse(data, name="x.toml")


# Files ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> station_world.World:
    return station_world.World.make(tmp_path_factory.mktemp("station"))


def load_error(world: station_world.World, old: str, new: str) -> str:
    path = world.place / "other.toml"
    assert old in station_world.BATCH
    path.write_text(station_world.BATCH.replace(old, new))
    with pytest.raises(UsageError) as found:
        batches.load(path)
    return str(found.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("root.json", "public.json", "fleet.root: "),
        ("root.json", "no-such.json", "other.toml: fleet.root: No such file or directory"),
        ("public.json", "root.json", "fleet.public: public.json has no format number"),
        ("public.json", "no-such.json", "other.toml: fleet.public: No such file"),
        ("public.json", "batch.toml", "fleet.public: batch.toml is not JSON"),
        ('entropy = "mix"', "suite = 3", "batch.suite: expected 1 or 2, got 3"),
        ("{number:04}", "x", "names.pattern: 'press-x' names every device the same"),
        ("{number:04}", "{nubmer}", "names.pattern: {nubmer} is nothing a name can have"),
        ("{number:04}", "{number", "names.pattern: 'press-{number' is no pattern"),
        ("press-{number:04}", "Press {number}", "names.pattern: 'Press 1' cannot be a device's name"),
        ('root = "root.json"', 'root = "root.json"\nfloors = {root = 9}', "fleet.floors.root: devices would refuse"),
    ],
)
def test_files_and_names_that_are_no_good(world: station_world.World, old: str, new: str, message: str) -> None:
    assert message in load_error(world, old, new)


def test_no_batch_file(world: station_world.World) -> None:
    with pytest.raises(UsageError, match=r"there is no batch file .*station init writes an example"):
        batches.load(world.place / "nothing.toml")


def test_a_batch_file_is_not_read_without_end(world: station_world.World) -> None:
    path = world.place / "huge.toml"
    path.write_bytes(b"#" * (batches.MAX_BATCH + 1))
    with pytest.raises(Exception, match=r"huge\.toml"):
        batches.load(path)


def test_the_roots_own_version_is_always_a_floor(world: station_world.World) -> None:
    assert world.batch.floors == {"root": 1}
