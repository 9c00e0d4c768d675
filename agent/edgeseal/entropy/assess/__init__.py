"""Min-entropy estimates of SP 800-90B §6.3 in pure Python: an honest first look at a capture, not a validation.

Over symbols: most common value, t-tuple, longest repeated substring (LRS), and the four predictors. Over bits: most
common value, collision, Markov, compression, t-tuple and LRS. That is all of the standard but the predictors over the
bits of wider symbols, which are slow here: NIST's SP800-90B_EntropyAssessment has them, so its figure may be lower than
this one, never higher. Use it for a submission. No estimate can show that a source is quantum, or random at all: a good
generator passes every one of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from edgeseal.entropy.assess import bitstring, collision, compression, markov, most_common, repeats, tuples
from edgeseal.entropy.assess.bounds import Estimate
from edgeseal.errors import UsageError

SAMPLES: Final = 1_000_000  # what SP 800-90B §3.1.1 asks for
_LEAST: Final = 100  # symbols below which no estimate says anything
_BITS: Final = 8

__all__ = ["SAMPLES", "Assessment", "Estimate", "assess"]


@dataclass(frozen=True, slots=True)
class Assessment:
    """Estimates over symbols and, for symbols of more than one bit, over their bits.

    `h_original` and `h_bitstring` are the least of each, `assessed` is min(h_original, width * h_bitstring): bits of
    min-entropy for one symbol of `width` bits. `complete` is False if the source repeats itself so much that counting
    was cut short: then the figures are upper bounds.
    """

    symbols: int
    distinct: int
    width: int
    literal: tuple[Estimate, ...]
    bitstring: tuple[Estimate, ...]
    complete: bool

    @property
    def h_original(self) -> float:
        """Least estimate over symbols, bits for one symbol."""
        return _least(self.literal, self.width)

    @property
    def h_bitstring(self) -> float | None:
        """Least estimate over bits, bits for one bit; None for a source of single bits."""
        return _least(self.bitstring, 1) if self.bitstring else None

    @property
    def assessed(self) -> float:
        """What one symbol is worth, in bits."""
        if self.h_bitstring is None:
            return self.h_original
        return min(self.h_original, self.width * self.h_bitstring)

    def as_dict(self) -> dict[str, Any]:
        """Shape of `assess --json`."""
        return {
            "symbols": self.symbols,
            "distinct": self.distinct,
            "width": self.width,
            "h_original": self.h_original,
            "h_bitstring": self.h_bitstring,
            "assessed": self.assessed,
            "complete": self.complete,
            "enough": self.symbols >= SAMPLES,
            "literal": [e.as_dict() for e in self.literal],
            "bitstring": [e.as_dict() for e in self.bitstring],
        }


def assess(symbols: bytes, *, width: int, predictors: bool = True) -> Assessment:
    """Estimate the min-entropy of symbols of `width` (1 to 8) bits, one in the low bits of each byte.

    `predictors`: also the four that guess the next symbol; they take more than half of the time.

    Raises UsageError for too few symbols, or if one has more bits than `width`.
    """
    if not 1 <= width <= _BITS:
        raise UsageError(f"symbols have 1 to 8 bits, not {width}", hint="keep the low 8 bits of wider samples")
    if len(symbols) < _LEAST:
        raise UsageError(f"{len(symbols)} symbols are too few to say anything", hint=f"capture {SAMPLES:,}")
    if max(symbols) >> width:
        raise UsageError(f"a symbol has the value {max(symbols)}, more than {width} bits hold", hint="--bits 8?")
    distinct = len(set(symbols))
    if distinct == 1:
        return Assessment(len(symbols), 1, width, (most_common.of_symbols(symbols),), (), complete=True)
    guessed = _predicted(symbols, distinct) if predictors else ()
    bits = bitstring.of_symbols(symbols, width)
    if width == 1:
        found, complete = _of_bits(bits)
        return Assessment(len(symbols), distinct, 1, found + guessed, (), complete)
    repeated = repeats.of_symbols(symbols)
    literal = (most_common.of_symbols(symbols), tuples.t_tuple(repeated), tuples.lrs(repeated), *guessed)
    found, complete = _of_bits(bits)
    return Assessment(len(symbols), distinct, width, literal, found, complete=complete and repeated.complete)


def _of_bits(bits: bitstring.Bits) -> tuple[tuple[Estimate, ...], bool]:
    repeated = repeats.of_bits(bits)
    found = (
        most_common.of_bits(bits),
        collision.of_bits(bits),
        markov.of_bits(bits),
        compression.of_bits(bits),
        tuples.t_tuple(repeated),
        tuples.lrs(repeated),
    )
    return found, repeated.complete


def _predicted(symbols: bytes, kinds: int) -> tuple[Estimate, ...]:
    from edgeseal.entropy.assess.predictors import lag, lz78y, mmc, window

    return tuple(predictor.of_symbols(symbols, kinds) for predictor in (window, lag, mmc, lz78y))


def _least(estimates: tuple[Estimate, ...], most: float) -> float:
    return min((e.min_entropy for e in estimates if e.min_entropy is not None), default=most)
