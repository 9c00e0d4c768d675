"""`edgeseal station init`, `run` and `status` as a technician types them, right and wrong."""

from __future__ import annotations

import errno
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import termios
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit import station_world
from tests.unit.publisher_world import edgeseal, ok, refused

from edgeseal.errors import NoSpaceError
from edgeseal.provisioning import Stage
from edgeseal_host.station import cable, chain, ports
from edgeseal_host.station.journal import Journal
from edgeseal_host.station.simulation import simulated

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

pytestmark = pytest.mark.unit
FAST = 2_000_000


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> station_world.World:
    return station_world.World.make(tmp_path_factory.mktemp("station"))


@pytest.fixture
def world(made: station_world.World, tmp_path: Path) -> station_world.World:
    return made.copied(tmp_path / "world")


def place(world: station_world.World) -> list[object]:
    return ["--station", world.place / "station", "--keys", world.place / "keys"]


def run_words(world: station_world.World, *more: object) -> list[object]:
    passphrase = ["--passphrase-file", world.place / "passphrase"]
    return ["station", "run", *place(world), *passphrase, "--batch", world.place / "batch.toml", *more]


def events(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


# init ----------------------------------------------------------------------------------------------------------------


def test_init_makes_a_station_and_says_what_to_keep(tmp_path: Path) -> None:
    words = ["station", "init", "--name", "line 1", "--station", tmp_path / "s", "--keys", tmp_path / "k"]
    result = edgeseal(*words, "--no-passphrase")
    assert result.exit_code == 0, result.output
    for said in ("only this station can reset them", "it cannot be made again", "station run --batch"):
        assert said in result.output
    found = ok("station", "status", "--station", tmp_path / "s", "--keys", tmp_path / "k")
    assert (found["station"], found["entries"], found["running"], found["unfinished"]) == ("line 1", 1, False, [])
    assert found["pin"][:32] in result.output
    assert "[batch]" in (tmp_path / "s" / "batch.toml").read_text()
    assert "holds a station already" in refused(3, *words, "--no-passphrase")
    assert (tmp_path / "k" / "station.key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        (["--name", "line 1"], 2, "how is the key protected?"),
        (["--name", "", "--no-passphrase"], 2, "cannot be a station's name"),
        (["--name", "a\x1bb", "--no-passphrase"], 2, "cannot be a station's name"),
        (["--name", "x" * 65, "--no-passphrase"], 2, "cannot be a station's name"),
        (["--name", "x", "--no-passphrase", "--key", "../x"], 2, "cannot be a key's name"),
        (["--no-passphrase"], 2, "--name"),
    ],
)
def test_init_typed_wrongly(tmp_path: Path, more: list[str], code: int, says: str) -> None:
    said = refused(code, "station", "init", "--station", tmp_path / "s", "--keys", tmp_path / "k", *more)
    assert says in said
    assert not (tmp_path / "s" / "station.json").exists()
    assert not (tmp_path / "k").exists(), "no key without its station"


@pytest.mark.parametrize("survives", ["directory", "journal", "entry"])
def test_init_that_was_killed_can_be_done_again(tmp_path: Path, survives: str) -> None:
    (tmp_path / "s").mkdir()
    if survives != "directory":
        journal = Journal(tmp_path / "s" / "journal.db", now=lambda: 1)
        if survives == "entry":
            journal.append(chain.OPENED, detail={"station": "line 1", "pin": "00"})
        journal.close()
    words = ["--station", tmp_path / "s", "--keys", tmp_path / "k"]
    ok("station", "init", "--name", "line 1", "--no-passphrase", *words)
    assert ok("station", "status", *words)["entries"] == 1


def test_init_never_replaces_a_journal_that_has_more_than_its_first_entry(world: station_world.World) -> None:
    with world.journal() as journal:
        journal.append(chain.BEGAN)
    world.directory.file.unlink()
    assert "holds a station already" in refused(
        3, "station", "init", "--name", "x", "--no-passphrase", "--key", "x", *place(world)
    )


