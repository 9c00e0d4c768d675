"""A release in the shadow of a real edgeseal-serve, for tests: ordered as the agent orders it."""

from __future__ import annotations

import http.client
import json
from typing import TYPE_CHECKING, Any

from tests.unit import runtime_world as world

from edgeseal.runtime.serve_status import ShadowStatus
from edgeseal.runtime.shadow import Order, Shadow, new_id

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edgeseal.runtime.repository import ModelRepository

BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}).encode()


def order(**more: Any) -> Order:
    """Every request, values within one part in a thousand."""
    defaults: dict[str, Any] = {"fraction": 1.0, "seconds": 60, "compare": "values", "tolerance": 1e-3}
    return Order(**{"id": new_id(), "memory_mb": 1024, **defaults, **more})


def serve_release(models: ModelRepository, release: int, bias: float) -> None:
    world.publish(models, "m", release, bias)
    models.switch("m", release)


def put(models: ModelRepository, release: int, write: Callable[[Path], object]) -> None:
    """Publish what `write` makes of model.onnx; nothing points at it."""
    write(models.stage("m", release) / "model.onnx")
    models.publish("m", release)


def ordered(models: ModelRepository, status_file: Path, release: int, **more: Any) -> Shadow:
    found = Shadow(models, status_file, "m", release, order(**more))
    found.begin()
    return found


def look(shadow: Shadow) -> ShadowStatus:
    return shadow.look() or ShadowStatus(0, "", "waiting")


def state(shadow: Shadow, wanted: str) -> ShadowStatus:
    world.until(lambda: look(shadow).state == wanted, f"the shadow is {wanted}", 120)  # of low priority
    return look(shadow)


def ask(server: world.Serve, body: bytes = BODY, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(server.address, timeout=30)
    try:
        connection.request("POST", "/v2/models/m/infer", body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()
