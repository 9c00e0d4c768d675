"""Unmodified libusb and pyusb under the real drivers, on an emulated usbfs: what no in-process backend can show.

Errno values, transfers that are cancelled, claims between processes, contexts that see a replug. The device models are
those of tests/sim; each test has a bus of its own.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from tests.needed import missing
from tests.sim.umockdev_world import plugged, what_is_absent
from tests.sim.usbmodel import ChaosKey, Device, Quantis
from tests.sim.usbstick import UNIQUE_ID, FirmwareStick, Stick

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.sim.umockdev_world import Client, World

STICK, CHAOSKEY, QUANTIS = "edgeseal-qrng", "chaoskey", "quantis-usb"
SERIAL = UNIQUE_ID.hex()
TIMEOUT = 0.25


class TrueRng(Device):
    """TrueRNG v3: a CDC-ACM device, for the serial port and not for libusb."""

    ids = (0x04D8, 0xF5FE)
    strings = (None, "ubld.it", "TrueRNG", "012345678")
    names = (1, 2, 3)
    interface = (2, 2, 1, 0)
    endpoints = ((0x82, 8),)

    def __init__(self) -> None:
        super().__init__()
        self.extra_interfaces.append(self._interface(1, (10, 0, 0, 0), ((0x01, 64), (0x81, 64))))


@dataclass
class Open:
    """A bus, the model of the stick that was opened on it, and the process that did."""

    world: World
    model: Stick
    client: Client


@pytest.fixture(scope="module", autouse=True)
def _tools() -> None:
    if reason := what_is_absent():
        missing(reason)


@pytest.fixture
def stick() -> Iterator[Open]:
    """A stick that has been opened."""
    model = Stick()
    with plugged(model) as (world, client):
        client(f"open_({STICK!r})")
        yield Open(world, model, client)


# What is attached ----------------------------------------------------------------------------------------------------


def test_devices_are_found_by_what_their_descriptors_say() -> None:
    with plugged(Stick(), ChaosKey(), Quantis(), TrueRng()) as (_, client):
        assert sorted(client("names()")) == [
            [CHAOSKEY, "usb:1-2", "1234567890"],
            [STICK, "usb:1-1", SERIAL],
            [QUANTIS, "usb:1-3", "110042A410"],
        ], "and a serial stick is no libusb device"


def test_serial_stick_shows_its_cdc_descriptor_and_is_left_to_the_serial_port() -> None:
    with plugged(TrueRng()) as (_, client):
        client("raw((0x04d8, 0xf5fe))")
        assert client("keep['raw'].product") == "TrueRNG"
        assert client("[i.bInterfaceClass for i in keep['raw'][0]]") == [2, 10]
        assert client("names()") == []


@pytest.mark.parametrize(
    ("name", "model", "samples"),
    [
        (STICK, Stick, 480),
        (STICK, FirmwareStick, 480),
        (CHAOSKEY, ChaosKey, 512),
        (QUANTIS, Quantis, 512),
    ],
)
def test_device_opens_and_gives_fresh_frames(name: str, model: type[Device], samples: int) -> None:
    """The second stick is the firmware's own core: what the chip would run, read by what the device runs."""
    with plugged(model()) as (world, client):
        client(f"open_({name!r})")
        frames = client(f"[read({name!r}) for _ in range(20)]")
        assert {len(f) for f in frames} == {samples}
        assert len({tuple(f) for f in frames}) == 20
        assert world.state("a")["claims"] == [0]
        client(f"close({name!r})")
        world.until_free("a")


def test_two_sticks_are_two_devices() -> None:
    with plugged(Stick(), Stick(2)) as (_, client):
        assert len(client("names()")) == 2
        assert client(f"open_({STICK!r}, 0)") != client(f"(keep.update(first=keep[{STICK!r}]), open_({STICK!r}, 1))[1]")
        assert client(f"list(keep['first'].read(timeout=1).samples) != read({STICK!r})")


def test_stick_that_became_a_keyboard_too_is_refused() -> None:
    model = Stick()
    model.become_keyboard_too()
    with plugged(model) as (world, client):
        assert client.error(f"open_({STICK!r})") == "Refused"
        assert world.state("a")["claims"] == []


def test_calibration_runs_over_the_bus(stick: Open) -> None:
    client = stick.client
    assert 11 < client(f"keep[{STICK!r}].calibrate(timeout=5).qcnr_db") < 13.5


# Transfers that go wrong ---------------------------------------------------------------------------------------------


def test_hang_ends_at_the_time_out_and_three_of_them_reset_the_device(stick: Open) -> None:
    model, client = stick.model, stick.client
    model.fault = "hang"
    ends = [client(f"timed_read({STICK!r}, {TIMEOUT})") for _ in range(3)]
    assert [how for how, _ in ends] == ["Hung", "Hung", "Gone"]
    assert all(seconds >= 0.9 * TIMEOUT for _, seconds in ends), "the transfer was cancelled early"
    assert all(seconds < 20 * TIMEOUT for _, seconds in ends)
    assert model.resets == 1


def test_raw_errno_of_a_hang_a_stall_and_an_unplug() -> None:
    """The numbers that the drivers' table of errors is built on, from libusb itself."""
    model = ChaosKey()
    with plugged(model) as (world, client):
        client("raw((0x1d50, 0x60c6))")
        client("usb.util.claim_interface(keep['raw'], 0)")
        assert client("len(keep['raw'].read(0x86, 512, 1000))") == 512
        numbers = []
        for fault in ("hang", "stall"):
            model.fault = fault
            numbers.append(client.ask("keep['raw'].read(0x86, 512, 100)")["errno"])
        model.fault = None
        world.unplug("a")
        numbers.append(client.ask("keep['raw'].read(0x86, 512, 100)")["errno"])
    assert numbers == [110, 32, 19]


