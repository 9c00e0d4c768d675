"""What scanners, and hands that are not scanners, type on a station's standard input."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import pty
import select
import sys
import termios
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeseal_host.station import scanner
from edgeseal_host.station.scanner import MAX_LINE, Scanner, standard_input

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

pytestmark = pytest.mark.unit
SERIALS = st.text(
    st.characters(min_codepoint=33, max_codepoint=0x2FF, categories=["L", "N", "P", "S"]), min_size=1, max_size=40
)
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


@contextlib.contextmanager
def piped() -> Iterator[tuple[Scanner, int]]:
    there, here = os.pipe()
    try:
        yield Scanner(there), here
    finally:
        os.close(there)
        with contextlib.suppress(OSError):
            os.close(here)


def typed(pieces: Sequence[bytes], *, ended: bool = False) -> tuple[list[str], Scanner]:
    """What comes out when each piece arrives on its own."""
    found = []
    with piped() as (made, here):
        for piece in pieces:
            os.write(here, piece)
            found += made.read()
        if ended:
            os.close(here)
            while made.is_open:
                found += made.read()
    return found, made


def cut(data: bytes, places: list[int]) -> list[bytes]:
    marks = sorted({p % (len(data) + 1) for p in places} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(marks)]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["lf", "crlf", "cr"])
def test_however_a_scanner_ends_its_lines_there_is_one_of_each(end: bytes) -> None:
    assert typed([b"1000abcd" + end + b"1000abce" + end])[0] == ["1000abcd", "1000abce"]


def test_a_scanner_that_types_slowly_is_waited_for() -> None:
    with piped() as (made, here):
        for character in b"1000abcd":
            os.write(here, bytes([character]))
            assert made.read() == []
        os.write(here, b"\r")
        assert made.read() == ["1000abcd"]


def test_a_line_end_in_two_pieces_is_not_the_enter_key() -> None:
    """Enter alone tries again what failed: no scanner may do that by accident."""
    assert typed([b"1000abcd\r", b"\n"])[0] == ["1000abcd"]
    assert typed([b"1000abcd\r", b"\n1000abce\r", b"\n\n"])[0] == ["1000abcd", "1000abce", ""]


def test_the_enter_key_alone_is_an_empty_line() -> None:
    assert typed([b"\n", b" \r\n", b"\r"])[0] == ["", "", ""]


@pytest.mark.parametrize(
    "line",
    [b"\xff\xfe1000abcd", b"\x1b[A", b"1000\x00abcd", b"1000\tabcd", "1000\u202eabcd".encode(), b"x" * (MAX_LINE + 1)],
    ids=["not-utf-8", "arrow-key", "nul", "tab", "turned-around", "too-long"],
)
def test_garbage_is_refused_whole_and_what_follows_is_read(line: bytes) -> None:
    found, made = typed([line + b"\n1000abcd\n"])
    assert found == ["1000abcd"]
    assert made.refused == 1


def test_the_longest_line_is_one_that_may_be() -> None:
    assert typed([b"x" * MAX_LINE + b"\r\n"])[0] == ["x" * MAX_LINE]


def test_serial_numbers_need_not_be_ascii() -> None:
    data = "Prüfling-№7\r\n".encode()
    assert typed([data[:3], data[3:]])[0] == ["Prüfling-№7"]


def test_a_cat_on_the_keyboard_takes_no_memory_and_no_line() -> None:
    with piped() as (made, here):
        for _ in range(200):
            os.write(here, b"k" * 4096)
            assert made.read() == []
            assert len(made._pending) <= MAX_LINE + 4096
        os.write(here, b"\n1000abcd\n")
        assert made.read() == ["1000abcd"]
        assert made.refused == 1


def test_the_last_line_of_a_file_may_lack_its_end() -> None:
    found, made = typed([b"1000abcd\n1000abce"], ended=True)
    assert found == ["1000abcd", "1000abce"]
    assert not made.is_open


def test_the_end_alone_is_not_the_enter_key() -> None:
    assert typed([], ended=True)[0] == []
    assert typed([b"1000abcd\n"], ended=True)[0] == ["1000abcd"]


def test_a_descriptor_that_does_not_block_and_has_nothing_stays_open() -> None:
    there, here = os.pipe()
    try:
        os.set_blocking(there, False)
        made = Scanner(there)
        assert made.read() == []
        assert made.is_open
    finally:
        os.close(there)
        os.close(here)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(SERIALS, ENDS), min_size=1, max_size=6), st.lists(st.integers(0, 400), max_size=12))
def test_pieces_never_change_what_was_typed(lines: list[tuple[str, bytes]], places: list[int]) -> None:
    data = b"".join(text.encode() + end for text, end in lines)
    assert typed(cut(data, places))[0] == [text for text, _ in lines]


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=600), st.lists(st.integers(0, 600), max_size=12))
def test_any_bytes_give_only_short_printable_lines(data: bytes, places: list[int]) -> None:
    found, made = typed(cut(data, places), ended=True)
    assert all(text.isprintable() and len(text.encode()) <= MAX_LINE and text == text.strip() for text in found)
    whole, _ = typed([data] if data else [], ended=True)
    assert found == whole
    assert made.refused + len(found) <= data.count(b"\n") + data.count(b"\r") + 1


def test_what_was_left_out_and_the_end_are_said_once() -> None:
    with piped() as (made, here):
        os.write(here, b"\xff\n")
        assert made.read() == []
        assert "no serial number" in made.complaint()
        assert made.complaint() == ""
        os.close(here)
        assert made.read() == []
        assert "ended" in made.complaint()
        assert made.complaint() == ""


# Where standard input is something else ---------------------------------------------------------------------------


@contextlib.contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, int]]:
    """Standard input on a pseudo-terminal; gives both ends."""
    master, keeper = pty.openpty()
    with os.fdopen(keeper, "r", closefd=False) as text:
        monkeypatch.setattr(sys, "stdin", text)
        try:
            yield master, keeper
        finally:
            for fd in (master, keeper):
                with contextlib.suppress(OSError):
                    os.close(fd)


def is_echoing(fd: int) -> bool:
    return bool(termios.tcgetattr(fd)[3] & termios.ECHO)


def test_on_a_terminal_nothing_is_echoed_until_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as (master, keeper):
        assert is_echoing(keeper)
        with standard_input() as made:
            assert made is not None
            assert not is_echoing(keeper)
            os.write(master, b"1000abcd\r")  # a keyboard's Enter is CR
            assert select.select([made], [], [], 5.0)[0]
            assert made.read() == ["1000abcd"]
            assert not select.select([master], [], [], 0.05)[0], "it was echoed"
        assert is_echoing(keeper)


def test_no_key_but_ctrl_c_stops_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-S would hold every line up, Ctrl-Z too, and a core file has secrets in it."""
    with terminal(monkeypatch) as (master, keeper):
        before = termios.tcgetattr(keeper)
        with standard_input() as made:
            assert made is not None
            _, _, _, flags, _, _, keys = termios.tcgetattr(keeper)
            assert flags & termios.ISIG
            assert keys[termios.VINTR] == b"\x03"
            os.write(master, b"\x1a\x1c\x13\r1000abcd\r")
            assert select.select([made], [], [], 5.0)[0]
            found = made.read()
            while not found:  # a terminal gives one line at a time
                found += made.read()
            assert found == ["1000abcd"]
            assert made.refused == 1
        assert termios.tcgetattr(keeper) == before


