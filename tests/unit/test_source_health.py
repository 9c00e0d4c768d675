"""Health of noise sources on its way up: in a device's report, at the fleet server, in metrics, before an operator."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.fleet_world import World as FleetWorld
from tests.unit.fleet_world import record

from edgeseal.checkin import MAX_SOURCES, Report, SourceHealth
from edgeseal.device import config, rng_health
from edgeseal.device.agent import Agent
from edgeseal.enrolment import Record
from edgeseal.entropy import published
from edgeseal.entropy.drivers import detect
from edgeseal.entropy.snapshot import Snapshot, State
from edgeseal.errors import EdgesealError, FormatError
from edgeseal.session.messages import MAX_REQUEST_BODY
from edgeseal.suite import PrivateKey
from edgeseal_host.cli.device import _source
from edgeseal_host.fleet import operations, source_states
from edgeseal_host.fleet.schema import device
from edgeseal_host.fleet.service import Service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.unit.agent_world import Device as AgentDevice
    from tests.unit.agent_world import Fleet

pytestmark = pytest.mark.unit
HEALTHY = SourceHealth("edgeseal-qrng", "healthy", "quantum", "model+calibration", "", 12.1, 0, 640)
FAILED = SourceHealth("chaoskey", "failed", "classical", "vendor", "a frame came twice", None, 3, 0)


def report(*sources: SourceHealth) -> Report:
    return Report(1, "0.1", "pi-4", [], {}, [], {}, {}, 1, 1, "", list(sources))


texts = st.text(max_size=256)
counts = st.integers(0, 2**63 - 1)
decibels = st.none() | st.floats(allow_nan=False, allow_infinity=False)


@given(
    st.lists(st.builds(SourceHealth, texts, texts, texts, texts, texts, decibels, counts, counts), max_size=MAX_SOURCES)
)
@settings(max_examples=60)
def test_a_report_with_sources_is_read_back(sources: list[SourceHealth]) -> None:
    made = report(*sources)
    assert Report.from_bytes(made.to_bytes()) == made


def test_a_full_report_fits_into_one_message() -> None:
    long = SourceHealth("n" * 128, "s" * 10, "c" * 10, "e" * 20, "r" * 128, 12.25, 2**63 - 1, 2**63 - 1)
    assert len(report(*[long] * MAX_SOURCES).to_bytes()) < MAX_REQUEST_BODY / 3


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_ratio_that_is_no_number_is_not_reported(value: float) -> None:
    snapshot = Snapshot("x", qcnr_db=value).as_dict()
    assert rng_health._health(snapshot).qcnr_db is None


def test_more_sources_than_allowed_are_no_report() -> None:
    with pytest.raises(FormatError, match="report"):
        Report.from_bytes(report(*[HEALTHY] * (MAX_SOURCES + 1)).to_bytes())


# On the device -------------------------------------------------------------------------------------------------------


def agent(place: Path, entropy: str) -> Agent:
    text = f'[paths]\nstate = "{place}/state"\nmodels = "{place}/run/models"\n[entropy]\n{entropy}\n'
    return Agent(config.parse(text.encode(), name="c"))


def test_the_report_has_the_services_word(tmp_path: Path) -> None:
    made = agent(tmp_path, 'sources = ["edgeseal-qrng"]')
    (tmp_path / "run").mkdir()
    seen = Snapshot("edgeseal-qrng", State.FAILED, reason="x" * 500, qcnr_db=12.126, alarm_count=3)
    published.publish(tmp_path / "run" / published.NAME, policy="mix", sources=[seen] * 20, kernel_feed="")
    found = rng_health.sources(made)
    assert len(found) == MAX_SOURCES
    assert (found[0].state, found[0].qcnr_db, found[0].alarms, len(found[0].reason)) == ("failed", 12.13, 3, 128)


def test_without_a_service_it_has_what_this_process_sees_and_waits_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detect, "scan", lambda **_: pytest.fail("nothing is opened for a report"))
    found = rng_health.sources(agent(tmp_path, 'sources = ["edgeseal-qrng"]'))
    assert [(f.name, f.state) for f in found] == [("edgeseal-qrng", "absent")]


@pytest.mark.parametrize("entropy", ["", 'policy = "off"\nsources = ["edgeseal-qrng"]'])
def test_a_device_without_sources_reports_none(tmp_path: Path, entropy: str) -> None:
    assert rng_health.sources(agent(tmp_path, entropy)) == []


def test_a_device_without_sources_loads_nothing_for_them() -> None:
    code = (
        "import sys; from edgeseal.device import config, exchange, rng_health; from edgeseal.device.agent import Agent;"
        "rng_health.sources(Agent(config.Config()));"
        "print([m for m in sys.modules if m.startswith(('edgeseal.entropy.drivers', 'edgeseal.entropy.reader'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_an_update_pass_tells_the_fleet(world: tuple[Fleet, AgentDevice]) -> None:
    fleet, enrolled = world
    enrolled.write_config(entropy={"sources": ["edgeseal-qrng"]})
    seen = Snapshot("edgeseal-qrng", State.HEALTHY, source_class="quantum", qcnr_db=12.1)
    published.publish(enrolled.models.parent / published.NAME, policy="mix", sources=[seen], kernel_feed="")
    assert enrolled.run("update").returncode == 0
    assert [(s.name, s.state, s.qcnr_db) for s in fleet.reports[-1].sources] == [("edgeseal-qrng", "healthy", 12.1)]


def test_a_source_that_fails_or_recovers_is_told_at_the_next_poll_and_once(world: tuple[Fleet, AgentDevice]) -> None:
    fleet, enrolled = world
    enrolled.write_config(entropy={"sources": ["edgeseal-qrng"]})

    def told(state: State) -> int:
        seen = Snapshot("edgeseal-qrng", state)
        published.publish(enrolled.models.parent / published.NAME, policy="mix", sources=[seen], kernel_feed="")
        before = len(fleet.reports)
        assert enrolled.run("update").returncode == 0
        return len(fleet.reports) - before

    while told(State.HEALTHY):
        pass
    assert (told(State.FAILED), told(State.FAILED)) == (1, 0)
    assert fleet.reports[-1].sources[0].state == "failed"
    assert (told(State.SUSPECT), told(State.HEALTHY)) == (1, 0)  # no longer failed; what moves often waits its turn


# At the fleet server -------------------------------------------------------------------------------------------------


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Service]:
    made = FleetWorld.make(tmp_path)
    with made.data.open() as fleet:
        found = Service(fleet)
        found.start()
        for i, sources in enumerate(([HEALTHY], [HEALTHY, FAILED], [])):
            key = PrivateKey(1, bytes([i]) * 32).public
            data = record(f"press-{i}", key, bytes(32), fleet.data.public())
            fleet.registry.enrol(Record.from_bytes(data), bytes(32), now=1)
            say(found, f"press-{i}", report(*sources).to_bytes())
        yield found
        found.stop()


def say(service: Service, name: str, data: bytes) -> None:
    with service.fleet.registry.durably() as connection:
        connection.execute(sa.update(device).where(device.c.name == name).values(report=data))


def numbers(service: Service) -> dict[str, float]:
    service.count_sources()
    lines = service.metrics.text().decode().splitlines()
    found = (line.split() for line in lines if line.startswith("edgeseal_noise_sources{"))
    return {name.split('"')[1]: float(number) for name, number in found}


def test_the_metrics_count_sources_by_state(running: Service) -> None:
    found = numbers(running)
    assert set(found) == set(source_states.STATES)
    assert (found["healthy"], found["failed"], found["absent"]) == (2, 1, 0)


def test_a_device_cannot_make_up_a_label(running: Service) -> None:
    say(running, "press-0", report(SourceHealth('x"} 1\n', 'evil"} 9\n', "", "", "", None, 0, 0)).to_bytes())
    found = numbers(running)
    assert set(found) == set(source_states.STATES)
    assert (found["healthy"], found["other"]) == (1, 1)


def test_a_revoked_device_and_an_unreadable_report_count_nothing(running: Service) -> None:
    say(running, "press-0", b"\xff")
    with running.fleet.registry.durably() as connection:
        connection.execute(sa.update(device).where(device.c.name == "press-1").values(revoked=True))
    assert sum(numbers(running).values()) == 0


def test_the_operator_sees_the_sources_of_a_device(running: Service) -> None:
    found = operations.device_details(running.fleet, "press-1", now=1)
    sources: list[dict[str, Any]] = found["report"]["sources"]
    assert [(s["name"], s["state"]) for s in sources] == [("edgeseal-qrng", "healthy"), ("chaoskey", "failed")]
    assert _source(sources[0]).startswith("edgeseal-qrng healthy; quantum, evidence model+calibration, QCNR 12.1 dB")
    assert "failed: a frame came twice" in _source(sources[1])
    assert "\x1b" not in _source(sources[0] | {"name": "\x1b[2J"})


def test_a_report_of_an_older_agent_has_no_sources() -> None:
    from edgeseal import cbor

    fields = cbor.to_map(report())
    del fields[11]
    assert Report.from_bytes(cbor.encode(fields)).sources == []
    with pytest.raises(EdgesealError):
        Report.from_bytes(cbor.encode(fields | {12: 1}))
