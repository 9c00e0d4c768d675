"""Cutoffs of SP 800-90B, the two continuous tests, the tests of the noise model: what they find and what not."""

from __future__ import annotations

import math
from array import array
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.sim import stickmodel

from edgeseal.stick import frame, health

if TYPE_CHECKING:
    from collections.abc import Iterator

# SP 800-90B sections 4.4.1 and 4.4.2, as scipy.stats.binom.isf gives them: alpha 2^-20, 2^-30, 2^-40; window 512
CUTOFFS = {
    0.5: ((41, 61, 81), (410, 422, 432)),
    1: ((21, 31, 41), (311, 325, 336)),
    2: ((11, 16, 21), (177, 190, 201)),
    3: ((8, 11, 15), (103, 114, 123)),
    4: ((6, 9, 11), (62, 71, 78)),
    5: ((5, 7, 9), (39, 46, 51)),
    7: ((4, 6, 7), (18, 22, 26)),
}
ALPHAS = (20, 30, 40)


def _codes(values: object) -> array[int]:
    return array("H", np.asarray(values, "<u2").tobytes())


def _model() -> health.Model:
    return health.Model(stickmodel.MIDDLE, stickmodel.SIGMA, lag=stickmodel.LAG)


def _frames(fault: str | None = None, *, seed: int = 1, fault_from: int = 0) -> Iterator[array[int]]:
    front = stickmodel.SimulatedFront(seed=seed, fault=fault, fault_from=fault_from)
    while True:
        yield array("H", bytes(front.take()[0]))


@pytest.mark.parametrize("h", CUTOFFS)
def test_cutoffs_are_those_of_the_standard(h: float) -> None:
    rct, apt = CUTOFFS[h]
    assert tuple(health.rct_cutoff(h, alpha) for alpha in ALPHAS) == rct
    assert tuple(health.apt_cutoff(h, health.WINDOW, alpha) for alpha in ALPHAS) == apt


def test_cutoffs_of_other_implementations() -> None:
    assert tuple(health.apt_cutoff(1, health.BINARY_WINDOW, alpha) for alpha in ALPHAS) == (589, 609, 625)
    assert health.apt_cutoff(8, 512, 20) == 13  # Nordic nRF54
    assert (health.rct_cutoff(0.5, 20), health.apt_cutoff(0.5, 512, 20)) == (41, 410)  # Go crypto/internal/entropy


@given(h=st.floats(0.01, 12), alpha=st.sampled_from(ALPHAS))
@settings(max_examples=25)
def test_apt_cutoff_equals_the_binomial_quantile_in_floating_point(h: float, alpha: int) -> None:
    """An independent computation: log-gamma instead of integers."""
    p = 2.0 ** -(int(h * 256) / 256)

    def log_weight(k: int) -> float:
        choose = math.lgamma(513) - math.lgamma(k + 1) - math.lgamma(513 - k)
        return choose + k * math.log(p) + (512 - k) * math.log1p(-p)

    tail, critical = 0.0, 512
    while critical > 0 and tail + math.exp(log_weight(critical)) <= 2.0**-alpha * (1 + 1e-9):
        tail += math.exp(log_weight(critical))
        critical -= 1
    assert health.apt_cutoff(h, 512, alpha) == 1 + critical


@pytest.mark.parametrize("h", [0, -1, 0.001])
def test_a_claim_of_nothing_is_refused(h: float) -> None:
    with pytest.raises(ValueError, match="1/256"):
        health.rct_cutoff(h, 20)
    with pytest.raises(ValueError, match="1/256"):
        health.apt_cutoff(h, 512, 20)


_PARTS = st.lists(st.lists(st.integers(0, 2), max_size=12), max_size=12)


@given(_PARTS)
@settings(max_examples=100)
def test_rct_sees_runs_across_frames(parts: list[list[int]]) -> None:
    whole = [x for part in parts for x in part]
    longest = max((sum(1 for _ in run) for _, run in groupby(whole)), default=0)
    test = health.Rct(4)
    alarms = [test.feed(part) for part in parts]
    assert any(alarms) == (longest >= 4)
    assert test.longest == longest


@given(_PARTS)
@settings(max_examples=100)
def test_apt_counts_windows_across_frames(parts: list[list[int]]) -> None:
    whole = [x for part in parts for x in part]
    windows = [whole[at : at + 10] for at in range(0, len(whole), 10)]
    highest = max((w.count(w[0]) for w in windows), default=0)
    test = health.Apt(6, 10)
    alarms = [test.feed(part) for part in parts]
    assert any(alarms) == (highest >= 6)
    assert test.highest == highest


def test_after_a_gap_neither_run_nor_window_goes_on() -> None:
    rct, apt = health.Rct(4), health.Apt(4, 10)
    assert not rct.feed([7, 7, 7])
    assert not apt.feed([7, 7, 7])
    rct.reset()
    apt.reset()
    assert not rct.feed([7])
    assert not apt.feed([7])
    assert rct.feed([7, 7, 7])  # negative control: without a gap it does
    assert apt.feed([7, 7, 7])


