"""Labels: what is printed fits, what is scanned is the device's name, what boards say of themselves stays text."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import zxingcpp
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit import station_papers_world as papers
from tests.unit.publisher_world import edgeseal, ok, refused

from edgeseal_host.station import labels
from edgeseal_host.station.labels import ACROSS, DOWN, HEIGHT, MARGIN, PAGE, QR, WIDTH, label, sheets

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.station_world import World

pytestmark = pytest.mark.unit
SVG = "{http://www.w3.org/2000/svg}"
WIDEST = 0.62  # a character by its size: DejaVu Sans Mono has 0.602, Courier New 0.600, Liberation Mono 0.601
NAMES = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    return papers.filled(tmp_path_factory.mktemp("labels") / "world")


def at(world: World) -> tuple[object, ...]:
    return "--station", world.directory.path, "--keys", world.place / "keys"


def parsed(svg: str) -> ET.Element:
    assert "<!" not in svg, "no DTD: nothing for a parser to expand"
    return ET.fromstring(svg)  # noqa: S314 - our own, and what hostile boards can do to it is what is tested


def texts(element: ET.Element) -> list[str]:
    return [node.text or "" for node in element.iter(f"{SVG}text")]


def scanned(element: ET.Element) -> list[str]:
    """Draw the modules of every code and read them with somebody else's reader."""
    found = []
    for code in element.iter(f"{SVG}svg"):
        for path in code.findall(f"{SVG}path"):
            size = int(code.attrib["viewBox"].split()[2])
            picture = np.full((size, size), 255, np.uint8)
            for x, y, length in re.findall(r"M(\d+) (\d+)h(\d+)v1h-\d+z", path.attrib["d"]):
                picture[int(y), int(x) : int(x) + int(length)] = 0
            barcodes = zxingcpp.read_barcodes(np.kron(picture, np.ones((5, 5), np.uint8)))
            found += [barcode.text for barcode in barcodes]
    return found


# What is scanned -----------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(NAMES)
def test_a_reader_finds_the_devices_name_and_nothing_else(name: str) -> None:
    assert scanned(parsed(label(papers.device(name)))) == [name]


def test_the_longest_name_has_modules_a_phone_reads() -> None:
    code = next(c for c in parsed(label(papers.device("w" * 64))).iter(f"{SVG}svg") if c.findall(f"{SVG}path"))
    assert float(code.attrib["width"]) / int(code.attrib["viewBox"].split()[2]) >= 0.33


def test_the_code_is_black_on_white_with_a_quiet_zone() -> None:
    root = parsed(label(papers.device()))
    assert root[0].attrib == {"width": "100%", "height": "100%", "fill": "#fff"}
    (path,) = root.iter(f"{SVG}path")
    columns = [(int(x), int(x) + int(n)) for x, n in re.findall(r"M(\d+) \d+h(\d+)", path.attrib["d"])]
    size = next(int(c.attrib["viewBox"].split()[2]) for c in root.iter(f"{SVG}svg") if path in c)
    assert min(a for a, _ in columns) == 4
    assert max(b for _, b in columns) == size - 4


def test_the_reader_sees_a_damaged_code_as_none() -> None:
    """Negative control."""
    svg = re.sub(r"M4 4h7v1h-7z", "", label(papers.device()))
    svg = re.sub(r"M4 (\d+)h\d+v1h-\d+z", "", svg)
    assert scanned(parsed(svg)) == []


# What is printed -----------------------------------------------------------------------------------------------------


def test_a_label_is_50_by_25_millimetres_and_says_name_serial_mac_and_batch() -> None:
    root = parsed(label(papers.device()))
    assert (root.attrib["width"], root.attrib["height"], root.attrib["viewBox"]) == ("50mm", "25mm", "0 0 50 25")
    assert texts(root) == ["press-0001", "10000001", "b8:27:eb:00:00:01", "2026-11-a"]


def cells(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def assert_fits(root: ET.Element) -> None:
    """Nothing leaves the label or touches another thing on it, in any font not wider than WIDEST."""
    bottom = 0.0
    for node in root.iter(f"{SVG}text"):
        x, y, size = (float(node.attrib[name]) for name in ("x", "y", "font-size"))
        width = float(node.attrib.get("textLength", cells(node.text or "") * size * WIDEST))
        assert x >= MARGIN + QR, "beside the code"
        assert x + width <= WIDTH - MARGIN + 0.01, node.text
        assert y - size >= bottom - 0.01, "below the line before"
        assert y + 0.25 * size <= HEIGHT, node.text
        assert size >= 1.69, "can be read"
        bottom = y


LONG = st.text(st.characters(exclude_categories=["Cs"]), max_size=256) | st.text("0123456789abcdef", max_size=256)


@settings(max_examples=150, deadline=None)
@given(name=NAMES, serial=LONG, mac=LONG, batch=LONG)
def test_nothing_overflows_whatever_a_board_calls_itself(name: str, serial: str, mac: str, batch: str) -> None:
    svg = label(papers.device(name, serial, eth_mac=mac, batch=batch))
    root = parsed(svg)
    assert_fits(root)
    assert scanned(root) == [name]
    assert all(c.isprintable() or c == "\n" for c in svg)


def test_a_long_serial_number_keeps_both_ends() -> None:
    _, *serial = texts(parsed(label(papers.device(serial="ABCDEF" + "0" * 200 + "123456"))))[:3]
    assert serial[0].startswith("ABCDEF")
    assert serial[1].endswith("123456")
    assert "…" in "".join(serial)


def test_serial_numbers_of_raspberry_pis_are_whole_and_large() -> None:
    (node,) = (
        n
        for n in parsed(label(papers.device(serial="10000000abcdef01"))).iter(f"{SVG}text")
        if n.text == "10000000abcdef01"
    )
    assert float(node.attrib["font-size"]) > 2.2  # mm


def test_a_name_of_two_lines_is_split_in_the_middle() -> None:
    name = "a" * 30
    assert texts(parsed(label(papers.device(name))))[:2] == ["a" * 15, "a" * 15]


def test_without_fitting_long_texts_would_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "_fitted", lambda text, greatest, _lines: (greatest, [text]))
    with pytest.raises(AssertionError):
        assert_fits(parsed(label(papers.device(serial="0" * 64))))


