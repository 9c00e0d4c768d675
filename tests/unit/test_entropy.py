"""Randomness with provenance: what a seed depends on, what refuses, and that nothing falls back in silence.

Statistics cannot tell a good generator from a good liar, so these tests are about the path the bytes take.
"""

from __future__ import annotations

import ast
import hashlib
import hmac
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgeseal
from edgeseal.entropy import BLOCK_LENGTH, EntropyError, Hedged, Mixer, Policy, Profile, SourceError, kernel
from edgeseal.entropy.checks import Freshness

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

POLICIES = pytest.mark.parametrize("policy", list(Policy))


def block(number: int, name: str = "block") -> bytes:
    return hashlib.shake_256(f"{name} {number}".encode()).digest(BLOCK_LENGTH)


class Stick:
    """A source that gives what it is told to give, one block after the other; an exception is raised."""

    def __init__(self, blocks: Iterator[bytes | Exception], name: str = "stick") -> None:
        self.profile = Profile(name, "quantum", "vendor")
        self.asked = 0
        self._blocks = blocks

    def block(self, *, timeout: float) -> bytes:
        assert timeout >= 0
        self.asked += 1
        given_ = next(self._blocks)
        if isinstance(given_, Exception):
            raise given_
        return given_


def healthy(name: str = "stick") -> Stick:
    return Stick((block(i, name) for i in range(1000)), name)


def os_stream(name: str = "os") -> Callable[[int], bytes]:
    blocks = (block(i, name) for i in range(10_000))
    return lambda length: next(blocks)[:length]


def expected(key: bytes, purpose: str, *blocks: bytes) -> bytes:
    """The formula of the specification, written again."""
    parts = (b"edgeseal/entropy/v1", purpose.encode(), *blocks)
    message = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return hmac.new(key, message, hashlib.sha512).digest()


FAULTS: dict[str, Callable[[], Iterator[bytes | Exception]]] = {
    "all-zeros": lambda: (bytes(BLOCK_LENGTH) for _ in range(100)),
    "constant": lambda: (block(7) for _ in range(100)),
    "replays-two": lambda: (block(i % 2) for i in range(100)),
    "replays-ten": lambda: (block(i % 10) for i in range(100)),
    "counter": lambda: (i.to_bytes(BLOCK_LENGTH, "big") for i in range(100)),
    "half-repeats": lambda: (block(i)[:32] * 2 for i in range(100)),
    "few-values": lambda: (bytes(b & 15 for b in block(i)) for i in range(100)),
    "short": lambda: (block(i)[:-1] for i in range(100)),
    "long": lambda: (block(i) + b"x" for i in range(100)),
    "empty": lambda: (b"" for _ in range(100)),
    "absent": lambda: (SourceError("not attached") for _ in range(100)),
    "dies-after-the-first": lambda: (block(0) if i == 0 else SourceError("gone") for i in range(100)),
}


def faulty(name: str) -> Stick:
    return Stick(FAULTS[name]())


# What the output depends on -------------------------------------------------------------------------------------------


@POLICIES
def test_output_is_the_formula_and_nothing_else(policy: Policy) -> None:
    drawn = Mixer([healthy()], policy=policy, os_random=os_stream()).draw("seed", 64)
    blocks = () if policy is Policy.OFF else (block(1, "stick"),)  # the first one only showed that it changes
    assert drawn.data == expected(block(1, "os"), "seed", *blocks)