def test_halt_is_cleared_once_and_goes_on(stick: Open) -> None:
    model, client = stick.model, stick.client
    model.fault, model.once = "stall", True
    assert client(f"timed_read({STICK!r}, 1)")[0] == "ok"
    assert not model.halted


def test_halt_that_comes_back_is_given_up(stick: Open) -> None:
    model, client = stick.model, stick.client
    model.fault = "stall"
    assert client(f"timed_read({STICK!r}, 1)")[0] == "Stalled"


def test_short_transfer_of_the_stick_is_found_again_in_the_stream(stick: Open) -> None:
    model, client = stick.model, stick.client
    client(f"read({STICK!r})")
    model.fault, model.once = "short", True
    assert [client(f"timed_read({STICK!r}, 1)")[0] for _ in range(5)] == ["ok"] * 5
    assert client(f"keep[{STICK!r}].damaged") >= 1


def test_short_transfer_of_a_quantis_is_never_a_part_filled_buffer() -> None:
    """The vendor's library returns success and half a buffer of whatever was there."""
    model = Quantis()
    with plugged(model) as (_, client):
        client(f"open_({QUANTIS!r})")
        model.fault = "short"
        how = client(f"timed_read({QUANTIS!r}, 1)")[0]
        assert how != "ok" or client(f"len(read({QUANTIS!r}))") == 512


def test_stuck_stick_is_read_and_left_to_the_health_tests(stick: Open) -> None:
    model, client = stick.model, stick.client
    model.fault = "stuck"
    client(f"[read({STICK!r}) for _ in range(2)]")
    assert client(f"len(set(read({STICK!r})))") == 1


# Unplugged, and other processes ---------------------------------------------------------------------------------------


def test_unplugged_in_a_blocked_read_ends_the_read_at_once(stick: Open) -> None:
    world, model, client = stick.world, stick.model, stick.client
    model.fault = "hang"
    client.say(f"timed_read({STICK!r}, 30)")
    while not world.state("a")["waiting"]:
        time.sleep(0.01)
    world.unplug("a")
    how, seconds = client.hear()["value"]
    assert how == "Gone"
    assert seconds < 20, "it waited for its own time-out"


def test_replug_at_a_new_address_is_seen_without_a_restart(stick: Open) -> None:
    world, client = stick.world, stick.client
    world.unplug("a")
    assert client(f"timed_read({STICK!r}, 1)")[0] == "Gone"
    client(f"close({STICK!r})")
    assert client("names()") == []
    assert world.plug("b", Stick()) == 3
    assert client("names()") == [[STICK, "usb:1-1", SERIAL]]
    client(f"open_({STICK!r})")
    assert client(f"len(read({STICK!r}))") == 480


def test_device_held_by_another_process_is_busy_until_that_ends(stick: Open) -> None:
    other = stick.world.client()
    assert other.error(f"open_({STICK!r})") == "Busy"
    assert other.ask(f"open_({STICK!r})")["message"].count("EBUSY") == 1
    stick.client(f"close({STICK!r})")
    other.until(f"open_({STICK!r})")
    assert other(f"len(read({STICK!r}))") == 480


def test_process_that_dies_with_a_stick_open_gives_it_back(stick: Open) -> None:
    world, client = stick.world, stick.client
    client.end()
    other = world.client()
    other(f"open_({STICK!r})")
    assert other(f"len(read({STICK!r}))") == 480


# The whole source ----------------------------------------------------------------------------------------------------


def test_source_over_libusb_mixes_loses_its_stick_and_finds_it_again() -> None:
    with plugged(Stick()) as (world, client):
        client(f"attach({STICK!r})")
        client.until("len(keep['source'].pool) > 2")
        assert client("keep['source'].snapshot.evidence") == "model+calibration"
        assert client("drawn()")[0] == 1
        world.unplug("a")
        client.until("keep['source'].snapshot.state == 'absent'")
        for _ in range(5):
            blocks, seconds = client("drawn()")
            assert blocks == 0
            assert seconds < 5, "the bound is 0.25 s and a busy machine"
        world.plug("b", Stick(2))
        client.until("len(keep['source'].pool) > 2")
        assert client("drawn()")[0] == 1


def test_stick_that_repeats_its_noise_after_a_replug_latches() -> None:
    """Right key, right nonce, right numbers: a stick whose noise comes from a seed it starts with again."""
    with plugged(Stick(7)) as (world, client):
        client(f"attach({STICK!r})")
        client.until("len(keep['source'].pool) > 2")
        world.unplug("a")
        client.until("keep['source'].snapshot.state == 'absent'")
        world.plug("b", Stick(7))
        client.until("keep['source'].snapshot.state == 'failed'")
        assert "replayed" in client("keep['source'].snapshot.reason")


def test_source_whose_stick_turns_constant_latches() -> None:
    model = Stick()
    with plugged(model) as (_, client):
        client(f"attach({STICK!r})")
        client.until("len(keep['source'].pool) > 2")
        model.fault = "stuck"
        client.until("(keep['source'].pool.drop(), keep['source'].snapshot.state == 'failed')[1]")
        assert "rct" in client("keep['source'].snapshot.reason")
        assert client("drawn()")[0] == 0


def test_the_bus_lets_a_broken_transfer_through_when_nothing_breaks_it(stick: Open) -> None:
    """Negative control: the same calls on a sound device raise nothing."""
    client = stick.client
    assert {client(f"timed_read({STICK!r}, {TIMEOUT})")[0] for _ in range(5)} == {"ok"}
