"""The agent follows an order to its end: what it waits for, what it refuses, what it lets pass and says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.agent_world import MODEL, Device, Fleet, world

from edgeseal.device import config, shadow, update
from edgeseal.device.state import Gate, Installed, Shadowed, gate_words
from edgeseal.errors import UsageError
from edgeseal.runtime import serve_status
from edgeseal.runtime.serve_status import ModelStatus, ServeStatus, ShadowStatus
from edgeseal.runtime.shadow import Order, Shadow
from edgeseal.runtime.shadow_figures import Figures

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.unit


class Clock:
    """Time that passes by sleeping only."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(shadow, "time", SimpleNamespace(monotonic=lambda: self.now, sleep=self.sleep))

    def sleep(self, seconds: float) -> None:
        self.now += max(seconds, 1e-3)


class Said(Shadow):
    """An order of which edgeseal-serve says what a test wants: (from second, status), in order of time."""

    def __init__(self, clock: Clock, *script: tuple[float, ShadowStatus | None]) -> None:
        self.clock = clock
        self.script = script

    def look(self) -> ShadowStatus | None:
        return [said for at, said in self.script if at <= self.clock.now][-1]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def status(state: Any = "running", reason: str = "", crashes: int = 0, **figures: Any) -> ShadowStatus:
    return ShadowStatus(2, "0" * 16, state, reason, crashes=crashes, figures=Figures(**figures))


SETTINGS = config.Runtime(shadow_seconds=60, activate_seconds=100)


def test_the_whole_time_is_used(clock: Clock) -> None:
    said = Said(clock, (0, None), (1, status("loading")), (5, status()), (30, status(compared=50, differing=1)))
    found = shadow.observe(said, SETTINGS)
    assert (found.compared, found.differing, found.seconds, found.skipped) == (50, 1, 60, "")
    assert clock.now == pytest.approx(65, abs=1)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (status(compared=1, nan=1), "not numbers"),
        (status(crashes=2, reason="its process ended (SIGSEGV)"), "SIGSEGV"),
        (status(errors=2, error="boom"), "boom"),
        (status("failed", "gone wrong"), "gone wrong"),
        (status(compared=100, differing=100), "100 of 100 answers differ"),
    ],
)
def test_what_cannot_become_good_is_refused_at_once(clock: Clock, bad: ShadowStatus, reason: str) -> None:
    with pytest.raises(shadow.ShadowError, match=reason):
        shadow.observe(Said(clock, (0, status()), (10, bad)), SETTINGS)
    assert clock.now < 11


def test_what_differs_a_little_too_often_is_refused_at_the_end(clock: Clock) -> None:
    said = Said(clock, (0, status()), (10, status(compared=100, differing=6)))
    with pytest.raises(shadow.ShadowError, match="6 of 100 answers differ"):
        shadow.observe(said, SETTINGS)
    assert clock.now >= 60


@pytest.mark.parametrize(
    ("script", "skipped", "at"),
    [
        ([(0, None)], "no edgeseal-serve follows the order", 10),
        ([(0, status("skipped", "memory"))], "memory", 0),
        ([(0, status("loading"))], "it was still loading after 100 s", 100),
        ([(0, status("waiting"))], "it was still waiting after 100 s", 100),
        ([(0, status()), (5, None)], "0 requests in 60 s are too few", 60),  # edgeseal-serve has gone
        ([(0, status()), (5, status("skipped", "nobody asked"))], "nobody asked", 5),
    ],
)
def test_where_nothing_can_be_measured_the_switch_goes_on(clock: Clock, script: Any, skipped: str, at: float) -> None:
    found = shadow.observe(Said(clock, *script), SETTINGS)
    assert (found.skipped, found.text()) == (skipped, f"not tried in the shadow: {skipped}")
    assert clock.now == pytest.approx(at, abs=1)


@pytest.mark.parametrize(
    "said", [status("failed", "no file"), status("loading", "its process ended (SIGFPE)", crashes=2)]
)
def test_a_release_that_does_not_load_is_refused(clock: Clock, said: ShadowStatus) -> None:
    with pytest.raises(shadow.ShadowError, match="it does not load beside it: "):
        shadow.observe(Said(clock, (0, said)), SETTINGS)


# In a pass ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def places(tmp_path: Path) -> Iterator[tuple[Fleet, Device]]:
    with world(tmp_path) as made:
        yield made


def configure(device: Device, **more: Any) -> None:
    device.write_config(runtime={"shadow_seconds": 60, "watch_seconds": 0, "probe": False, **more})