# run -----------------------------------------------------------------------------------------------------------------


def test_run_on_ports_provisions_and_writes_everything_down(world: station_world.World) -> None:
    with simulated(3, baud=FAST, suite=1) as devices:
        more = [word for device in devices for word in ("--port", device.path)]
        result = edgeseal(
            *run_words(world, *more, "--once", "--json", "--operator", "anna", "--fixture", "jig 2", "--baud", "921600")
        )
        assert result.exit_code == 0, result.output
        assert [d.home.stage() for d in devices] == [Stage.LOCKED] * 3
    *changes, end = events(result.stdout)
    passed = [e for e in changes if e.get("phase") == "passed"]
    assert {e["device"] for e in passed} == {"press-0001", "press-0002", "press-0003"}
    assert {"event", "port", "phase", "serial", "device", "step", "seconds"} == set(passed[0])
    assert (end["event"], end["passed"], end["failed"], end["exit_code"], end["unfinished"]) == ("end", 3, 0, 0, [])
    with world.journal() as journal:
        began = journal.last(chain.BEGAN)
        locked = journal.last(chain.LOCKED)
        assert began is not None
        assert locked is not None
        assert (began.operator, began.fixture, began.batch) == ("anna", "jig 2", "2026-11-a")
        assert locked.fixture.startswith("jig 2 /dev/pts/")
        assert journal.verify(world.directory.public().check)[0] == journal.verify(world.directory.public().check)[1]
    found = ok("station", "status", *place(world))
    (batch,) = found["batches"]
    assert (batch["batch"], batch["locked"], batch["failed"]) == ("2026-11-a", 3, 0)


def test_run_for_a_person_says_pass_and_fail_and_ends_with_1(world: station_world.World) -> None:
    with simulated(2, baud=FAST, suite=1, copies=1) as devices:
        more = [word for device in devices for word in ("--port", device.path)]
        said = refused(1, *run_words(world, *more, "--once"))
    assert "PASS (" in said
    assert "FAIL: simulated-0" in said
    assert "put the device aside: its random source is dead or its card is a copy" in said
    assert "1 PASS, 1 FAIL, 0 done before, yield 50.0 %" in said


@pytest.mark.parametrize(
    ("change", "more", "code", "says"),
    [
        ({"--station": "elsewhere"}, [], 2, "is not a station's directory\nhint: edgeseal station init makes one"),
        ({"--batch": None}, [], 2, "which devices? --batch FILE says so"),
        ({"--batch": "nothing.toml"}, [], 2, "there is no batch file"),
        ({"--passphrase-file": "wrong"}, ["--port", "auto"], 4, "line-1 does not open with this passphrase"),
        ({"--passphrase-file": None}, ["--port", "auto"], 4, "line-1 is under a passphrase"),
        ({}, ["--port", "/dev/ttyNONE7", "--once"], 2, "there is no port /dev/ttyNONE7\nhint: serial ports on USB now"),
        ({}, ["--port", "ttyUSB0"], 2, "there is no port ttyUSB0"),
        ({}, ["--port", "batch.toml"], 2, "is no serial port"),
        ({}, ["--baud", "9"], 2, "--baud"),
        ({}, ["--operator", "a\x1b[2J"], 2, "--operator: expected at most 64 printable characters"),
        ({}, ["--fixture", "x" * 65], 2, "--fixture: expected at most 64 printable characters"),
        ({}, ["--copies", "1"], 2, "--copies and --keep are for --simulate"),
        ({}, ["--simulate", "2", "--port", "auto"], 2, "simulated devices have no --port"),
        ({}, ["--simulate", "2", "--to", "https://fleet.example"], 2, "go to no fleet server"),
        ({}, ["--to", "https://fleet.example"], 2, "--to URL and --token FILE are needed"),
    ],
)
def test_run_typed_wrongly_says_what_to_do(
    world: station_world.World,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, str | None],
    more: list[str],
    code: int,
    says: str,
) -> None:
    monkeypatch.chdir(world.place)
    (world.place / "wrong").write_text("not it\n")
    options: dict[str, str | None] = {
        "--station": "station",
        "--keys": "keys",
        "--passphrase-file": "passphrase",
        "--batch": "batch.toml",
        **change,
    }
    words = [word for option, value in options.items() if value is not None for word in (option, value)]
    before = station_world.everything_below(world.place / "station")
    assert says in refused(code, "station", "run", *words, *more)
    assert station_world.everything_below(world.place / "station") == before, "a mistake is no run"


