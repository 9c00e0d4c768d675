"""A source that conditions its own output, healthy: uniform bytes raise no alarm, and dead ones do."""

from __future__ import annotations

import random

import pytest

from edgeseal.entropy import battery
from edgeseal.stick import health

pytestmark = pytest.mark.unit


def test_uniform_bytes_raise_no_alarm_in_five_thousand_frames() -> None:
    r, model = random.Random(5), battery.uniform_model()
    assert [names for _ in range(5000) if (names := model.feed(r.randbytes(battery.FRAME)))] == []


@pytest.mark.parametrize(
    ("fault", "test"),
    [
        (lambda d: bytes(len(d)), health.MEAN),
        (lambda d: bytes(b | 1 for b in d), health.BITS),
        (lambda d: bytes(96 + b // 4 for b in d), health.SIGMA),
        (lambda d: bytes(b for b in d[: len(d) // 2] for _ in (0, 1)), health.LAG),
    ],
)
def test_faults_of_a_conditioned_source_are_found(fault: object, test: str) -> None:
    data = random.Random(6).randbytes(battery.FRAME)
    assert callable(fault)
    assert test in battery.uniform_model().feed(fault(data))