def test_apt_finds_a_source_of_two_and_a_half_bits_but_not_one_of_three_and_a_half() -> None:
    """What the claim of 4 bits can promise at 2^-40: the reason the model's tests exist."""
    random = np.random.default_rng(3)
    found = {}
    for h in (2.5, 3.5):
        p = 2.0**-h
        rest = (1 - p) / 63
        windows = random.choice(64, size=(100, 512), p=[p, *[rest] * 63])
        windows[:, 0] = 0
        found[h] = sum(health.Apt(health.apt_cutoff(4, 512, 40), 512).feed(_codes(w)) for w in windows)
    assert found[2.5] >= 85
    assert found[3.5] == 0


FIRST_FRAME = {
    "led-dead": {health.SIGMA},
    "dim": {health.SIGMA},
    "constant": {health.SIGMA, health.BITS},
    "stuck-bit-0": {health.BITS},
    "stuck-bit-4": {health.BITS},
    "stuck-bit-7": {health.MEAN},
    "saturated": {health.MEAN, health.SATURATION},
    "hum": {health.LAG},
    "offset": {health.MEAN},
}


@pytest.mark.parametrize("fault", FIRST_FRAME)
@pytest.mark.parametrize("seed", range(5))
def test_the_model_finds_the_fault_in_its_first_frame(fault: str, seed: int) -> None:
    frames, model = _frames(fault, seed=seed, fault_from=10), _model()
    for _ in range(10):
        assert model.feed(next(frames)) == []
    assert FIRST_FRAME[fault] <= set(model.feed(next(frames)))


def test_a_spread_a_quarter_too_wide_is_found_within_a_few_frames() -> None:
    """One frame estimates sigma to 3 %, so at the edge of the tolerance of 20 % it takes more than one."""
    model = _model()
    assert any(model.feed(f) for f, _ in zip(_frames("drift"), range(5), strict=False))


@pytest.mark.parametrize("fault", ["led-dead", "stuck-bit-0", "stuck-bit-4", "stuck-bit-7", "hum"])
def test_the_90b_tests_alone_miss_it(fault: str) -> None:
    """Negative control: it is the model's tests that find these."""
    rct, apt, frames = health.Rct(11), health.Apt(78, 512), _frames(fault)
    assert not any(rct.feed(f) or apt.feed(f) for f, _ in zip(frames, range(200), strict=False))


@pytest.mark.parametrize("fault", ["constant", "saturated"])
def test_the_90b_tests_find_a_total_failure_in_one_frame(fault: str) -> None:
    samples = next(_frames(fault))
    assert health.Rct(11).feed(samples)
    assert health.Apt(78, 512).feed(samples)


def test_a_replay_of_ten_frames_is_found_at_the_eleventh() -> None:
    healthy = _frames()
    loop = [next(healthy) for _ in range(10)]
    model = _model()
    assert [model.feed(f) for f in loop] == [[]] * 10
    assert model.feed(loop[0]) == [health.DUPLICATE]


def test_a_replay_longer_than_the_memory_passes_this_test_and_is_left_to_mac_and_sequence() -> None:
    seen = health.Duplicates(capacity=10)
    blocks = [bytes([i]) for i in range(11)]
    assert not any(seen.feed(b) for b in blocks * 2)
    assert health.Duplicates(capacity=11).feed(blocks[0]) is False


def test_what_is_forgotten_is_the_oldest() -> None:
    seen = health.Duplicates(capacity=3)
    for name in (b"a", b"b", b"c", b"d"):
        assert not seen.feed(name)
    assert seen.feed(b"b")
    assert seen.feed(b"d")
    assert not seen.feed(b"a")


def test_a_generator_that_poses_as_noise_is_not_found() -> None:
    """Measured, not regretted: statistics cannot tell. Blocks are only ever mixed in."""
    model = _model()
    for samples, _ in zip(_frames(), range(500), strict=False):
        assert model.feed(samples) == []


def test_the_model_refuses_a_spread_at_which_its_bit_planes_mean_nothing() -> None:
    with pytest.raises(ValueError, match="bit-plane"):
        health.Model(2048, 10)


@pytest.mark.parametrize("extreme", [0, 4095])
def test_saturation_is_reported_from_one_sample_in_a_hundred(extreme: int) -> None:
    samples = next(_frames())
    for i in range(4):
        samples[i * 100] = extreme
    assert health.SATURATION not in _model().feed(samples)
    samples[1] = extreme
    assert health.SATURATION in _model().feed(samples)


@pytest.mark.timeout(600)
def test_no_false_alarm_in_100_000_healthy_frames() -> None:
    """All tests over 48 million samples, about 18 s: numpy draws the noise, the real code judges it."""
    random = np.random.default_rng(20261125)
    rct, apt, model = health.Rct(health.rct_cutoff(4, 40)), health.Apt(health.apt_cutoff(4, 512, 40), 512), _model()
    for _ in range(100):
        white = random.standard_normal(1000 * frame.SAMPLES + 1)
        noise = (white[1:] + stickmodel.LAG * white[:-1]) / math.sqrt(1 + stickmodel.LAG**2)
        codes = np.rint(stickmodel.MIDDLE + stickmodel.SIGMA * noise).astype("<u2").reshape(1000, frame.SAMPLES)
        for row in codes:
            samples = array("H", row.tobytes())
            assert not rct.feed(samples)
            assert not apt.feed(samples)
            assert model.feed(samples) == []