def test_a_port_that_is_none_fails_with_once(world: station_world.World) -> None:
    said = refused(1, *run_words(world, "--port", "/dev/null", "--once"))
    assert "/dev/null: nobody: FAIL: it is no serial port; use another port" in said


def test_run_with_a_wrong_key_in_the_batch_file_names_the_key(world: station_world.World) -> None:
    path = world.place / "batch.toml"
    path.write_text(station_world.BATCH.replace("group =", "gruop ="))
    said = refused(2, *run_words(world))
    assert "error: batch.toml: batch.gruop: there is no such key\nhint: did you mean group?" in said


def test_two_runs_on_one_journal_at_once(world: station_world.World) -> None:
    with world.journal():
        said = refused(5, *run_words(world, "--port", "/dev/tty"))
        assert "a run of this station is going on\nhint: end it first (Ctrl-C)" in said
        assert ok("station", "status", *place(world))["running"] is True


def test_a_journal_of_another_station_is_refused(world: station_world.World, tmp_path: Path) -> None:
    """As it is after a restore of half a backup; no run has ended in it, so no signature tells."""
    other = ["--station", tmp_path / "other", "--keys", tmp_path / "k"]
    ok("station", "init", "--name", "line 2", "--no-passphrase", *other)
    for name in ("journal.db", "journal.head"):
        (world.directory.path / name).write_bytes((tmp_path / "other" / name).read_bytes())
    for words in (run_words(world), ["station", "status", *place(world)]):
        said = refused(3, *words)
        assert "journal.db is that of line 2, the key is that of line 1" in said
        assert "from the same backup" in said


