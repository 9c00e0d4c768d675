"""What callers get while the device is unplugged, hung, held, failing or lying: their bytes, in time, from the OS.

The real reader thread, pool and mixer over sticks in memory. Waits are bounded generously where they are measured and
exactly where they are logical.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from tests.attacks.test_entropy_faults import constant, led_dead
from tests.unit.noise_driver import SAMPLES, NoiseDriver
from tests.unit.test_entropy import block, expected, os_stream

from edgeseal.entropy import EntropyError, Mixer, Policy, SourceError, pool, reader
from edgeseal.entropy.drivers.base import Busy, Found, Gone, Hung, Options, Refused
from edgeseal.entropy.mixer import MIX_WAIT
from edgeseal.entropy.pool import CAPACITY, Forked, Pool
from edgeseal.entropy.reader import Attached
from edgeseal.entropy.records import Records, identity
from edgeseal.entropy.snapshot import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

SOON = 20.0  # seconds for what takes a fraction of one; machines are busy


def until(condition: Callable[[], bool], what: str) -> None:
    ends = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < ends, f"not within {SOON} s: {what}"
        time.sleep(0.005)


class Bus:
    """What is plugged in. `error`: opening raises it instead."""

    def __init__(self, *drivers: NoiseDriver) -> None:
        self.drivers = list(drivers)
        self.error: Exception | None = None
        self.scans = 0
        self.opened = 0

    def scan(self) -> Sequence[Found]:
        self.scans += 1
        return [Found(d.describe(), d.profile, partial(self.open, d)) for d in self.drivers]

    def open(self, driver: NoiseDriver, _options: Options) -> NoiseDriver:
        self.opened += 1
        if self.error is not None:
            raise self.error
        return driver

    def unplug(self) -> None:
        for driver in self.drivers:
            driver.faults = [(0, lambda *_: Gone("errno 19"))]
        self.drivers = []


@pytest.fixture(autouse=True)
def _quick_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks for devices a hundred times as often as on a device."""
    monkeypatch.setattr(reader, "SCAN_FIRST", 0.02)
    monkeypatch.setattr(reader, "SCAN_LAST", 0.05)


@pytest.fixture
def attach() -> Iterator[Callable[..., Attached]]:
    made: list[Attached] = []

    def attach(bus: Bus, name: str = "stick", **more: Any) -> Attached:
        made.append(Attached(name, bus.scan, **more))
        return made[-1]

    yield attach
    for source in made:
        source.close()


Attach = "Callable[..., Attached]"


def healthy(source: Attached) -> Attached:
    source.start()
    until(lambda: source.snapshot.state is State.HEALTHY and len(source.pool) > 2, "a healthy source with blocks")
    return source


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    started = time.monotonic()
    try:
        return call(), time.monotonic() - started
    except SourceError as e:
        return e, time.monotonic() - started


# Waiting -------------------------------------------------------------------------------------------------------------


def hangs(_samples: object, _number: int) -> Exception:
    time.sleep(0.25)
    return Hung("errno 110")


