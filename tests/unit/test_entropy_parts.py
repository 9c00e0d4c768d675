"""The small parts around a source: conditioner, frames, pace, records, kernel feed, what is handed on and published."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import hmac
import json
import os
import struct
from array import array
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.noise_driver import NoiseDriver
from tests.unit.test_entropy import block, healthy, os_stream

from edgeseal.entropy import EntropyError, Mixer, Policy, SourceError, battery, handed, kernel, published
from edgeseal.entropy.attach import attach, keys, scanner
from edgeseal.entropy.checks import REMEMBERED, Freshness
from edgeseal.entropy.conditioner import Conditioner, samples_for
from edgeseal.entropy.drivers.base import Description, Symbols
from edgeseal.entropy.pace import Pace
from edgeseal.entropy.reader import Attached
from edgeseal.entropy.records import Baseline, Failure, Records, identity
from edgeseal.entropy.snapshot import Snapshot, State
from edgeseal.errors import UsageError
from edgeseal.stick import health

if TYPE_CHECKING:
    from pathlib import Path

# Conditioner ---------------------------------------------------------------------------------------------------------


def test_block_is_the_formula_over_twice_the_samples_the_claim_asks_for() -> None:
    made = Conditioner("stick", 4.0)
    samples = array("H", range(300))
    blocks = made.feed(samples)
    key = hashlib.sha512(b"edgeseal/conditioner/v1stick").digest()
    assert made.needed == 288
    assert blocks == [hmac.new(key, (1).to_bytes(8, "big") + samples[:288].tobytes(), hashlib.sha512).digest()]


@given(st.lists(st.integers(0, 700), max_size=12), st.sampled_from([0.8, 1.0, 3.5, 4.0, 8.0]))
def test_blocks_do_not_depend_on_how_the_samples_are_cut(cuts: list[int], claim: float) -> None:
    data = hashlib.shake_256(b"samples").digest(sum(cuts))
    whole = Conditioner("x", claim).feed(data)
    made, at, parts = Conditioner("x", claim), 0, []
    for cut in cuts:
        parts += made.feed(data[at : at + cut])
        at += cut
    assert parts == whole
    assert len(whole) == len(data) // samples_for(claim)
    assert len(whole) * 576 <= len(data) * claim, "more entropy out than in"


def test_equal_samples_never_give_equal_blocks() -> None:
    made = Conditioner("x", 8.0)
    assert len({*made.feed(bytes(144)), *made.feed(bytes(144))}) == 2


def test_dropped_samples_are_in_no_block() -> None:
    made = Conditioner("x", 8.0)
    made.feed(b"a" * 143)
    made.drop()
    assert made.feed(b"b" * 143) == []


def test_claim_is_lowered_and_never_raised() -> None:
    made = Conditioner("x", 4.0)
    made.lower(0.5)
    assert made.needed == 576
    made.lower(7.0)
    assert made.needed == 288
    with pytest.raises(ValueError, match="no entropy"):
        samples_for(0.0)


# Battery and pace ----------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 1200), max_size=20))
def test_framer_loses_no_sample_and_judges_none_by_too_few(lengths: list[int]) -> None:
    framer, given_, judged = battery.Framer(), b"", b""
    for n, length in enumerate(lengths):
        part = bytes([n]) * length
        given_ += part
        if (frame := framer.feed(part)) is not None:
            assert len(frame) >= battery.FRAME
            judged += bytes(frame)
    assert given_.startswith(judged)
    assert len(given_) - len(judged) < battery.FRAME


@pytest.mark.parametrize(
    ("symbols", "windows"),
    [(Symbols(1, 0.8, raw=True), 1024), (Symbols(8, 4.0, raw=False), 512), (Symbols(12, 4.0, raw=True), 512)],
)
def test_window_is_that_of_sp_800_90b(symbols: Symbols, windows: int) -> None:
    assert battery.window_for(symbols) == windows


def test_two_levels_of_the_same_test() -> None:
    """A run of 11 is doubt at H = 4, one of 16 is certain."""
    base = NoiseDriver().noise()
    levels = {}
    for run in (10, 11, 15, 16):
        samples = base[:]
        samples[100 : 100 + run] = array("H", [3000] * run)
        alarms = battery.Continuous(Symbols(12, 4.0, raw=True), None).feed(samples)
        levels[run] = [(a.test, a.level) for a in alarms]
    rct = health.RCT
    assert levels == {10: [], 11: [(rct, "doubt")], 15: [(rct, "doubt")], 16: [(rct, "certain")]}


def test_noise_too_narrow_for_its_claim_is_implausible() -> None:
    stick = Symbols(12, 4.0, raw=True)
    assert battery.plausible(6.4, stick)
    assert not battery.plausible(6.3, stick)


@pytest.mark.parametrize(("error", "named"), [(0.0, False), (0.015, False), (0.025, True), (-0.025, True)])
def test_clock_that_is_off_by_more_than_two_percent_is_named(error: float, *, named: bool) -> None:
    pace = Pace()
    for n in range(900):
        host = 0.024 * n
        pace.feed(480 * n, 480, int(1e6 * host * (1 + error)) + 1, host)
    assert (pace.fault() is not None) is named


def test_sampling_rate_that_changes_is_named() -> None:
    pace = Pace()
    us = first = 0
    for n in range(400):
        us += 24_000 if n < 200 else 24_700
        pace.feed(first, 480, us, us / 1e6)
        first += 480
    assert "sampling rate changed from 20000" in (pace.fault() or "")


# Records -------------------------------------------------------------------------------------------------------------


def test_serial_number_of_a_device_cannot_leave_the_directory(tmp_path: Path) -> None:
    records = Records(tmp_path / "entropy")
    for serial in ("../../etc/passwd", "a/b", "", None, "x" * 10_000, "\0", "🎲"):
        device = identity(Description("kind/../..", "usb:1", serial=serial))
        records.fail(device, Failure(device, "bad", 1))
        assert records.failure(device) == Failure(device, "bad", 1)
    assert {p.parent for p in tmp_path.rglob("*.failed")} == {tmp_path / "entropy"}
    assert len(records.failures()) == 6, "no serial number and an empty one are the same"


@given(st.binary(max_size=300))
@settings(max_examples=50)
def test_damaged_record_is_no_record_and_no_crash(data: bytes) -> None:
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "d.failed").write_bytes(data)
        (Path(directory) / "d.baseline").write_bytes(data)
        records = Records(Path(directory))
        assert records.failure("d") is None or data.startswith(b"{")
        assert records.baseline("d") is None


def test_acknowledging_forgets_the_baseline_too(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.keep_baseline("d", Baseline(2048.0, 68.0, 270.0, 4.0))
    records.fail("d", Failure("d", "bad", 1))
    assert Records(tmp_path).acknowledge("d")
    assert (records.failure("d"), records.baseline("d"), records.acknowledge("d")) == (None, None, False)


def test_repeated_blocks_are_remembered_for_long_and_not_for_ever() -> None:
    fresh = Freshness()
    for n in range(REMEMBERED + 10):
        fresh._seen[n.to_bytes(16)] = None
    assert fresh.fault(block(0), 64) is None
    assert fresh.fault(block(0), 64) == "gave the same block twice"
    before = len(fresh._seen)
    fresh.fault(block(1), 64)
    assert len(fresh._seen) <= before


# Kernel feed ---------------------------------------------------------------------------------------------------------


class Ioctls:
    """Records ioctls instead of doing them; `denied` are answered with EPERM."""

    def __init__(self, *denied: int) -> None:
        self.calls: list[tuple[int, Any]] = []
        self._denied = denied

    def __call__(self, _fd: int, request: int, argument: Any = 0) -> int:
        self.calls.append((request, argument))
        if request in self._denied:
            raise OSError(errno.EPERM, "not permitted")
        return 0


ADD, RESEED = 0x40085203, 0x5207


def feeder(tmp_path: Path, **more: Any) -> kernel.Feeder:
    (tmp_path / "random").touch()
    mixer = Mixer([healthy()], policy=Policy.MIX)
    return kernel.Feeder(mixer, **{"seconds": 60.0, "device": tmp_path / "random", **more})


def test_feed_by_default_writes_and_asks_for_no_privilege(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ioctls = Ioctls()
    monkeypatch.setattr(fcntl, "ioctl", ioctls)
    assert feeder(tmp_path).feed() == "kernel: fed"
    assert ioctls.calls == []
    assert len((tmp_path / "random").read_bytes()) == 64


def test_credit_is_half_the_claim_and_never_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ioctls = Ioctls()
    monkeypatch.setattr(fcntl, "ioctl", ioctls)
    assert feeder(tmp_path, credit=True, reseed=True).feed() == "kernel: fed with a credit of 256 bits and reseeded"
    assert kernel.feed(bytes(64), device=tmp_path / "random", credit_bits=512).endswith("credit of 256 bits")
    assert [struct.unpack("ii", c[1][:8]) for c in ioctls.calls if c[0] == ADD] == [(256, 64)] * 2
    assert [c[0] for c in ioctls.calls] == [ADD, RESEED, ADD]


def test_denied_privileges_still_feed_and_say_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fcntl, "ioctl", Ioctls(ADD, RESEED))
    made = feeder(tmp_path, credit=True, reseed=True)
    for _ in range(5):
        assert made.feed() == "kernel: fed, credit denied (EPERM), reseed denied (EPERM)"
    assert len(caplog.records) == 1
    assert len((tmp_path / "random").read_bytes()) == 64


def test_kernel_that_takes_nothing_costs_nothing(tmp_path: Path) -> None:
    assert feeder(tmp_path, device=tmp_path).feed() == "kernel: not fed, EISDIR"


def test_os_bytes_are_never_credited_and_not_even_fed_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ioctls = Ioctls()
    monkeypatch.setattr(fcntl, "ioctl", ioctls)
    for sources in ([], [Attached("stick", list)]):
        made = kernel.Feeder(Mixer(sources, policy=Policy.MIX), seconds=1, credit=True, device=tmp_path / "random")
        assert made.feed() == kernel.NO_SOURCE
    assert ioctls.calls == []
    assert not (tmp_path / "random").exists()


def test_generator_of_the_kernel_that_repeats_itself_does_not_end_the_service(tmp_path: Path) -> None:
    mixer = Mixer([healthy()], policy=Policy.MIX, os_random=lambda _: block(0))
    made = kernel.Feeder(mixer, seconds=1, device=tmp_path / "random")
    assert "operating system's random generator gave the same block twice" in made.feed()
    assert not (tmp_path / "random").exists()


def test_feed_is_on_a_timer(tmp_path: Path) -> None:
    now = [1000.0]
    made = feeder(tmp_path, clock=lambda: now[0])
    fed = []
    for _ in range(181):
        made.tick()
        if made.last == "kernel: fed":
            fed.append(now[0])
            made.last = ""
        now[0] += 1
    assert fed == [1000.0, 1060.0, 1120.0, 1180.0]


# Handed over ---------------------------------------------------------------------------------------------------------


class Owner(Attached):
    """A source of the service, with blocks and without a device."""

    def __init__(self, name: str, blocks: int, *, state: State = State.HEALTHY, slow: str | None = None) -> None:
        super().__init__(name, list)
        shown = self.monitor._shown
        shown.state, shown.slow, shown.source_class, shown.evidence = state, slow, "quantum", "model+calibration"
        for n in range(blocks):
            self.pool.put(block(n, name))
        self.pool.close("absent: not attached")

    def start(self) -> None:
        pass


def test_pass_gets_blocks_profile_and_record_of_what_is_missing() -> None:
    owner, empty = Owner("stick", 12), Owner("other", 0)
    got = handed.receive(handed.hand_over([owner, empty], 8))
    assert len(owner.pool) == 4, "what was handed over is gone here"
    assert [s.profile.name for s in got] == ["stick", "other"]
    mixer = Mixer(got, policy=Policy.REQUIRE)
    drawn = mixer.draw("kem seed", 64)
    assert drawn.sources == (
        "os: getrandom", "stick: quantum, evidence model+calibration", "other: not used, absent: not attached",
    )  # fmt: skip
    assert drawn.blocks == 1
    taken = [got[0].block(timeout=0) for _ in range(6)]
    assert taken == [block(n, "stick") for n in range(2, 8)]
    with pytest.raises(SourceError, match="used up"):
        got[0].block(timeout=0)


def test_blocks_handed_over_grow_old(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    got = handed.receive(handed.hand_over([Owner("stick", 4)]))[0]
    memory = got._blocks[0]
    later = time.monotonic() + handed.MAX_AGE + 1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    with pytest.raises(SourceError, match="too old"):
        got.block(timeout=0)
    assert memory == bytes(64), "wiped"


def test_unfit_source_is_unfit_in_the_pass_too() -> None:
    got = handed.receive(handed.hand_over([Owner("stick", 4, slow="its clock is +3.0 % off ours")]))
    with pytest.raises(EntropyError, match=r"\+3\.0 %"):
        Mixer(got, policy=Policy.REQUIRE).draw("kem seed", 64)
    assert Mixer(got, policy=Policy.MIX).draw("e", 64).blocks == 1


def test_blocks_of_another_boot_are_no_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    fd = handed.hand_over([Owner("stick", 4)])
    monkeypatch.setattr(handed, "boot_id", lambda: "another")
    assert handed.receive(fd) == []


@given(st.binary(max_size=400) | st.binary(max_size=64).map(lambda b: b'{"boot":"","made":1,"sources":[{}]}\n' + b))
@settings(max_examples=80)
def test_anything_else_in_the_pipe_is_refused_by_name(data: bytes) -> None:
    reading, writing = os.pipe()
    os.write(writing, data)
    os.close(writing)
    with pytest.raises(UsageError, match="descriptor"):
        handed.receive(reading)


def test_descriptor_that_is_no_pipe_is_refused(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(UsageError, match="no pipe"):
        handed.receive(fd)
    os.close(fd)
    with pytest.raises(UsageError):
        handed.receive(fd)


# Published -----------------------------------------------------------------------------------------------------------


def test_service_tells_health_and_no_secret(tmp_path: Path) -> None:
    path = tmp_path / "run" / published.NAME
    owner = Owner("stick", 3)
    published.publish(path, policy="mix", sources=[owner.snapshot], kernel_feed="kernel: fed")
    found = published.read(path)
    assert found is not None
    assert found["sources"][0]["name"] == "stick"
    assert (found["policy"], found["kernel_feed"]) == ("mix", "kernel: fed")
    text = path.read_text()
    assert not any(block(n, "stick").hex() in text for n in range(3))


@pytest.mark.parametrize(
    "change", [{"at": 0}, {"pid": 2**22 + 1}, {"at": "x"}, {"sources": None}, {"pid": None}, {"pid": 0}]
)
def test_service_that_is_not_there_any_more_says_nothing(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / published.NAME
    published.publish(path, policy="mix", sources=[Snapshot("stick")], kernel_feed="")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert published.read(path) is None


@given(st.binary(max_size=100))
@settings(max_examples=40)
def test_damaged_publication_says_nothing(data: bytes) -> None:
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / published.NAME).write_bytes(data)
        assert published.read(Path(directory) / published.NAME) is None


def test_publishing_where_nothing_can_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    published.publish(tmp_path / "file" / "x", policy="mix", sources=[], kernel_feed="")


# From the configuration ----------------------------------------------------------------------------------------------


def test_sources_of_the_configuration_are_named_by_their_entry() -> None:
    made = attach(["chaoskey", "edgeseal-qrng:AB12", "chaoskey"], records=Records())
    assert [s.profile.name for s in made] == ["chaoskey", "edgeseal-qrng:AB12"]
    assert all(s._thread is None for s in made), "nothing is started"
    assert attach([], records=Records()) == []


def test_recording_outside_the_lab_is_refused() -> None:
    with pytest.raises(UsageError, match=r"entropy\.sources") as caught:
        attach(["file:/capture.bin"], records=Records())
    assert "entropy.lab" in str(caught.value)


def test_recording_in_the_lab_runs_through_the_whole_path_and_makes_no_key(tmp_path: Path) -> None:
    driver = NoiseDriver(seed=9)
    path = tmp_path / "capture.bin"
    path.write_bytes(b"".join(driver.noise().tobytes() for _ in range(60)))
    source = attach([f"file:{path}"], records=Records(), lab=True)[0]
    try:
        assert len(source.block(timeout=20)) == 64
        assert source.profile.source_class == "unknown"
        assert source.unfit is not None
        with pytest.raises(EntropyError):
            Mixer([source], policy=Policy.REQUIRE).draw("kem seed", 64)
    finally:
        source.close()


def test_devices_are_chosen_by_kind_and_by_serial_number(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeseal.entropy.drivers import detect

    sticks = [NoiseDriver(serial=s) for s in ("1111", "2222")]
    monkeypatch.setattr(detect, "scan", lambda **_: [s.found() for s in sticks])
    serials = {
        entry: [f.description.serial for f in scanner(entry)()]
        for entry in ("edgeseal-qrng", "edgeseal-qrng:2222", "edgeseal-qrng:3333", "chaoskey")
    }
    assert serials == {
        "edgeseal-qrng": ["1111", "2222"], "edgeseal-qrng:2222": ["2222"], "edgeseal-qrng:3333": [], "chaoskey": [],
    }  # fmt: skip


def test_every_driver_can_be_named_in_the_configuration() -> None:
    from edgeseal.device import config
    from edgeseal.entropy.drivers import detect

    kinds = {u.profile.name for u in (*detect.USB, *detect.SERIAL)} | {"qcicada", "hwrng", "file"}
    for kind in kinds:
        text = f'[entropy]\nsources = ["{kind}", "{kind}:x"]'
        assert len(config.parse(text.encode(), name="x").entropy.sources) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('sources = ["chaos"]', "entropy.sources"),
        ('sources = ["chaoskey:"]', "entropy.sources"),
        ('sources = "chaoskey"', "entropy.sources: Expected `array`"),
        (f"sources = {json.dumps(['hwrng'] * 9)}", "entropy.sources"),
        ("feed_seconds = 0", "entropy.feed_seconds: Expected `int` >= 1"),
        ('credit = "yes"', "entropy.credit: Expected `bool`"),
        ("reseed = true", "entropy.reseed: there is no such key"),
        ('stick_keys = "keys.toml"', "entropy.stick_keys: expected an absolute path"),
        ("retry_failed_seconds = -1", "entropy.retry_failed_seconds"),
    ],
)
def test_mistake_in_the_table_is_named_by_its_key(text: str, message: str) -> None:
    from edgeseal.device import config

    with pytest.raises(UsageError) as caught:
        config.parse(f"[entropy]\n{text}".encode(), name="edgeseal.toml")
    assert message in str(caught.value)


def test_keys_of_paired_sticks(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(f'"E6614C311B3A2C21" = "{"ab" * 32}"\n')
    path.chmod(0o600)
    assert keys(path) == {"e6614c311b3a2c21": b"\xab" * 32}


@pytest.mark.parametrize(
    ("text", "mode", "message"),
    [
        ('"a" = "abcdef"', 0o600, "the key of a is not 32 bytes"),
        (f'"a" = "{"zz" * 32}"', 0o600, "the key of a is not 32 bytes"),
        ('"a" = 7', 0o600, "the key of a is not 32 bytes"),
        ('"a', 0o600, "is not TOML"),
        (f'"a" = "{"ab" * 32}"', 0o644, "can be read by others"),
        (None, 0o600, "cannot be read"),
    ],
)
def test_bad_key_file_is_named_and_no_key_shown(tmp_path: Path, text: str | None, mode: int, message: str) -> None:
    path = tmp_path / "keys.toml"
    if text is not None:
        path.write_text(text)
        path.chmod(mode)
    with pytest.raises(UsageError) as caught:
        keys(path)
    assert message in str(caught.value)
    assert "stick_keys" in str(caught.value)
    assert "abab" not in str(caught.value)
    assert "zzzz" not in str(caught.value)


@pytest.mark.parametrize("kind", [ZeroDivisionError, OSError, KeyError, UnicodeError, MemoryError, RecursionError])
def test_os_bytes_alone_when_a_source_raises_what_no_source_should(kind: type[Exception]) -> None:
    class Broken:
        profile = healthy().profile

        def block(self, *, timeout: float) -> bytes:
            raise kind("a block in a message", timeout)

    drawn = Mixer([Broken()], policy=Policy.MIX, os_random=os_stream()).draw("seed", 32)
    assert drawn.sources == ("os: getrandom", f"stick: not used, unexpected {kind.__name__}")
    with pytest.raises(EntropyError):
        Mixer([Broken()], policy=Policy.REQUIRE).draw("seed", 32)
