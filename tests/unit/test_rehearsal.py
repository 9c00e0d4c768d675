"""A worker asks itself before others do: through the whole application, and without a trace in what it counts."""

from __future__ import annotations

import asyncio
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any

from tests.unit import runtime_world as world

from edgeseal.runtime import rehearsal
from edgeseal.runtime.app import Server
from edgeseal.runtime.models import Models

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest


def _models(directory: Path, make: Callable[[Path], None]) -> Models:
    make(directory / "model.onnx")
    models = Models.load([("m", 1, directory)], threads=1, failed={})
    assert not models.failed
    return models


def _rehearsed(models: Models) -> Server:
    server = Server(models)
    asyncio.run(rehearsal.rehearse(server.app(), models.all()))
    return server


def test_requests_go_the_whole_way(tmp_path: Path) -> None:
    server = _rehearsed(_models(tmp_path, lambda path: world.affine(path, 1.0)))
    tally = server.counters.own["m"][1]
    assert (tally.requests, tally.errors) == (rehearsal.ROUNDS, 0)


def test_inputs_too_large_for_json_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "_MAX_VALUES", 3)
    assert not _rehearsed(_models(tmp_path, lambda path: world.affine(path, 1.0))).counters.own


def test_a_model_that_never_ends_on_zeros_holds_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "SECONDS", 0.2)
    monkeypatch.setattr("edgeseal.runtime.models.warm", lambda _: None)
    _rehearsed(_models(tmp_path, world.endless))


def test_one_refusal_is_enough(tmp_path: Path) -> None:
    models = _models(tmp_path, lambda path: world.affine(path, 1.0))
    asked: list[str] = []

    async def refuse(scope: Any, _receive: Any, send: Any) -> None:
        asked.append(scope["path"])
        await send({"type": "http.response.start", "status": 500, "headers": []})

    asyncio.run(rehearsal.rehearse(refuse, models.all()))
    assert asked == ["/v2/models/m/infer"]


def test_callers_find_nothing_counted() -> None:
    with world.repository() as models:
        world.publish(models, "m", 1, 1.0)
        models.switch("m", 1)
        with world.serving(models) as server:
            connection = HTTPConnection(server.address, timeout=30)
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
            connection.close()
    assert 'release{model="m"} 1' in text
    assert "edgeseal_serve_requests_total{" not in text