# Hostile texts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "serial",
    [
        papers.MARKUP,
        "]]><script>",
        "&#x1b;&lt;",
        '"><image href="http://evil.example/x"/>',
        "<!DOCTYPE a>",
        "\x00\x1b[31m\ufffe\u202e",
    ],
)
def test_what_a_board_says_is_text_and_no_markup(serial: str) -> None:
    root = parsed(label(papers.device(serial=serial)))
    assert {node.tag.removeprefix(SVG) for node in root.iter()} == {"svg", "rect", "title", "path", "text"}
    expected = "".join(c if c.isprintable() else "?" for c in serial)
    assert "".join(texts(root)[1:-2]) == expected


def test_without_escaping_it_would_be_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "escape", lambda text: text)
    with pytest.raises((AssertionError, ET.ParseError)):
        test_what_a_board_says_is_text_and_no_markup("<image/>")


# Sheets --------------------------------------------------------------------------------------------------------------


def places(root: ET.Element) -> list[tuple[float, float]]:
    return [(float(s.attrib["x"]), float(s.attrib["y"])) for s in root.findall(f"{SVG}svg")]


@pytest.mark.parametrize(("count", "pages"), [(0, []), (1, [1]), (44, [44]), (45, [44, 1]), (100, [44, 44, 12])])
def test_sheets_hold_as_many_labels_as_fit_on_a4(count: int, pages: list[int]) -> None:
    devices = [papers.device(f"press-{n:04}") for n in range(count)]
    found = [parsed(page) for page in sheets(devices)]
    assert [len(places(root)) for root in found] == pages
    for root in found:
        assert (root.attrib["width"], root.attrib["height"]) == ("210mm", "297mm")
        taken = set()
        for x, y in places(root):
            assert 5 <= x <= PAGE[0] - 5 - WIDTH
            assert 5 <= y <= PAGE[1] - 5 - HEIGHT
            taken.add((round((x - 5) / WIDTH, 6), round((y - 5) / HEIGHT, 6)))
        assert len(taken) == len(places(root)), "none over another"
    assert ACROSS * DOWN == 44


def test_every_label_of_a_sheet_is_read_with_its_own_name() -> None:
    devices = [papers.device(f"press-{n:04}", serial=f"1000{n}") for n in range(44)]
    (page,) = sheets(devices)
    root = parsed(page)
    assert scanned(root) == [f"press-{n:04}" for n in range(44)]
    for place in root.findall(f"{SVG}svg"):
        name, serial, *_ = texts(place)
        assert scanned(place) == [name]
        assert serial == f"1000{int(name[6:])}"


# The command ---------------------------------------------------------------------------------------------------------


def test_one_file_for_each_device_and_a_sheet(made: World, tmp_path: Path) -> None:
    found = ok("station", "labels", "--out", tmp_path / "l", *at(made))
    assert found == {"directory": str(tmp_path / "l"), "labels": 4, "sheets": ["sheets/page-001.svg"]}
    files = {str(p.relative_to(tmp_path / "l")) for p in (tmp_path / "l").rglob("*.svg")}
    assert files == {*(f"press-000{n}.svg" for n in (1, 2, 3, 4)), "sheets/page-001.svg"}
    for n in (1, 2, 3, 4):
        assert scanned(parsed((tmp_path / "l" / f"press-000{n}.svg").read_text())) == [f"press-000{n}"]
    assert "4 labels in" in edgeseal("station", "labels", "--out", tmp_path / "l", *at(made)).stdout


def test_only_one_device_or_one_batch(made: World, tmp_path: Path) -> None:
    assert ok("station", "labels", "--out", tmp_path, "--device", "press-0002", *at(made))["labels"] == 1
    assert [p.name for p in tmp_path.glob("*.svg")] == ["press-0002.svg"]
    assert ok("station", "labels", "--out", tmp_path / "b", "--batch", "2026-12-b", *at(made))["labels"] == 1
    assert "no device 'press-9'" in refused(2, "station", "labels", "--out", tmp_path, "--device", "press-9", *at(made))
    assert "2026-11-a" in refused(2, "station", "labels", "--out", tmp_path, "--batch", "x", *at(made))


def test_sheets_of_an_earlier_longer_call_are_gone(made: World, tmp_path: Path) -> None:
    (tmp_path / "sheets").mkdir()
    for name in ("page-001.svg", "page-002.svg", "page-003.svg", "mine.svg"):
        (tmp_path / "sheets" / name).write_text("old")
    ok("station", "labels", "--out", tmp_path, *at(made))
    assert {p.name for p in (tmp_path / "sheets").iterdir()} == {"page-001.svg", "mine.svg"}
    assert "press-0001" in (tmp_path / "sheets" / "page-001.svg").read_text()


def test_a_place_that_is_a_file_is_said(made: World, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("x")
    assert "taken" in refused(1, "station", "labels", "--out", tmp_path / "taken", *at(made))
