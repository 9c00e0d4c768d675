"""How far answers are apart, the figures of many, and what the agent concludes from them."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeseal.device import shadow as verdict
from edgeseal.errors import FormatError
from edgeseal.runtime import shadow_text
from edgeseal.runtime.serve_status import ShadowStatus
from edgeseal.runtime.shadow import MAX_ORDER, Order, new_id
from edgeseal.runtime.shadow_figures import MAX_OUTPUTS, WORST, Difference, Figures, difference

pytestmark = pytest.mark.unit
LIMITS = verdict.Limits(divergence=0.05, error_rate=0.05)
FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)
F = np.float32


def array(*values: Any, kind: Any = F) -> Any:
    return np.array(values, kind)


# Two answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("got", "expected", "found"),
    [
        (array(1, 2, 3), array(1, 2, 3), Difference(0, 0, 1, 1)),
        (array(1, 2, 4), array(1, 2, 3), Difference(1, 0.25, 1, 1)),
        (array(3, 2, 1), array(1, 2, 3), Difference(2, 2 / 3, 1, 0)),
        (array(-3, 3), array(3, -3), Difference(6, WORST, 1, 0)),
        (array(0, 0), array(0, 0), Difference(0, 0, 1, 1)),
        (array(1), array(1, 2), Difference(0, WORST, 1, 0)),
        (array(np.nan, 2), array(1, 2), Difference(0, 0, 1, 1, nan=True)),
        (array(np.inf, 2), array(1, 2), Difference(0, 0, 1, 1, nan=True)),
        (array(np.nan, np.nan), array(1, 2), Difference(0, WORST, 1, 0, nan=True)),
        (array(np.nan, 2), array(np.nan, 2), Difference(0, 0, 1, 1)),  # the old one's fault
        (array(1, 2, kind=np.int64), array(1, 4, kind=np.int64), Difference(2, 0.5, 1, 1)),
        (array(1, 0, kind=bool), array(1, 1, kind=bool), Difference(1, 1.0)),
        (array("a", "b", kind=object), array("a", "c", kind=object), Difference(0, 0.5)),
        (np.zeros((0, 3), F), np.zeros((0, 3), F), Difference(0, 0)),
        (np.float32(2), np.float32(1), Difference(1, 0.5)),
    ],
)
def test_difference(got: Any, expected: Any, found: Difference) -> None:
    seen = difference(np.asarray(got), np.asarray(expected))
    assert (seen.absolute, seen.relative) == pytest.approx((found.absolute, found.relative))
    assert seen.nan == found.nan
    if not found.nan:
        assert (seen.rows, seen.agreeing) == (found.rows, found.agreeing)


@given(st.lists(st.tuples(FLOATS, FLOATS), min_size=1, max_size=20), st.floats(0.0625, 1024, width=32))
@settings(max_examples=60, deadline=None)
def test_difference_is_bounded_symmetric_and_does_not_see_the_scale(
    pairs: list[tuple[float, float]], scale: float
) -> None:
    a, b = (np.array([p[i] for p in pairs], np.float64) for i in (0, 1))
    found = difference(a, b)
    assert 0 <= found.relative <= WORST
    assert math.isfinite(found.absolute)
    assert found.agreeing <= found.rows
    assert found.nan == bool((np.isfinite(b) & ~np.isfinite(a)).any())
    if np.isfinite(a).all() and np.isfinite(b).all():
        assert difference(b, a).relative == found.relative
        assert difference(a * scale, b * scale).relative == pytest.approx(found.relative, rel=1e-9)
        assert (found.relative == 0) == bool((a == b).all())


@pytest.mark.parametrize(
    ("found", "compare", "differs"),
    [
        (Difference(1, 0.05), "values", False),
        (Difference(1, 0.051), "values", True),
        (Difference(9, 1.5, 4, 4), "top-1", False),
        (Difference(9, 0.01, 4, 3), "top-1", True),
        (Difference(9, 0.06, 0, 0), "top-1", True),  # no classes: by its values
        (Difference(0, 0, 4, 4, nan=True), "top-1", True),
    ],
)
def test_what_differs(found: Difference, compare: Any, *, differs: bool) -> None:
    assert found.beyond(compare, 0.05) is differs


# Figures --------------------------------------------------------------------------------------------------------------

COPY = st.tuples(st.floats(0, 2), st.booleans(), st.floats(1e-6, 1e6))


@given(st.lists(COPY, max_size=12), st.lists(COPY, max_size=12))
@settings(max_examples=40, deadline=None)
def test_figures_of_two_processes_are_those_of_one(first: list[Any], second: list[Any]) -> None:
    def figures(copies: list[Any]) -> Figures:
        made = Figures()
        for relative, differs, ratio in copies:
            made.add({"y": Difference(relative, relative, 2, 1)}, differs=differs, ratio=ratio)
        return made

    merged, one = figures(first).merged(figures(second)), figures(first + second)
    assert merged.outputs.keys() == one.outputs.keys()
    for name, output in one.outputs.items():
        assert merged.outputs[name].sum_relative == pytest.approx(output.sum_relative)
        merged.outputs[name].sum_relative = output.sum_relative
    assert merged == one
    assert msgspec.json.decode(msgspec.json.encode(merged), type=Figures) == merged
    assert msgspec.convert(json.loads(json.dumps(msgspec.to_builtins(merged))), Figures) == merged


@pytest.mark.parametrize(("ratios", "median"), [([1, 1, 1], 1), ([0.5, 1, 4, 4, 4], 4), ([0, 1], 1), ([1e9], 1024)])
def test_latency_ratio(ratios: list[float], median: float) -> None:
    figures = Figures()
    assert figures.latency_ratio() is None
    for ratio in ratios:
        figures.add({}, differs=False, ratio=ratio)
    assert figures.latency_ratio() == pytest.approx(median, rel=0.05)


def test_a_model_with_many_outputs_and_long_errors_stays_small() -> None:
    figures = Figures()
    figures.add({f"y{n}": Difference(1, 1) for n in range(256)}, differs=True, ratio=1)
    figures.add_error("x" * 100_000)
    assert len(figures.outputs) == MAX_OUTPUTS
    assert len(msgspec.json.encode(figures)) < 10_000


# The verdict ----------------------------------------------------------------------------------------------------------


def seen(**more: Any) -> ShadowStatus:
    about = {k: more.pop(k) for k in ("state", "reason", "crashes") if k in more}
    return ShadowStatus(2, "0" * 16, **{"state": "running", **about}, figures=Figures(**more))


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (seen(compared=100, differing=5), None),
        (seen(compared=100, differing=6), "6 of 100 answers differ from its own; 5.0% may"),
        (seen(compared=19, differing=19), None),  # too few to say
        (seen(compared=1, nan=1), "1 of 1 answers hold values that are not numbers"),
        (seen(compared=5, crashes=1), None),
        (seen(crashes=2, reason="its process ended (SIGKILL)"), "2 crashes while it ran live requests, the last: its"),
        (seen(errors=1), None),
        (seen(errors=2, error="boom"), "2 of 2 requests that the old release answered failed: boom"),
        (seen(compared=95, errors=5), None),
        (seen(state="failed", reason="no file"), "it does not run beside it: no file"),
        (seen(state="skipped", reason="no memory"), None),
    ],
)
def test_what_refuses_a_release(found: ShadowStatus, reason: str | None) -> None:
    said = verdict.judge(found, LIMITS)
    assert said is None if reason is None else reason in (said or "")


@pytest.mark.parametrize(
    ("found", "early"),
    [
        (seen(compared=99, differing=99), False),
        (seen(compared=100, differing=15), False),
        (seen(compared=100, differing=16), True),
        (seen(compared=1, nan=1), True),
    ],
)
def test_what_is_not_waited_for(found: ShadowStatus, *, early: bool) -> None:
    assert (verdict.condemned(found, LIMITS) is not None) is early


def test_a_verdict_names_the_output_that_is_furthest_off() -> None:
    figures = Figures()
    for _ in range(30):
        near, far = Difference(1, 0.01, 2, 2), Difference(5, 0.5, 2, 1)
        figures.add({"a": near, "b": far}, differs=True, ratio=1)
    said = verdict.judge(msgspec.structs.replace(seen(), figures=figures), LIMITS)
    assert said is not None
    assert "output 'b' is off by 50.00% on average, 50.00% at most, 50.0% of its classes agree" in said


@pytest.mark.parametrize(
    ("found", "skipped"),
    [
        (seen(compared=3), "3 requests in 60 s are too few"),
        (seen(state="skipped", reason="memory"), "memory"),
        (seen(compared=30), ""),
    ],
)
def test_what_is_kept(found: ShadowStatus, skipped: str) -> None:
    kept = verdict.result(found, 60)
    assert kept.skipped == skipped
    assert ("not tried in the shadow" in kept.text()) is bool(skipped)


# Orders and words -----------------------------------------------------------------------------------------------------


def test_order_both_ways() -> None:
    order = Order(new_id(), 0.25, 60, "top-1", 0.05, 512)
    assert Order.from_bytes(order.to_bytes()) == order


GOOD_ORDER: dict[str, Any] = {
    "id": "0" * 16,
    "fraction": 1,
    "seconds": 60,
    "compare": "values",
    "tolerance": 0.1,
    "memory_mb": 64,
}


@pytest.mark.parametrize(
    "change",
    [
        {"id": "x"},
        {"id": "0" * 16 + "\n"},
        {"fraction": 0},
        {"fraction": 1.1},
        {"seconds": 0},
        {"compare": "all"},
        {"tolerance": -1},
        {"memory_mb": 0},
        {"more": 1},
        {"seconds": None},
    ],
)
def test_an_order_that_is_none(change: dict[str, Any]) -> None:
    Order.from_bytes(json.dumps(GOOD_ORDER).encode())  # negative control
    with pytest.raises(FormatError):
        Order.from_bytes(json.dumps({**GOOD_ORDER, **change}).encode())


@given(st.one_of(st.binary(max_size=64), st.text(max_size=64).map(str.encode)))
@settings(max_examples=60, deadline=None)
def test_no_bytes_are_an_order_by_chance(data: bytes) -> None:
    with pytest.raises(FormatError):
        Order.from_bytes(data)


def test_an_order_that_is_too_long() -> None:
    with pytest.raises(FormatError, match="are the most"):
        Order.from_bytes(json.dumps(GOOD_ORDER).encode() + b" " * MAX_ORDER)


def test_metrics_are_prometheus_text_whatever_the_model_calls_its_outputs() -> None:
    figures = Figures()
    figures.add({'a"b\\c\nd': Difference(0.5, 0.25, 2, 1)}, differs=True, ratio=2)
    found = msgspec.structs.replace(seen(), seen=9, copied=3, dropped=1, figures=figures)
    text = shadow_text.metrics({"m": {"shadow": msgspec.to_builtins(found)}, "n": {"shadow": None}, "o": {}})
    lines = text.splitlines()
    assert 'edgeseal_shadow_dropped_total{model="m",release="2"} 1' in lines
    assert 'edgeseal_shadow_latency_ratio{model="m",release="2"} 2' in lines
    assert 'edgeseal_shadow_output_top1{model="m",release="2",output="a\\"b\\\\c\\nd"} 0.5' in lines
    label = r'[a-z]+="(?:[^"\\]|\\.)*"'
    sample = re.compile(rf"[a-z_0-9]+\{{{label}(?:,{label})*\}} [0-9.e+-]+")
    assert all(line.startswith("# ") or sample.fullmatch(line) for line in lines)
    names = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(names) == len(set(names))


def test_no_metrics_without_a_shadow() -> None:
    assert shadow_text.metrics({"m": {}}) == ""