def test_a_disk_that_is_full_before_anything_was_done(
    world: station_world.World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise NoSpaceError("there is no space left to write journal.db", hint="free some space on the station")

    monkeypatch.setattr(Journal, "append", full)
    said = refused(5, *run_words(world, "--port", "/dev/tty"))
    assert "there is no space left to write journal.db\nhint: free some space" in said


def test_status_shows_what_an_earlier_run_left_unfinished(world: station_world.World) -> None:
    class Gone(BaseException):
        pass

    with world.journal() as journal, simulated(1, baud=FAST, suite=1) as (device,):
        book = world.book(journal)
        book.provisioned = lambda _: (_ for _ in ()).throw(Gone)  # type: ignore[method-assign,assignment]
        with pytest.raises(Gone):
            world.provision(book, device.home)
    found = ok("station", "status", *place(world))
    (left,) = found["unfinished"]
    assert (left["serial"], left["device"], left["since"]) == ("simulated-0001", "press-0001", "granted")
    said = edgeseal("station", "status", *place(world)).output
    assert "unfinished: put simulated-0001 on a port again: it goes on as press-0001" in said


# Simulated -----------------------------------------------------------------------------------------------------------


def command(*words: object, cwd: Path, **more: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "HOME": str(cwd), "XDG_DATA_HOME": str(cwd / "data")}
    return subprocess.Popen(
        [sys.executable, "-c", "from edgeseal_host.cli import main; main()", *map(str, words)],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def test_simulate_needs_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    process = command("station", "run", "--simulate", 4, "--copies", 1, "--once", "--baud", FAST, cwd=tmp_path)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1, out + err
    assert "SIMULATED: no device, no fleet; nothing of this counts" in out
    assert "3 PASS, 1 FAIL" in out
    assert list(tmp_path.iterdir()) == [], "an empty directory stays empty"


def test_nothing_of_a_simulation_can_be_taken_for_production(world: station_world.World, tmp_path: Path) -> None:
    keep = tmp_path / "kept"
    before = station_world.everything_below(world.place)
    words = run_words(world, "--simulate", 2, "--once", "--keep", keep, "--baud", FAST)
    result = edgeseal(*words)
    assert result.exit_code == 0, result.output
    assert station_world.everything_below(world.place) == before, "the real station is not touched"
    journal = Journal(keep / "journal.db", now=lambda: 1)
    for entry in journal:
        if entry.kind == chain.OPENED:
            assert entry.details()["station"] == "simulated station"
            continue
        assert entry.batch == "simulated-2026-11-a"
        assert all(text.startswith("simulated-") for text in (entry.device, entry.serial) if text)
    journal.close()
    assert ok("station", "status", "--station", keep, "--keys", keep / "keys")["batches"][0]["locked"] == 2
    assert "holds a station already" in refused(3, *words)


def test_simulate_with_require_a_board_and_suite_2(world: station_world.World) -> None:
    text = station_world.BATCH.replace('entropy = "mix"', 'entropy = "require"\nsuite = 2\nhardware = ["some-board"]')
    (world.place / "batch.toml").write_text(text)
    result = edgeseal(*run_words(world, "--simulate", 1, "--once", "--baud", FAST, "--json"))
    assert result.exit_code == 0, result.output
    assert events(result.stdout)[-1]["passed"] == 1


# Ended ---------------------------------------------------------------------------------------------------------------


def wait_for_line(process: subprocess.Popen[str], words: Sequence[str]) -> str:
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if all(word in line for word in words):
            return line
    raise AssertionError("".join(said))


def test_a_run_without_a_device_that_is_ended_is_no_failure(world: station_world.World) -> None:
    master, slave = pty.openpty()
    process = command(*run_words(world, "--port", os.ttyname(slave), "--json"), cwd=world.place)
    wait_for_line(process, ['"phase": "waiting"'])
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, "")
    os.close(master)
    os.close(slave)
    assert events(out)[-1]["exit_code"] == 0
    with world.journal() as journal:
        assert journal.verify(world.directory.public().check)[1] == 3, "opened, began, ended: signed"


def test_ctrl_c_in_a_dialogue_names_the_device_and_the_next_run_finishes_it(world: station_world.World) -> None:
    with simulated(1, baud=115_200, suite=1) as (device,):
        words = run_words(world, "--port", device.path, "--once", "--baud", 115_200)
        process = command(*words, "--json", cwd=world.place)
        wait_for_line(process, ['"step": "granted"'])
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=20)
        assert process.returncode == 130
        assert events(out)[-1]["unfinished"] == ["simulated-0001"]
        result = edgeseal(*words)
        assert result.exit_code == 0, result.output
        assert "unfinished: put simulated-0001 on a port again: it goes on as press-0001" in result.output
        assert device.home.identities == 1


def test_whoever_reads_the_events_goes_away(world: station_world.World) -> None:
    """`| head -1`: the run ends quietly, and its end is in the journal."""
    master, slave = pty.openpty()
    port = world.place / "ttyUSB0"
    port.symlink_to(os.ttyname(slave))
    process = command(*run_words(world, "--port", port, "--json"), cwd=world.place)
    wait_for_line(process, ['"phase": "waiting"'])
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    port.unlink()  # now there is something to say
    assert process.wait(30) == 1
    assert process.stderr.read() == ""
    process.stderr.close()
    for fd in (master, slave):
        os.close(fd)
    with world.journal() as journal:
        assert journal.last(chain.ENDED) is not None