def passed(device: Device) -> str:
    """Do a pass that must bring release 2; return what is kept of its shadow."""
    assert update.run(device.agent()).errors == []
    current = device.agent().state().model(MODEL).current
    assert current is not None
    assert current.release == 2
    assert current.shadow is not None
    assert not (device.models / MODEL / "shadow").is_symlink()
    return current.shadow.skipped


def test_an_adapter_that_cannot_copy_and_a_first_release(places: tuple[Fleet, Device]) -> None:
    fleet, device = places
    configure(device, adapter="none")
    assert update.run(device.agent()).errors == []
    first = device.agent().state().model(MODEL).current
    assert first is not None
    assert first.shadow is not None
    assert first.shadow.skipped == "the adapter none cannot copy requests, edgeseal-serve can"
    fleet.publish(2, size=200_000)
    fleet.assigned = 2
    assert "adapter none" in passed(device)


def test_a_first_release_has_nothing_to_be_compared_with(places: tuple[Fleet, Device], tmp_path: Path) -> None:
    _, device = places
    configure(device, adapter="serve", status_file=str(tmp_path / "absent"))
    assert update.run(device.agent()).errors == []
    current = device.agent().state().model(MODEL).current
    assert current is not None
    assert current.shadow is not None
    assert current.shadow.skipped == "no other release serves"


def test_without_edgeseal_serve_the_switch_goes_on(
    places: tuple[Fleet, Device], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet, device = places
    configure(device, adapter="serve", status_file=str(tmp_path / "absent"))
    assert update.run(device.agent()).errors == []
    fleet.publish(2, size=200_000)
    fleet.assigned = 2
    monkeypatch.setattr(shadow, "NOTICE_SECONDS", 0.2)
    assert passed(device) == "no edgeseal-serve follows the order"
    assert "no shadow: no edgeseal-serve follows the order" in fleet.reports[-1].models[MODEL].gate


def test_the_order_says_what_the_configuration_says(
    places: tuple[Fleet, Device], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet, device = places
    status_file = tmp_path / "status.json"
    wanted = {"shadow_fraction": 0.5, "shadow_compare": "top-1", "shadow_tolerance": 0.25, "probe_memory_mb": 77}
    configure(device, adapter="serve", status_file=str(status_file), **wanted)
    assert update.run(device.agent()).errors == []
    fleet.publish(2, size=200_000)
    fleet.assigned = 2
    orders: list[Order] = []

    def look(self: Shadow) -> ShadowStatus | None:
        """Say as edgeseal-serve does in its file that this device cannot, once the order is there."""
        if (found := device.agent().models.shadowed(MODEL)) is None:
            return None
        orders.append(Order.from_bytes(found[1]))
        said = ShadowStatus(2, orders[-1].id, "skipped", "not here")
        serve_status.write(
            status_file, ServeStatus(1, serve_status.boot_id(), {MODEL: ModelStatus(serving=2, since=1, shadow=said)})
        )
        return original(self)

    original = Shadow.look
    monkeypatch.setattr(Shadow, "look", look)
    assert passed(device) == "not here"
    order = orders[0]
    assert (order.fraction, order.seconds, order.compare) == (0.5, 60, "top-1")
    assert (order.tolerance, order.memory_mb) == (0.25, 77)


def test_words_for_a_report_are_never_too_long() -> None:
    for gate in (None, Gate(1, 3, 1.0, 2.0, 3.0)):
        words = gate_words(Installed(1, b"", 1, gate, 60, Shadowed(skipped="x" * 500)))
        assert len(words) == 128
        assert "watched 60 s; no shadow: xxx" in words


# Configuration --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shadow_seconds", "-1"),
        ("shadow_seconds", "7201"),
        ("shadow_fraction", "0.0"),
        ("shadow_fraction", "1.01"),
        ("shadow_compare", '"all"'),
        ("shadow_tolerance", "-0.1"),
        ("shadow_tolerance", "2.5"),
        ("shadow_divergence", "1.5"),
        ("shadow_divergence", "nan"),
    ],
)
def test_a_setting_that_means_nothing_is_named(key: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"runtime.{key}"):
        config.parse(f"[runtime]\n{key} = {value}\n".encode(), name="edgeseal.toml")


def test_it_is_off_unless_it_is_asked_for() -> None:
    assert config.Runtime().shadow_seconds == 0
    asked = b"[runtime]\nshadow_seconds = 7200\nshadow_fraction = 1\nshadow_divergence = 0\n"
    found = config.parse(asked, name="edgeseal.toml").runtime
    assert (found.shadow_seconds, found.shadow_fraction, found.shadow_divergence) == (7200, 1.0, 0.0)
