"""Captures: the bytes NIST's tool reads, the record beside them, and nothing ever overwritten or glued together."""

from __future__ import annotations

import hashlib
import json
from array import array
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeseal.entropy.capture import DISCARDED, Files, Plan, capture, kept
from edgeseal.entropy.drivers.base import Description, Gone, Hung, Profile, Reading, Symbols
from edgeseal.errors import TemporaryError, UsageError
from edgeseal.stick import frame

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.unit


class Counter:
    """A device whose samples are their own numbers, so that every byte of a capture can be foretold."""

    profile = Profile("counter", "unknown", "none")

    def __init__(self, bits: int = 12, size: int = 480) -> None:
        self.symbols = Symbols(bits, 1.0 if bits == 1 else 4.0, raw=True)
        self.size, self.next, self.closed, self.flags = size, 0, 0, 0
        self.counts = True  # it numbers its samples
        self.serial = "A1"
        self.before: Callable[[Counter], None] = lambda _: None

    def describe(self) -> Description:
        return Description("counter", "mem:0", serial=self.serial)

    def read(self, *, timeout: float) -> Reading:
        assert timeout > 0
        self.before(self)
        first, self.next = self.next, self.next + self.size
        samples = [n % (1 << self.symbols.bits) for n in range(first, self.next)]
        made: object = bytes(samples) if self.symbols.bits <= 8 else array("H", samples)
        return Reading(made, first if self.counts else None, None, self.flags)  # type: ignore[arg-type]

    def close(self) -> None:
        self.closed += 1


def low(first: int, count: int) -> bytes:
    return bytes(n & 255 for n in range(first, first + count))


def test_a_sequence_is_consecutive_samples_one_a_byte(tmp_path: Path) -> None:
    device = Counter()
    told: list[tuple[str, int, int]] = []
    about = capture(lambda: device, tmp_path / "x", Plan(10_000), progress=lambda *a: told.append(a))
    assert (tmp_path / "x.bin").read_bytes() == low(DISCARDED, 10_000)
    assert json.loads((tmp_path / "x.json").read_text()) == about
    assert about["files"] == {"x.bin": hashlib.sha256(low(DISCARDED, 10_000)).hexdigest()}
    assert (about["width"], about["sample_bits"], about["first_sample"]) == (8, 12, DISCARDED)
    assert about["device"]["serial"] == "A1"
    assert about["complete"]
    assert told[-1] == ("capture", 10_000, 10_000)
    assert device.closed == 1
    assert (tmp_path / "x.bin").stat().st_mode & 0o077 == 0


@given(st.sampled_from([1, 8, 12, 16]), st.integers(0, 8), st.integers(1, 700), st.integers(1, 97))
@settings(max_examples=40, deadline=None)
def test_every_width_shift_and_frame_size(
    tmp_path_factory: pytest.TempPathFactory, bits: int, shift: int, count: int, size: int
) -> None:
    name = tmp_path_factory.mktemp("c") / "x.bin"
    device = Counter(bits, size)
    if (bits <= 8 and shift) or (bits > 8 and shift + 8 > bits):
        with pytest.raises(UsageError):
            capture(lambda: device, name, Plan(count, shift=shift))
        assert not name.exists()
        return
    about = capture(lambda: device, name, Plan(count, shift=shift))
    expected = bytes(n % (1 << bits) >> shift & 255 for n in range(DISCARDED, DISCARDED + count))
    assert name.read_bytes() == expected
    assert about["width"] == min(bits, 8)


def test_restarts_are_rows_and_their_transpose_columns(tmp_path: Path) -> None:
    opened: list[Counter] = []

    def opener() -> Counter:
        opened.append(Counter())
        opened[-1].next = 7 * len(opened)
        return opened[-1]

    about = capture(opener, tmp_path / "r.bin", Plan(20, rows=5))
    rows = [low(7 * (i + 1) + DISCARDED, 20) for i in range(5)]
    assert (tmp_path / "r.bin").read_bytes() == b"".join(rows)
    columns = (tmp_path / "r.columns.bin").read_bytes()
    assert columns == bytes(rows[i][j] for j in range(20) for i in range(5))
    assert len(opened) == 5
    assert all(d.closed == 1 for d in opened)
    assert about["layout"] == {"kind": "restarts", "restarts": 5, "samples": 20}
    assert set(about["files"]) == {"r.bin", "r.columns.bin"}
    assert [f.name for f in tmp_path.iterdir() if f.stat().st_mode & 0o077] == []
    assert not (tmp_path / "r.bin.part").exists()


def interrupted(tmp_path: Path, rows: int) -> None:
    made = 0

    def opener() -> Counter:
        nonlocal made
        made += 1
        if made > rows:
            raise Gone("counter was unplugged")
        return Counter()

    with pytest.raises(Gone):
        capture(opener, tmp_path / "r", Plan(20, rows=5))


def test_an_interrupted_capture_of_restarts_goes_on_where_it_was(tmp_path: Path) -> None:
    interrupted(tmp_path, 3)
    with (tmp_path / "r.bin.part").open("ab") as f:
        f.write(b"half a row")
    with pytest.raises(UsageError, match="was interrupted"):
        capture(Counter, tmp_path / "r", Plan(20, rows=5))
    about = capture(Counter, tmp_path / "r", Plan(20, rows=5), resume=True)
    assert (tmp_path / "r.bin").read_bytes() == low(DISCARDED, 20) * 5
    assert about["complete"]