# Ports ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "reason", "remedy"),
    [
        (OSError(errno.EACCES, "x"), "this user may not open it", "usermod -aG"),
        (OSError(errno.EBUSY, "x"), "another program has it open", "fuser -v"),
        (OSError(errno.EAGAIN, "x"), "another program has it open", "fuser -v"),
        (OSError(errno.ENODEV, "x"), "it is gone", "plug it in again"),
        (OSError(errno.EMFILE, "x"), "Too many open files", "use another port"),
        (termios.error(errno.EIO, "x"), "it is gone", "plug it in again"),
        (termios.error("odd"), "it is no serial port", "use another port"),
        (OSError("no number"), "it is no serial port", "use another port"),
        (ValueError("x"), "it cannot do 1234 baud", "choose another --baud"),
    ],
)
def test_why_a_port_cannot_be_opened(
    error: Exception, reason: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cable, "_group_of", lambda _: "dialout")
    found = cable._problem(error, str(tmp_path), 1234)
    assert found.reason == reason
    assert remedy in found.remedy


def test_no_permission_names_the_group_of_the_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "anna")
    monkeypatch.setattr(cable, "_group_of", lambda _: "dialout")
    found = cable._problem(PermissionError(errno.EACCES, "x"), "/dev/ttyUSB0", 115_200)
    assert found.remedy == "sudo usermod -aG dialout anna; then log out and in again"
    monkeypatch.undo()
    assert cable._how_to_get_in(str(tmp_path / "gone")).startswith("ask whoever")


@pytest.mark.skipif(
    not os.path.exists("/dev/console") or os.access("/dev/console", os.R_OK | os.W_OK),  # noqa: PTH110
    reason="needs a terminal that this user may not open",
)
def test_a_port_of_somebody_else() -> None:
    found = cable.Cable("/dev/console", 115_200)
    assert not found.open()
    assert found.problem is not None
    assert found.problem.reason == "this user may not open it"


@pytest.fixture
def usb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """A computer without ports; the function plugs one in: its name, its bus."""
    devices, ttys = tmp_path / "dev", tmp_path / "sys"
    for made in (devices, ttys):
        made.mkdir()
    monkeypatch.setattr(ports, "_DEVICES", devices)
    monkeypatch.setattr(ports, "_TTYS", ttys)

    def plug(name: str, bus: str) -> None:
        (tmp_path / "bus" / bus).mkdir(parents=True, exist_ok=True)
        (ttys / name / "device").mkdir(parents=True)
        (ttys / name / "device" / "subsystem").symlink_to(tmp_path / "bus" / bus)
        (devices / name).touch()

    return plug


def test_auto_finds_what_is_plugged_into_usb_as_it_comes_and_goes(
    usb: Callable[[str, str], None], tmp_path: Path
) -> None:
    find = ports.finder([ports.AUTO], without=[str(tmp_path / "dev" / "ttyACM1")])
    assert find() == []
    for name, bus in (("ttyS0", "pnp"), ("ttyAMA0", "amba"), ("ttyUSB10", "usb-serial"), ("ttyUSB9", "usb-serial")):
        usb(name, bus)
    usb("ttyACM0", "usb")
    usb("ttyACM1", "usb")
    names = [os.path.basename(path) for path in find()]
    assert names == ["ttyACM0", "ttyUSB9", "ttyUSB10"]
    (tmp_path / "dev" / "ttyUSB9").unlink()  # pulled out: /dev first, /sys later, or the other way round
    shutil.rmtree(tmp_path / "sys" / "ttyACM0")
    assert [os.path.basename(path) for path in find()] == ["ttyUSB10"]


def test_auto_and_a_name_for_the_same_port(usb: Callable[[str, str], None], tmp_path: Path) -> None:
    usb("ttyUSB0", "usb-serial")
    by_id = tmp_path / "by-id"
    by_id.symlink_to(tmp_path / "dev" / "ttyUSB0")
    assert ports.finder([ports.AUTO, str(by_id)])() == [str(by_id)]


def test_two_names_of_one_port_are_one_port(tmp_path: Path) -> None:
    (tmp_path / "ttyUSB0").touch()
    (tmp_path / "by-id").symlink_to(tmp_path / "ttyUSB0")
    find = ports.finder([str(tmp_path / "ttyUSB0"), str(tmp_path / "by-id")])
    assert len(find()) == 1
    (tmp_path / "ttyUSB0").unlink()
    assert find() == []