@POLICIES
def test_every_bit_of_the_os_bytes_counts(policy: Policy) -> None:
    def draw(flip: int | None) -> bytes:
        key = bytearray(block(1, "os"))
        if flip is not None:
            key[flip // 8] ^= 1 << flip % 8
        blocks = iter([block(0, "os"), bytes(key)])
        return Mixer([healthy()], policy=policy, os_random=lambda _: next(blocks)).draw("seed", 32).data

    assert len({draw(flip) for flip in (None, *range(8 * BLOCK_LENGTH))}) == 1 + 8 * BLOCK_LENGTH


@pytest.mark.parametrize("policy", [Policy.MIX, Policy.REQUIRE])
def test_every_bit_of_a_source_block_counts(policy: Policy) -> None:
    def draw(flip: int | None) -> bytes:
        second = bytearray(block(1))
        if flip is not None:
            second[flip // 8] ^= 1 << flip % 8
        stick = Stick(iter([block(0), bytes(second)]))
        return Mixer([stick], policy=policy, os_random=os_stream()).draw("seed", 32).data

    assert len({draw(flip) for flip in (None, *range(8 * BLOCK_LENGTH))}) == 1 + 8 * BLOCK_LENGTH


def test_os_bytes_are_drawn_after_every_source_was_read() -> None:
    """A source that knows them before it answers could choose the result."""
    order: list[str] = []

    class Watched(Stick):
        def block(self, *, timeout: float) -> bytes:
            order.append("source")
            return super().block(timeout=timeout)

    def os_random(length: int) -> bytes:
        order.append("os")
        return block(len(order), "os")[:length]

    sources = [Watched((block(i, name) for i in range(9)), name) for name in ("a", "b")]
    mixer = Mixer(sources, policy=Policy.MIX, os_random=os_random)
    for _ in range(2):
        mixer.draw("seed", 32)
    assert order == ["source"] * 4 + ["os"] * 2 + ["source"] * 2 + ["os"]


def test_purposes_and_lengths_are_apart() -> None:
    def draw(purpose: str, length: int) -> bytes:
        return Mixer(policy=Policy.OFF, os_random=os_stream()).draw(purpose, length).data

    assert draw("a", 32) != draw("b", 32)
    assert draw("a", 32) == draw("a", 64)[:32], "one output, cut"
    for length in (0, -1, 65):
        with pytest.raises(ValueError, match="1 to 64"):
            draw("a", length)


def test_real_os_generator_is_the_default() -> None:
    mixer = Mixer(policy=Policy.OFF)
    assert len({mixer.draw("seed", 32).data for _ in range(100)}) == 100


# The operating system's generator -------------------------------------------------------------------------------------


@POLICIES
@pytest.mark.parametrize("given_", [bytes(64), block(0)], ids=["zeros", "constant"])
def test_constant_os_generator_refused_at_the_first_draw(policy: Policy, given_: bytes) -> None:
    with pytest.raises(EntropyError, match="operating system's random generator"):
        Mixer([healthy()], policy=policy, os_random=lambda _: given_).draw("seed", 32)


def test_os_generator_that_starts_to_repeat_refused() -> None:
    blocks = iter([block(0), block(1), block(2), block(1)])
    mixer = Mixer(policy=Policy.OFF, os_random=lambda _: next(blocks))
    for _ in range(2):
        mixer.draw("seed", 32)
    with pytest.raises(EntropyError, match="same block twice"):
        mixer.draw("seed", 32)


def test_os_generator_that_gives_too_little_refused() -> None:
    with pytest.raises(EntropyError, match="63 bytes where 64"):
        Mixer(policy=Policy.OFF, os_random=lambda _: block(0)[:63]).draw("seed", 32)


# Faulty sources -------------------------------------------------------------------------------------------------------


def draws_until_refused(mixer: Mixer) -> int:
    for n in range(20):
        try:
            mixer.draw("seed", 32)
        except EntropyError:
            return n
    raise AssertionError("never refused")


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_source_refused_under_require(fault: str) -> None:
    """Whatever it is, it is found before the source repeats anything into a second output."""
    assert draws_until_refused(Mixer([faulty(fault)], policy=Policy.REQUIRE, os_random=os_stream())) <= 9


@pytest.mark.parametrize("fault", [f for f in FAULTS if f != "replays-ten"])
def test_faulty_source_makes_no_seed_at_all_under_require(fault: str) -> None:
    mixer = Mixer([faulty(fault)], policy=Policy.REQUIRE, os_random=os_stream())
    assert draws_until_refused(mixer) <= (1 if fault == "replays-two" else 0)


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_source_leaves_exactly_the_os_generator_under_mix(fault: str) -> None:
    mixer = Mixer([faulty(fault)], policy=Policy.MIX, os_random=os_stream())
    drawn = [mixer.draw("seed", 64) for _ in range(12)]
    used = [d for d in drawn if "stick: quantum, evidence vendor" in d.sources]
    assert len(used) <= 9
    for number, one in enumerate(drawn, start=1):
        if one not in used:
            assert one.data == expected(block(number, "os"), "seed")
            assert one.sources[0] == "os: getrandom"
            assert one.sources[1].startswith("stick: not used, "), "what was left out is not in the record"


def test_source_that_failed_a_test_stays_out() -> None:
    stick = Stick(iter([bytes(64), *(block(i) for i in range(9))]))
    mixer = Mixer([stick], policy=Policy.MIX, os_random=os_stream())
    for _ in range(3):
        assert "not used" in mixer.draw("seed", 32).sources[1]
    assert stick.asked == 1


def test_source_that_was_only_late_comes_back() -> None:
    stick = Stick(iter([SourceError("busy"), *(block(i) for i in range(9))]))
    mixer = Mixer([stick], policy=Policy.MIX, os_random=os_stream())
    assert mixer.draw("seed", 32).sources == ("os: getrandom", "stick: not used, busy")
    assert mixer.draw("seed", 32).sources == ("os: getrandom", "stick: quantum, evidence vendor")


def test_one_healthy_source_is_enough_and_the_record_names_the_other() -> None:
    mixer = Mixer([faulty("constant"), healthy("other")], policy=Policy.REQUIRE, os_random=os_stream())
    assert mixer.draw("seed", 32).sources == (
        "os: getrandom", "stick: not used, gave the same block twice", "other: quantum, evidence vendor",
    )  # fmt: skip


def test_source_that_equals_the_os_generator_does_not_cancel_it() -> None:
    """XOR would: two equal inputs give zero."""
    stick = Stick(block(i, "os") for i in range(9))
    mixer = Mixer([stick], policy=Policy.REQUIRE, os_random=os_stream())
    assert len(set(mixer.draw("seed", 64).data)) > 24


# Policies -------------------------------------------------------------------------------------------------------------


def test_require_without_a_source_refuses() -> None:
    with pytest.raises(EntropyError, match="none is attached") as caught:
        Mixer(policy=Policy.REQUIRE).draw("seed", 32)
    assert "nothing was generated" in str(caught.value)
    assert caught.value.exit_code == 7, "of its own: scripts wait for it"


def test_off_never_reads_a_source() -> None:
    stick = healthy()
    drawn = Mixer([stick], policy=Policy.OFF, os_random=os_stream()).draw("seed", 32)
    assert (stick.asked, drawn.sources) == (0, ("os: getrandom",))


def test_sources_share_one_deadline() -> None:
    now = [0.0]
    timeouts: list[float] = []

    class Slow(Stick):
        def block(self, *, timeout: float) -> bytes:
            timeouts.append(timeout)
            now[0] += 0.2
            return super().block(timeout=timeout)

    sources = [Slow((block(i, name) for i in range(9)), name) for name in ("a", "b")]
    Mixer(sources, policy=Policy.MIX, os_random=os_stream(), clock=lambda: now[0]).draw("seed", 32)
    assert timeouts == pytest.approx([0.25, 0.05, 0, 0])


def test_two_sources_of_one_name_are_our_bug() -> None:
    with pytest.raises(ValueError, match="one name"):
        Mixer([healthy(), healthy()], policy=Policy.MIX)


def test_bytes_are_not_in_the_repr() -> None:
    drawn = Mixer(policy=Policy.OFF).draw("seed", 32)
    assert drawn.data.hex() not in repr(drawn)
    assert repr(drawn.data) not in repr(drawn)


# Checks ---------------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=80))
def test_checks_answer_for_any_bytes(data: bytes) -> None:
    fault = Freshness().fault(data, BLOCK_LENGTH)
    assert fault is None or isinstance(fault, str)


def test_checks_do_not_refuse_good_bytes() -> None:
    fresh = Freshness()
    assert not [f for i in range(5000) if (f := fresh.fault(block(i), BLOCK_LENGTH))]


# The device's hedged generator ----------------------------------------------------------------------------------------


def hedged(
    *, k_rng: bytes = b"k" * 32, at: int = 5, os_name: str = "os", label: str = "e", draws: int = 1, length: int = 64
) -> bytes:
    made = Hedged(Mixer(policy=Policy.OFF, os_random=os_stream(os_name)), k_rng=k_rng, clock=lambda: at)
    return [made.draw(label, length) for _ in range(draws)][-1]


def test_hedged_output_depends_on_every_input() -> None:
    outputs = [
        hedged(), hedged(k_rng=b"j" * 32), hedged(at=6), hedged(os_name="other"), hedged(label="s1"), hedged(draws=2),
    ]  # fmt: skip
    assert len(set(outputs)) == len(outputs)
    assert hedged() == hedged()


def test_clone_with_a_dead_os_generator_differs_by_time_alone() -> None:
    """A cloned image that repeats its randomness draws the same key only in the same nanosecond and process."""
    assert hedged(at=5) != hedged(at=6)


def test_hedged_never_gives_less_than_asked_for() -> None:
    for length in (1, 32, 64):
        assert len(hedged(length=length)) == length
    for length in (0, 65, 1000):
        with pytest.raises(ValueError, match="1 to 64"):
            hedged(length=length)


def test_hedged_record_names_every_contribution() -> None:
    mixer = Mixer([healthy()], policy=Policy.MIX)
    assert Hedged(mixer, k_rng=bytes(32)).drawn("seed", 32).sources == (
        "os: getrandom", "stick: quantum, evidence vendor", "k_rng: provisioning host",
    )  # fmt: skip


def test_hedged_does_not_hide_a_refusal() -> None:
    with pytest.raises(EntropyError):
        Hedged(Mixer(policy=Policy.REQUIRE), k_rng=bytes(32)).drawn("seed", 32)


# The kernel's pool ----------------------------------------------------------------------------------------------------


def test_feeding_the_kernel_never_fails_and_says_what_happened(tmp_path: Path) -> None:
    assert kernel.feed(block(0), device=tmp_path / "none") == "kernel: not fed, ENOENT"
    (tmp_path / "file").write_bytes(b"")
    assert kernel.feed(block(0), device=tmp_path / "file") == "kernel: fed"
    assert kernel.feed(block(0), device=tmp_path / "file", reseed=True) == "kernel: fed, reseed denied (ENOTTY)"
    assert (tmp_path / "file").read_bytes() == block(0)
    assert kernel.feed(block(0)).startswith("kernel: ")


# No way round it ------------------------------------------------------------------------------------------------------


def imported(path: Path) -> set[str]:
    tree = ast.parse(path.read_text("utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}


def test_no_module_that_makes_keys_knows_another_generator() -> None:
    """Coldcard's fault of 2021: a fallback generator that was compiled in and got used."""
    root = Path(edgeseal.__file__).parent
    modules = [*root.glob("*.py"), *root.glob("session/*.py"), *root.glob("entropy/*.py"), root / "device/enrol.py"]
    assert len(modules) > 20
    for path in modules:
        assert not imported(path) & {"random", "secrets", "numpy", "numpy.random"}, path.name
        if path.name != "mixer.py":
            assert "urandom" not in path.read_text("utf-8"), path.name
