"""What the agent leaves beside a model for its page, from every state it may be in, as the page reads it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from edgeseal.device import notes
from edgeseal.device.state import Failed, Gate, Installed, Model, Shadowed, Trial
from edgeseal.runtime import page

pytestmark = pytest.mark.unit


def gate(cases: int) -> Gate:
    return Gate(at=1, cases=cases, latency_ms=1.5, memory_mb=20.0, load_ms=3.0)


def installed(release: int, **more: Any) -> Installed:
    return Installed(release, b"", 100, gate(release), **more)


def trial(step: Any, release: int = 3) -> Trial:
    return Trial(release, b"", step, 0, 1000, "boot", 2, gate(release), shadow=Shadowed(skipped="nobody asked"))


def failed(release: int, *, served: bool) -> Failed:
    return Failed(release, bytes([release]) * 32, f"why {release}", at=release, served=served)


def described(**model: Any) -> dict[str, Any]:
    return notes.describe(Model(**model), watch_seconds=60)


def test_nothing_known_nothing_said() -> None:
    assert described() == {}
    assert described(current=Installed(1, b"", 100)) == {}


def test_figures_of_every_release_that_may_serve() -> None:
    found = described(current=installed(2), previous=installed(1), trial=trial("watching"))
    assert {release: about["cases"] for release, about in found["gate"].items()} == {"1": 1, "2": 2, "3": 3}
    assert found["shadow"] == {"3": "not tried in the shadow: nobody asked"}


def test_of_one_release_twice_the_newest_figures() -> None:
    found = described(current=installed(2), trial=msgspec.structs.replace(trial("watching", 2), gate=gate(9)))
    assert found["gate"]["2"]["cases"] == 9


@pytest.mark.parametrize("step", ["probing", "shadowing", "switching", "committing", "undoing", "interrupted"])
def test_only_what_serves_on_trial_is_on_trial(step: str) -> None:
    assert described(trial=trial("watching"))["watch"] == {"release": 3, "until": 1060}
    assert "watch" not in described(trial=trial(step))
    assert "watch" not in notes.describe(Model(trial=trial("watching")), watch_seconds=0)


def test_the_last_of_each_kind_of_failure() -> None:
    many = [failed(9, served=False), failed(8, served=True), failed(7, served=False), failed(6, served=True)]
    found = described(failed=many)
    assert found["rollback"] == {"release": 8, "reason": "why 8", "at": 8}
    assert found["refused"] == {"release": 9, "reason": "why 9", "at": 9}


def test_the_page_reads_all_of_it() -> None:
    about = described(
        current=installed(3, shadow=Shadowed(seconds=5, compared=20)),
        trial=trial("watching"),
        failed=[failed(9, served=False), failed(8, served=True)],
    )
    shown = page.render([], {}, {"m": {"serving": None}}, {"m": about}, now=1010.0)
    assert "release 8 was taken back" in shown
    assert "release 9 was not let in" in shown
    view = page._view("m", page_loaded(3), {}, {}, about)
    assert (view.gate, view.watch) == (page.GateNote(3, 1.5, 20.0), page.WatchNote(3, 1060))
    assert view.shadow == "not tried in the shadow: nobody asked"


def page_loaded(release: int) -> Any:
    from edgeseal.runtime.models import Loaded

    unused: Any = None
    return Loaded("m", release, unused, 0.0)