def test_echo_comes_back_when_the_run_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as (_, keeper):
        with pytest.raises(KeyboardInterrupt), standard_input():
            raise KeyboardInterrupt
        assert is_echoing(keeper)


def test_a_terminal_that_was_closed_meanwhile_is_no_second_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as (master, _), standard_input() as made:
        assert made is not None
        os.close(master)
        assert made.read() == []
        assert not made.is_open


def test_ctrl_d_ends_the_scanner_and_not_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as (master, _), standard_input() as made:
        assert made is not None
        os.write(master, b"1000\x04")
        assert select.select([made], [], [], 5.0)[0]
        assert made.read() == []  # Ctrl-D behind text sends the text
        os.write(master, b"\x04")
        assert select.select([made], [], [], 5.0)[0]
        assert made.read() == ["1000"]
        assert not made.is_open


def test_standard_input_that_was_closed_is_no_scanner(monkeypatch: pytest.MonkeyPatch) -> None:
    for nothing in (None, io.StringIO("1000\n")):  # `<&-` of a shell, and a program that calls this one
        monkeypatch.setattr(sys, "stdin", nothing)
        with standard_input() as made:
            assert made is None


def test_dev_null_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        with standard_input() as made:
            assert made is not None
            assert made.read() == []
            assert not made.is_open


# Negative controls --------------------------------------------------------------------------------------------------


def test_without_the_memory_of_cr_an_enter_would_be_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scanner, "_without_half_an_end", lambda _self, data: data)
    with pytest.raises(AssertionError):
        test_a_line_end_in_two_pieces_is_not_the_enter_key()


def test_without_the_check_of_texts_escapes_would_come_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanner, "_clean", lambda line: line.decode("latin-1"))
    with pytest.raises(AssertionError):
        test_garbage_is_refused_whole_and_what_follows_is_read(b"\x1b[A")
