"""Min-entropy estimates against NIST's own tool, closed forms and counting by hand.

The reference figures are what NIST's SP800-90B_EntropyAssessment (ea_non_iid -i -a -vv) printed for these very bytes,
and from its selftest/refdata for the mean values given there.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeseal.entropy.assess import (
    SAMPLES,
    assess,
    bitstring,
    collision,
    compression,
    markov,
    most_common,
    repeats,
    tuples,
)
from edgeseal.entropy.assess.bounds import upper
from edgeseal.entropy.assess.predictors import outcome
from edgeseal.entropy.assess.predictors.window import Window
from edgeseal.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.unit
N = 50_000


def uniform(n: int) -> bytes:
    return random.Random(1).randbytes(n)


def uniform_without_a_frequent_pair(n: int) -> bytes:
    """Uniform bytes of which, at a million, no pair comes 35 times."""
    return random.Random(13).randbytes(n)


def biased(n: int) -> bytes:
    """Bytes of bits with P(1) = 0.6."""
    r = random.Random(2)
    return bytes(sum((r.random() < 0.6) << k for k in range(8)) for _ in range(n))


def stick(n: int) -> bytes:
    """Low bytes of the stick's model: sigma 68.65 LSB, lag-1 correlation -0.031."""
    r, x, out = random.Random(3), 0.0, bytearray()
    for _ in range(n):
        x = -0.031 * x + r.gauss(0, 68.65 * math.sqrt(1 - 0.031**2))
        out.append(min(4095, max(0, round(2048 + x))) & 255)
    return bytes(out)


def bits(n: int) -> bytes:
    r = random.Random(4)
    return bytes(int(r.random() < 0.6) for _ in range(n))


