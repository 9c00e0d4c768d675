"""What an analyst of bearings looks at: the spectrum of the envelope over shaft orders, and the spectrum itself.

Damage rings the housing at a few kilohertz; the rhythm of the strikes is in the envelope of that ringing, not in the
signal. Dividing frequencies by the shaft's speed (from its tachometer) puts each kind of damage at the same place
whatever the speed. Not here: what decides from it (train.py). Needs numpy only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from .signals import SAMPLE_RATE, SAMPLES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .signals import Signal

BAND_HZ: Final = (2_000.0, 5_500.0)  # where housings ring
ORDERS: Final[NDArray[np.float64]] = np.linspace(0.2, 13.0, 512)  # two strikes of every kind of damage, and sidebands
BANDS: Final = 512
FEATURES: Final = len(ORDERS) + BANDS
_FREQUENCIES: Final = np.fft.rfftfreq(SAMPLES, 1 / SAMPLE_RATE)
_WINDOW: Final[NDArray[np.float64]] = np.hanning(SAMPLES)


def envelope(signal: Signal) -> Signal:
    """Return how loud the ringing is at each sample: magnitude of the analytic signal within BAND_HZ."""
    spectrum = np.fft.fft(signal)
    frequencies = np.fft.fftfreq(len(signal), 1 / SAMPLE_RATE)
    kept = (frequencies >= BAND_HZ[0]) & (frequencies <= BAND_HZ[1])  # positive only: that makes it analytic
    return np.abs(np.fft.ifft(2 * spectrum * kept))


def order_spectrum(signal: Signal, speed_hz: float) -> Signal:
    """Return the envelope's spectrum at ORDERS: 1 is once a turn of the shaft."""
    loudness = envelope(signal)
    spectrum = np.abs(np.fft.rfft((loudness - loudness.mean()) * _WINDOW))
    at_orders: Signal = np.interp(ORDERS * speed_hz, _FREQUENCIES, spectrum) / (loudness.mean() * SAMPLES)
    return at_orders


def features(signal: Signal, speed_hz: float) -> NDArray[np.float32]:
    """Return the network's input: the envelope over orders, then the signal's spectrum in bands, as logarithms."""
    power = np.abs(np.fft.rfft(signal * _WINDOW))[1:] ** 2
    bands = power.reshape(BANDS, -1).mean(axis=1)
    both = np.concatenate([order_spectrum(signal, speed_hz) ** 2 + 1e-8, bands / bands.mean() + 1e-8])
    found: NDArray[np.float32] = np.log(both).astype(np.float32)
    return found