TROUBLES: dict[str, Callable[[Bus], None]] = {
    "unplugged": lambda bus: bus.unplug(),
    "never-there": lambda bus: bus.drivers.clear(),
    "held-by-another-process": lambda bus: setattr(bus, "error", Busy("errno 16")),
    "hostile-descriptor": lambda bus: setattr(bus, "error", Refused("a keyboard")),
    "hung": lambda bus: setattr(bus.drivers[0], "faults", [(0, hangs)]),
    "driver-bug": lambda bus: setattr(bus, "error", RuntimeError("division by cucumber")),
    "driver-bug-in-read": lambda bus: setattr(bus.drivers[0], "faults", [(0, lambda *_: ZeroDivisionError("x"))]),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_mix_gives_the_os_bytes_alone_and_in_time(trouble: str, attach: Callable[..., Attached]) -> None:
    bus = Bus(NoiseDriver())
    TROUBLES[trouble](bus)
    mixer = Mixer([attach(bus)], policy=Policy.MIX, os_random=os_stream())
    for number in range(1, 4):
        drawn, seconds = timed(lambda: mixer.draw("seed", 64))
        assert drawn.data == expected(block(number, "os"), "seed")
        assert drawn.blocks == 0
        assert "not used" in drawn.sources[1]
        assert seconds < 10 * MIX_WAIT, "the bound is 0.25 s and a busy machine"


@pytest.mark.parametrize("trouble", TROUBLES)
def test_require_makes_no_key(trouble: str, attach: Callable[..., Attached], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeseal.entropy.mixer.REQUIRE_WAIT", 1.0)
    bus = Bus(NoiseDriver())
    TROUBLES[trouble](bus)
    with pytest.raises(EntropyError, match="needs a healthy hardware source"):
        Mixer([attach(bus)], policy=Policy.REQUIRE).draw("kem seed", 64)


def test_wait_is_what_was_allowed_and_not_the_device_s(attach: Callable[..., Attached]) -> None:
    """The logical bound: with a clock that stands still, every wait the pool is asked for is MIX_WAIT or less."""
    asked: list[float] = []
    bus = Bus(NoiseDriver(faults=[(0, hangs)]))
    source = attach(bus)

    class Watched(Pool):
        def take(self, timeout: float) -> bytes:
            asked.append(timeout)
            return super().take(0)

    source.pool = Watched()
    mixer = Mixer([source], policy=Policy.MIX, clock=lambda: 1000.0)
    for _ in range(5):
        mixer.draw("seed", 32)
    assert asked
    assert max(asked) <= MIX_WAIT


def test_lock_of_the_pool_is_not_waited_for_longer_than_allowed() -> None:
    """A thread that dies with the lock held must not hold up a key for ever."""
    held = Pool()
    held._ready.acquire()
    result: list[Any] = []
    thread = threading.Thread(target=lambda: result.append(timed(lambda: held.take(0.05))), daemon=True)
    thread.start()
    thread.join(SOON)
    assert result, "still waiting for the lock"
    assert isinstance(result[0][0], SourceError)


# Unplugged and back --------------------------------------------------------------------------------------------------


def test_unplugging_drops_the_blocks_and_plugging_in_recovers_without_a_restart(
    attach: Callable[..., Attached], caplog: pytest.LogCaptureFixture
) -> None:
    bus = Bus(NoiseDriver())
    source = healthy(attach(bus))
    mixer = Mixer([source], policy=Policy.MIX)
    assert mixer.draw("seed", 32).blocks == 1
    with caplog.at_level(logging.WARNING, "edgeseal.entropy"):
        bus.unplug()
        until(lambda: source.snapshot.state is State.ABSENT, "the loss was noticed")
        assert len(source.pool) == 0
        for _ in range(20):
            assert mixer.draw("seed", 32).blocks == 0
        scans = bus.scans
        until(lambda: bus.scans > scans + 10, "ten more scans")
    lines = [r.getMessage() for r in caplog.records]
    assert len(lines) == len(set(lines)) <= 2, lines
    bus.drivers = [NoiseDriver(seed=2)]
    until(lambda: source.snapshot.state is State.HEALTHY, "healthy again")
    until(lambda: len(source.pool) > 2, "blocks again")
    assert mixer.draw("seed", 32).blocks == 1


def test_unplugged_in_the_middle_of_a_wait_ends_the_wait(attach: Callable[..., Attached]) -> None:
    """A caller that may wait half a minute is told at once that nothing will come."""
    bus = Bus(NoiseDriver(faults=[(0, hangs)]))
    source = attach(bus)
    source.start()
    until(lambda: source.snapshot.state is State.STARTUP, "the device is open")
    result: list[Any] = []
    thread = threading.Thread(target=lambda: result.append(timed(lambda: source.block(timeout=60))), daemon=True)
    thread.start()
    bus.unplug()
    thread.join(SOON)
    assert result, "still waiting"
    assert isinstance(result[0][0], SourceError)


def test_failed_device_stays_out_until_acknowledged_and_re_plugged(
    attach: Callable[..., Attached], tmp_path: Path
) -> None:
    bus = Bus(NoiseDriver())
    records = Records(tmp_path)
    source = healthy(attach(bus, records=records))
    bad = bus.drivers[0]
    bad.faults = [(0, constant)]
    source.pool.drop()
    until(lambda: source.snapshot.state is State.FAILED, "failed")
    opened = bus.opened
    bad.faults = []
    bus.drivers = []
    scans = bus.scans
    until(lambda: bus.scans > scans + 2, "seen missing")
    bus.drivers = [bad]
    until(lambda: source.snapshot.state is State.FAILED, "still failed")
    assert bus.opened == opened
    assert records.acknowledge(identity(bad.describe()))
    until(lambda: source.snapshot.state is State.HEALTHY, "trusted again")


def test_stick_that_repeats_its_noise_after_a_replug_latches(attach: Callable[..., Attached]) -> None:
    """New frames, new numbers, old noise: only the blocks show it."""
    bus = Bus(NoiseDriver(seed=5))
    source = healthy(attach(bus))
    bus.unplug()
    until(lambda: source.snapshot.state is State.ABSENT, "the loss was noticed")
    bus.drivers = [NoiseDriver(seed=5)]
    until(lambda: source.snapshot.state is State.FAILED, "the repetition was noticed")
    assert source.snapshot.reason.startswith("security: ")
    assert len(source.pool) == 0


def test_second_stick_takes_over_from_a_failed_one(attach: Callable[..., Attached]) -> None:
    bus = Bus(NoiseDriver(faults=[(0, constant)]), NoiseDriver(seed=2, serial="1111111111111111"))
    source = healthy(attach(bus))
    assert source.snapshot.serial == "1111111111111111"


def test_stick_held_by_another_process_is_taken_when_it_is_free(
    attach: Callable[..., Attached], caplog: pytest.LogCaptureFixture
) -> None:
    bus = Bus(NoiseDriver())
    bus.error = Busy(f"errno {errno.EBUSY}")
    source = attach(bus)
    with caplog.at_level(logging.WARNING, "edgeseal.entropy"):
        source.start()
        until(lambda: bus.opened > 10, "ten attempts")
    assert len(caplog.records) == 1
    bus.error = None
    healthy(source)


# Lying and failing sources, and what keys are made of ----------------------------------------------------------------


def replaying() -> Callable[[Any, int], Any]:
    kept: list[Any] = []

    def fault(samples: Any, number: int) -> Any:
        if len(kept) < 30:
            kept.append(samples)
        return kept[number % 30]

    return fault


LIARS: dict[str, Callable[[], Callable[[Any, int], Any]]] = {
    "constant": lambda: constant, "led-dead-later": lambda: lambda s, n: led_dead(s, n) if n > 20 else s,
    "replays": replaying,
}  # fmt: skip


@pytest.mark.parametrize("liar", ["constant", "replays"])
def test_constant_and_replaying_sticks_never_make_keys_under_require(
    liar: str, attach: Callable[..., Attached], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The replaying stick is caught at its first repeat; what it gave before was new, and nothing after is a key."""
    monkeypatch.setattr("edgeseal.entropy.mixer.REQUIRE_WAIT", 1.0)
    bus = Bus(NoiseDriver(faults=[(0, LIARS[liar]())]))
    source = attach(bus)
    source.start()
    if liar == "replays":
        until(lambda: source.snapshot.frames > 0, "reading")
        while source.snapshot.state is not State.FAILED:  # use up what it makes, or it rests with a full pool
            timed(lambda: source.block(timeout=0.01))
    until(lambda: source.snapshot.state is State.FAILED, "latched")
    with pytest.raises(EntropyError):
        Mixer([source], policy=Policy.REQUIRE).draw("kem seed", 64)


def test_under_mix_every_bit_of_the_os_bytes_decides_whatever_the_stick_gives() -> None:
    """A stick that lies gives blocks; with them fixed, each of the 512 OS bits still changes the output."""
    lying = [block(n, "lie") for n in range(2)]

    def draw(flip: int | None) -> bytes:
        key = bytearray(block(1, "os"))
        if flip is not None:
            key[flip // 8] ^= 1 << flip % 8
        source = Attached("stick", Bus().scan)
        source.start = lambda: None  # type: ignore[method-assign]
        for one in lying:
            source.pool.put(one)
        given = iter([block(0, "os"), bytes(key)])
        drawn = Mixer([source], policy=Policy.MIX, os_random=lambda _: next(given)).draw("seed", 64)
        assert drawn.blocks == 1
        return drawn.data

    outputs = [draw(flip) for flip in (None, *range(512))]
    assert len(set(outputs)) == 513
    changed = [(int.from_bytes(o) ^ int.from_bytes(outputs[0])).bit_count() for o in outputs[1:]]
    assert min(changed) > 180, "an output bit that no OS bit moves"


def test_stick_that_knows_the_os_bytes_of_before_cannot_cancel_the_next() -> None:
    """Blocks equal to the OS stream: XOR would give zeros, HMAC does not; and OS bytes are drawn after the block."""
    source = Attached("stick", Bus().scan)
    source.start = lambda: None  # type: ignore[method-assign]
    for n in range(2):
        source.pool.put(block(n, "os"))
    drawn = Mixer([source], policy=Policy.MIX, os_random=os_stream()).draw("seed", 64)
    assert drawn.data not in {bytes(64), block(1, "os")}
    assert len(set(drawn.data)) > 24


def test_blocks_made_before_the_lamp_died_are_not_used_after(attach: Callable[..., Attached]) -> None:
    bus = Bus(NoiseDriver())
    source = healthy(attach(bus))
    bus.drivers[0].faults = [(0, led_dead)]
    source.pool.drop()  # room: it reads on
    until(lambda: source.snapshot.state in {State.SUSPECT, State.FAILED}, "the alarm")
    assert len(source.pool) == 0


@pytest.mark.parametrize("policy", [Policy.MIX, Policy.REQUIRE])
def test_simulated_stick_in_the_lab_mixes_and_makes_no_key(policy: Policy, attach: Callable[..., Attached]) -> None:
    from edgeseal.stick.frame import SIMULATED

    source = healthy(attach(Bus(NoiseDriver(flags=SIMULATED)), options=Options(lab=True)))
    mixer = Mixer([source], policy=policy)
    if policy is Policy.MIX:
        assert mixer.draw("kem seed", 64).sources[1] == "stick: unknown, evidence none"
        return
    with pytest.raises(EntropyError, match="simulated"):
        mixer.draw("kem seed", 64)


def test_slow_stick_is_mixed_and_makes_no_key_under_require(attach: Callable[..., Attached]) -> None:
    source = healthy(attach(Bus(NoiseDriver())))
    source.monitor._shown.slow = "its clock is -3.0 % off ours"
    mixer = Mixer([source], policy=Policy.REQUIRE)
    with pytest.raises(EntropyError, match=r"-3\.0 %"):
        mixer.draw("kem seed", 64)
    assert mixer.draw("e", 64, lasting=False).blocks == 1


def test_require_binds_keys_and_not_the_nonces_of_a_device_in_the_field() -> None:
    mixer = Mixer([Attached("stick", Bus().scan)], policy=Policy.REQUIRE)
    assert len(mixer.draw("e", 64, lasting=False).data) == 64
    with pytest.raises(EntropyError):
        mixer.draw("kem seed", 64)


# Fork, another boot, age ---------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # it is the point of the test
def test_fork_gets_no_block_of_its_parent(attach: Callable[..., Attached]) -> None:
    source = healthy(attach(Bus(NoiseDriver())))
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover - in the child
        answer = b"nothing"
        try:
            source.block(timeout=0.1)
            answer = b"a block"
        except Forked:
            answer = b"forked%d" % len(source.pool)
        finally:
            os.write(writing, answer)
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 100) == b"forked0"
    os.close(reading)
    os.close(writing)
    assert len(source.block(timeout=SOON)) == 64, "the parent goes on"


def test_restored_image_drops_the_blocks_of_the_boot_before() -> None:
    boot = ["a"]
    restored = Pool(boot=lambda: boot[0])
    restored.put(block(0))
    boot[0] = "b"
    with pytest.raises(SourceError):
        restored.take(0)
    restored.put(block(1))
    assert restored.take(0) == block(1), "what is made in this boot is good"


def test_another_boot_gives_the_device_a_new_nonce(
    attach: Callable[..., Attached], monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = Bus(NoiseDriver())
    source = healthy(attach(bus))
    monkeypatch.setattr(reader, "boot_id", lambda: "another")
    source.pool.drop()
    until(lambda: bus.opened == 2, "opened anew: opening sets the nonce")
    assert bus.drivers[0].closed >= 1


def test_block_is_wiped_when_it_is_taken_dropped_or_too_old() -> None:
    now = [0.0]
    made = Pool(clock=lambda: now[0])
    made.put(block(0))
    memory = made._blocks[0][1]
    assert made.take(0) == block(0)
    assert memory == bytes(64)
    for end in ("drop", "age", "overflow"):
        made.put(block(1))
        memory = made._blocks[0][1]
        if end == "drop":
            assert made.drop() == 1
        elif end == "age":
            now[0] += pool.MAX_AGE + 1
            with pytest.raises(SourceError):
                made.take(0)
        else:
            for n in range(CAPACITY):
                made.put(block(n))
        assert memory == bytes(64), end
    assert len(made) == CAPACITY


def test_no_block_is_given_twice_to_two_threads(attach: Callable[..., Attached]) -> None:
    source = healthy(attach(Bus(NoiseDriver())))
    got: list[bytes] = []

    def take() -> None:
        got.extend(source.block(timeout=SOON) for _ in range(20))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(set(got)) == len(got) == 80


# The thread ----------------------------------------------------------------------------------------------------------


def test_policy_off_starts_no_thread() -> None:
    bus = Bus(NoiseDriver())
    Mixer([Attached("stick", bus.scan)], policy=Policy.OFF).draw("seed", 32)
    assert bus.scans == 0


def test_full_pool_rests_but_looks_again(attach: Callable[..., Attached], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "IDLE", 0.05)
    bus = Bus(NoiseDriver())
    source = healthy(attach(bus))
    until(lambda: len(source.pool) == CAPACITY, "a full pool")
    at = bus.drivers[0].reads
    until(lambda: bus.drivers[0].reads > at + 2 * reader.BURST, "more looks at a full pool")
    bus.drivers[0].faults = [(0, led_dead)]
    until(lambda: len(source.pool) == 0, "a lamp that dies while nobody draws")


def test_full_pool_does_not_read_all_the_time(attach: Callable[..., Attached]) -> None:
    bus = Bus(NoiseDriver())
    source = healthy(attach(bus))
    until(lambda: len(source.pool) == CAPACITY, "a full pool")
    at = bus.drivers[0].reads
    time.sleep(0.3)
    assert bus.drivers[0].reads <= at + reader.BURST + 2


def test_closing_gives_the_device_back_and_ends_the_thread(attach: Callable[..., Attached]) -> None:
    bus = Bus(NoiseDriver())
    source = healthy(attach(bus))
    source.close()
    thread = source._thread
    assert thread is not None
    thread.join(SOON)
    assert not thread.is_alive()
    assert bus.drivers[0].closed == 1
    with pytest.raises(SourceError, match="closed"):
        source.block(timeout=1)


def test_nothing_secret_is_shown(attach: Callable[..., Attached]) -> None:
    source = healthy(attach(Bus(NoiseDriver())))
    shown = repr(source.snapshot) + repr(source.snapshot.as_dict()) + repr(source)
    waiting = [bytes(b) for _, b in tuple(source.pool._blocks)]
    assert waiting
    assert not any(b.hex() in shown or repr(b) in shown for b in waiting)
    assert source.snapshot.samples % SAMPLES == 0