# source, width, literal and bitstring estimates in order of the tuples of Assessment
NIST = {
    "uniform": (
        uniform,
        8,
        (
            7.470223106536604,
            7.470223106536604,
            7.75518086126013,
            7.411960368249361,
            7.842872736925731,
            7.698397913337524,
            7.697965157185486,
        ),
        (
            0.9940428065091012,
            0.8948618353523301,
            0.9992307834814003,
            0.8398678070064923,
            0.9291176658284627,
            0.9795708630153732,
        ),
    ),
    "biased": (
        biased,
        8,
        (
            5.81702871579164,
            5.81702871579164,
            7.341370852818401,
            6.039316162113519,
            7.328222322698851,
            6.512087359508164,
            6.520033024061147,
        ),
        (
            0.7316852414409906,
            0.7171803654619443,
            0.7374706112383217,
            0.5216557998345189,
            0.6892482274135848,
            0.9192476435112283,
        ),
    ),
    "stick": (
        stick,
        8,
        (
            7.077421234277225,
            7.077421234277225,
            7.551923067477355,
            7.411960368249361,
            7.412558264457626,
            7.333200575335575,
            7.317800415773067,
        ),
        (
            0.991961028227506,
            0.7233246586123008,
            0.9412606725870869,
            0.7534290609629926,
            0.9107783535586486,
            0.9910905197699231,
        ),
    ),
    "bits": (
        lambda n: bits(4 * n // 5),
        1,
        (
            0.7171350500565912,
            0.7114918798057273,
            0.7350864151383723,
            0.5018120536654848,
            0.705402989150301,
            0.902770438232253,
            0.7239549641329183,
            0.9255012785679696,
            0.7173000286897295,
            0.717591363484942,
        ),
        (),
    ),
}


@pytest.mark.parametrize("name", NIST)
def test_every_estimate_is_what_the_nist_tool_says_for_the_same_bytes(name: str) -> None:
    make, width, literal, bitstrings = NIST[name]
    found = assess(make(N), width=width)
    assert [e.min_entropy for e in found.literal] == pytest.approx(literal, rel=1e-9)
    assert [e.min_entropy for e in found.bitstring] == pytest.approx(bitstrings, rel=1e-9)
    assert found.complete
    assert not found.as_dict()["enough"]


@pytest.mark.parametrize(
    ("mean", "p"),
    [(2.4395643654531334, 0.67383272785477999), (2.0383744580128056, 0.98042977738018067), (2.5224700384317478, 0.5)],
)
def test_collision_mean_gives_the_probability_of_nist_refdata(mean: float, p: float) -> None:
    assert collision.of_mean(mean).p == pytest.approx(p, rel=1e-9)


@pytest.mark.parametrize(
    ("mean", "bits_", "p"),
    [
        (5.1219016843117551, 1_165_666, 0.081936203422937059),
        (0.70729239203524708, 1_000_000, 0.92877466571109557),
        (5.2154460395011881, 8_000_000, 0.023269820763614391),
        (5.0283495184921581, 8_000_000, 0.11866185634166618),
    ],
)
def test_compression_mean_gives_the_probability_of_nist_refdata(mean: float, bits_: int, p: float) -> None:
    assert compression.of_mean(mean, bits_ // 6).p == pytest.approx(p, rel=1e-9)


@pytest.mark.slow
@pytest.mark.timeout(600)  # half a minute each, on an idle machine
@pytest.mark.parametrize(
    ("make", "predictors", "original", "per_bit", "reference"),
    # Figures of NIST's tool on a million bytes of other samples of the same kinds.
    [
        (uniform_without_a_frequent_pair, False, 7.883, 0.8948, 7.158),
        (biased, False, 5.856, 0.5286, 4.229),
        (stick, True, 6.64, 5.92 / 8, 5.92),
    ],
)
def test_a_million_bytes_score_within_two_percent_of_the_reference(
    make: Callable[[int], bytes], predictors: bool, original: float, per_bit: float, reference: float
) -> None:
    found = assess(make(SAMPLES), width=8, predictors=predictors)
    assert found.h_original == pytest.approx(original, rel=0.02)
    assert found.h_bitstring == pytest.approx(per_bit, rel=0.02)
    assert found.assessed == pytest.approx(reference, rel=0.02)


@pytest.mark.parametrize(
    ("make", "most", "longest", "h"),
    [(uniform, 35, 2, 7.354), (uniform_without_a_frequent_pair, 34, 1, 7.883)],
)
def test_uniform_bytes_have_two_scores_and_one_pair_decides(
    make: Callable[[int], bytes], most: int, longest: int, h: float
) -> None:
    """SP 800-90B §6.3.5 looks at tuples that come 35 times or more: in half of all runs a pair of a perfect source."""
    data = make(SAMPLES)
    counted = repeats.of_symbols(data)
    assert counted.most[2] == most
    found = tuples.t_tuple(counted)
    assert found.detail["t"] == longest
    assert found.min_entropy == pytest.approx(h, rel=0.001)
    assert most_common.of_symbols(data).min_entropy == pytest.approx(7.883, rel=0.001)


def test_how_often_one_pair_of_uniform_bytes_comes_35_times() -> None:
    """What docs/qrng-model.md says: 49 % of all perfect sequences of a million bytes score 7.35 instead of 7.88."""
    mean = (SAMPLES - 1) / 2**16
    below = math.fsum(math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(35))
    assert 1 - below**2**16 == pytest.approx(0.493, abs=0.001)
    at_least = (35 / (SAMPLES - 1)) ** 0.5
    assert -math.log2(upper(at_least, SAMPLES)) == pytest.approx(7.354, abs=0.001)


def test_confidence_bound_of_nist_refdata() -> None:
    assert upper(0.0041240000000000001, 1_000_000) == pytest.approx(0.0042890742216425554, rel=1e-12)
    assert upper(1.0, 1000) == 1.0


def test_markov_of_a_source_without_memory_is_its_most_likely_bit() -> None:
    found = markov.of_transitions(0.75, c00=625, c01=1875, c10=1875, c11=5625)
    assert found.min_entropy == pytest.approx(-math.log2(0.75))


def test_markov_sees_what_alternates() -> None:
    data = bitstring.of_symbols(b"\x55" * 1000, 8)
    assert markov.of_bits(data).min_entropy == pytest.approx(1 / 128)  # only the first bit is unknown


@pytest.mark.parametrize(("p", "r", "n"), [(0.5, 5, 40), (0.3, 3, 60), (0.9, 12, 50), (0.01, 2, 1000)])
def test_no_longer_run_is_what_counting_says(p: float, r: int, n: int) -> None:
    """Exact by a chain over the length of the present run; the formula is asymptotic in n."""
    state = [1.0] + [0.0] * (r - 1)
    for _ in range(n):
        state = [sum(state) * (1 - p), *(x * p for x in state[:-1])]
    assert outcome.log_no_longer_run(p, r, n) == pytest.approx(math.log(sum(state)), rel=0.01)


def test_a_predictor_that_is_always_right_leaves_nothing() -> None:
    found = assess(bytes([1, 2]) * 3000, width=8)
    assert {e.name for e in found.literal if e.min_entropy is not None and e.min_entropy < 0.01} >= {
        "lag",
        "multi-mmc",
        "lz78y",
    }


def mode(window: bytes) -> int:
    counts = Counter(window)
    return max(counts, key=lambda v: (counts[v], window.rindex(v)))


@given(st.lists(st.integers(0, 4), min_size=20, max_size=200).map(bytes), st.integers(3, 15))
@settings(max_examples=100)
def test_a_window_knows_its_most_common_value_at_every_step(data: bytes, width: int) -> None:
    found = Window(data, width)
    assert found.mode == mode(data[:width])
    for i in range(width, len(data)):
        found.slide(i)
        assert found.mode == mode(data[i - width + 1 : i + 1])


@given(st.binary(min_size=2, max_size=40), st.integers(1, 8))
def test_markov_counts_transitions_at_every_length(data: bytes, width: int) -> None:
    data = bytes(b & ((1 << width) - 1) for b in data)
    packed = bitstring.of_symbols(data, width)
    text = packed.text().decode()
    assert text == "".join(format(b, f"0{width}b") for b in data)
    pairs = Counter(pairwise(text))
    expected = markov.of_transitions(
        text.count("1") / len(text),
        c00=pairs["0", "0"],
        c01=pairs["0", "1"],
        c10=pairs["1", "0"],
        c11=pairs["1", "1"],
    )
    assert markov.of_bits(packed) == expected
    assert packed.ones == text.count("1")


def by_hand(text: bytes) -> tuple[list[int], list[int]]:
    """Counts of the most frequent tuple and of equal pairs, for every length that repeats."""
    most, pairs = [0], [0]
    for w in range(1, len(text)):
        counts = Counter(text[i : i + w] for i in range(len(text) - w + 1)).values()
        if max(counts) == 1:
            break
        most.append(max(counts))
        pairs.append(sum(c * (c - 1) // 2 for c in counts))
    return most, pairs


@given(st.lists(st.integers(0, 3), min_size=1, max_size=120).map(bytes))
@settings(max_examples=150)
def test_repeats_of_symbols_are_counted_as_by_hand(text: bytes) -> None:
    found = repeats.of_symbols(text)
    assert (found.most, found.pairs) == by_hand(text)
    assert found.complete


@given(st.binary(min_size=1, max_size=40), st.integers(0, 7))
@settings(max_examples=100)
def test_repeats_of_bits_are_counted_as_by_hand(packed: bytes, cut: int) -> None:
    length = 8 * len(packed) - cut
    whole = int.from_bytes(packed, "big") >> cut << cut
    data = bitstring.Bits(whole.to_bytes(len(packed), "big"), length)
    found = repeats.of_bits(data)
    assert (found.most, found.pairs) == by_hand(data.text())


@pytest.mark.parametrize("period", [1, 2, 3, 16, 17, 31])
def test_repeats_of_periodic_text_longer_than_a_chunk(period: int) -> None:
    text = (bytes(range(period)) * 200)[:190]
    found = repeats.of_symbols(text)
    assert (found.most, found.pairs) == by_hand(text)
    packed = bitstring.of_symbols(bytes(b & 1 for b in text), 1)
    counted = repeats.of_bits(packed)
    assert (counted.most, counted.pairs) == by_hand(packed.text())


def test_one_frame_sent_twice_is_seen() -> None:
    data = bytearray(stick(20_000))
    before = assess(bytes(data), width=8)
    data[15_000:15_480] = data[5_000:5_480]
    found = assess(bytes(data), width=8)
    assert before.assessed > 5
    assert found.assessed < 0.7
    assert found.literal[2].detail["v"] == 480


@pytest.mark.parametrize("unit", [bytes(range(256)), b"\0\1", b"\x5a\x5b\x5c"])
def test_a_counter_or_a_loop_has_next_to_no_entropy_and_takes_bounded_work(unit: bytes) -> None:
    found = assess((unit * 20_000)[:20_000], width=8)
    assert found.assessed < 0.15
    assert not found.complete  # said, not hidden: the figure is an upper bound


def test_a_constant_has_none() -> None:
    found = assess(b"\x2a" * 1000, width=8)
    assert found.assessed == 0
    assert math.copysign(1, found.assessed) == 1


@pytest.mark.parametrize(
    ("data", "width", "says"),
    [
        (b"\0" * 99, 8, "99 symbols"),
        (b"\0\2" * 100, 1, "value 2"),
        (b"\0" * 200, 9, "1 to 8 bits"),
        (b"\0" * 200, 0, "1 to 8"),
    ],
)
def test_unusable_input_is_refused(data: bytes, width: int, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        assess(data, width=width)


def test_estimators_that_cannot_run_say_why_and_do_not_count() -> None:
    found = assess(uniform(100), width=8)
    assert {e.name for e in found.literal + found.bitstring if e.min_entropy is None} >= {"compression", "t-tuple"}
    assert all(e.why for e in found.literal + found.bitstring if e.min_entropy is None)
    assert 0 < found.assessed < 8