def test_resuming_with_another_device_or_plan_is_refused(tmp_path: Path) -> None:
    interrupted(tmp_path, 3)

    def another() -> Counter:
        device = Counter()
        device.serial = "B2"
        return device

    with pytest.raises(UsageError, match=r"A1.*B2"):
        capture(another, tmp_path / "r", Plan(20, rows=5), resume=True)
    with pytest.raises(UsageError, match="other numbers"):
        capture(Counter, tmp_path / "r", Plan(21, rows=5), resume=True)
    (tmp_path / "r.json").write_text("[]")
    with pytest.raises(UsageError, match="does not describe"):
        capture(Counter, tmp_path / "r", Plan(20, rows=5), resume=True)
    assert (tmp_path / "r.bin.part").read_bytes() == low(DISCARDED, 20) * 3


@pytest.mark.parametrize("there", ["x.bin", "x.columns.bin", "x.json"])
def test_nothing_is_overwritten(tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_bytes(b"old")
    device = Counter()
    with pytest.raises(UsageError, match="is there already"):
        capture(lambda: device, tmp_path / "x", Plan(10))
    assert (tmp_path / there).read_bytes() == b"old"
    assert device.next == 0  # it was not even read


def test_a_place_that_cannot_be_written_to_is_found_before_an_hour_of_sampling(tmp_path: Path) -> None:
    device = Counter()
    with pytest.raises(UsageError, match="no directory"):
        capture(lambda: device, tmp_path / "nowhere" / "x", Plan(10))
    assert device.next == 0


def test_a_sequence_cannot_be_resumed(tmp_path: Path) -> None:
    Files.named(tmp_path / "x").part.write_bytes(b"")
    with pytest.raises(UsageError, match="not be consecutive"):
        capture(Counter, tmp_path / "x", Plan(10), resume=True)
    (tmp_path / "x.bin.part").unlink()
    with pytest.raises(UsageError, match="go on with"):
        capture(Counter, tmp_path / "x", Plan(10), resume=True)


def test_a_sequence_with_a_gap_is_begun_again_and_said(tmp_path: Path) -> None:
    device = Counter()

    def lose(d: Counter) -> None:
        if d.next == 960:
            d.next += 480

    device.before = lose
    about = capture(lambda: device, tmp_path / "x", Plan(5000))
    assert about["begun_again"] == 1
    assert (tmp_path / "x.bin").read_bytes() == low(about["first_sample"], 5000)


def test_without_the_check_a_gap_would_be_in_the_file(tmp_path: Path) -> None:
    """The control: a device that does not count its samples shows no gap."""
    device = Counter()
    device.counts = False

    def lose(d: Counter) -> None:
        if d.next == 960:
            d.next += 480

    device.before = lose
    about = capture(lambda: device, tmp_path / "x", Plan(5000))
    assert about["begun_again"] == 0
    assert (tmp_path / "x.bin").read_bytes() != low(DISCARDED, 5000)


def test_a_device_that_loses_samples_all_the_time_ends_the_capture_without_a_file(tmp_path: Path) -> None:
    device = Counter()
    device.before = lambda d: setattr(d, "next", d.next + 1)
    with pytest.raises(TemporaryError, match="samples were lost"):
        capture(lambda: device, tmp_path / "x", Plan(5000))
    assert list(tmp_path.iterdir()) == []
    assert device.closed == 1


def test_a_slow_device_is_waited_for_but_not_for_ever(tmp_path: Path) -> None:
    device, hung = Counter(), iter([True, False] * 3 + [True] * 9)

    def before(_: Counter) -> None:
        if next(hung):
            raise Hung("nothing came")

    device.before = before
    capture(lambda: device, tmp_path / "x", Plan(1000))
    with pytest.raises(Hung):
        capture(lambda: device, tmp_path / "y", Plan(1000))
    assert not (tmp_path / "y.bin").exists()


def test_flags_of_the_device_are_recorded_even_if_it_is_simulated_or_alarmed(tmp_path: Path) -> None:
    device = Counter()
    device.flags = frame.SIMULATED | frame.RCT_ALARM | frame.LED_ON
    assert capture(lambda: device, tmp_path / "x", Plan(1000))["flags"] == ["rct alarm", "simulated"]


def test_a_full_disk_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edgeseal.entropy.capture.write_atomic", full)
    with pytest.raises(OSError, match="No space"):
        capture(Counter, tmp_path / "x", Plan(1000))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("plan", [(0, None, 0), (1, 0, 0), (1, 1, 9), (1, 1, -1)])
def test_plans_that_are_no_capture(plan: tuple[int, int | None, int]) -> None:
    with pytest.raises(UsageError):
        Plan(*plan)


def test_what_is_kept_of_a_sample() -> None:
    assert kept(1, 0) == (1, 0)
    assert kept(12, 2) == (8, 2)
    assert replace(Plan(), shift=4).shift == 4
