"""Recordings to calibrate a model of speech on, where its owner gives none: made here, seeded, and nobody's voice.

A pulse for each opening of the glottis, or noise, goes through the resonances of a mouth: vowels, hisses and clicks in
any order say nothing, and reach the ranges of a model's activations that speech does.
"""

from __future__ import annotations

from functools import partial

import numpy as np

COUNT = 8
_VOWELS = (  # resonances in Hz, of a man's a, e, i, o, u and two between them
    (730, 1090, 2440),
    (530, 1840, 2480),
    (270, 2290, 3010),
    (570, 840, 2410),
    (300, 870, 2240),
    (640, 1190, 2390),
    (490, 1350, 1690),
)
_WIDTHS = (80, 100, 140)  # of these resonances
_RING = 1024  # samples after which a resonance has faded
_EDGE = 0.01  # seconds in which a part of a word begins and ends


def calibration_recordings(seconds: int, rate: int, count: int = COUNT) -> list[np.ndarray]:
    """So many recordings of so many seconds, float32 [samples] each, in other voices, loudnesses and noises."""
    return [_recording(seconds, rate, np.random.default_rng(seed)) for seed in range(count)]


def _recording(seconds: int, rate: int, draw: np.random.Generator) -> np.ndarray:
    pitch, spoken = draw.uniform(90, 220), int(seconds * rate * draw.uniform(0.6, 1.0))
    kinds = (partial(_vowel, pitch), _hiss, _click, _pause)
    parts, samples = [], 0
    while samples < spoken:
        kind = kinds[draw.choice(len(kinds), p=(0.55, 0.2, 0.2, 0.05))]
        part = kind(int(draw.uniform(0.05, 0.2) * rate), rate, draw)
        ends = np.arange(len(part))
        parts.append(part * np.clip(np.minimum(ends, ends[::-1]) / (_EDGE * rate), 0, 1))
        samples += len(part)
    words = draw.uniform(0.3, 2.5) * np.concatenate(parts)[: seconds * rate]
    noise = 10 ** draw.uniform(-5, -2.5) * draw.standard_normal(seconds * rate)
    return (np.pad(words, (0, len(noise) - len(words))) + noise).astype(np.float32)


def _vowel(pitch: float, count: int, rate: int, draw: np.random.Generator) -> np.ndarray:
    tones = pitch * (1 + 0.15 * np.sin(2 * np.pi * draw.uniform() + 3 * np.arange(count) / rate))
    pulses = np.diff(np.floor(np.cumsum(tones) / rate), prepend=0) - tones / rate + 0.01 * draw.standard_normal(count)
    for hertz, width in zip(_VOWELS[draw.integers(len(_VOWELS))], _WIDTHS, strict=True):
        pulses = _resonance(pulses, hertz * draw.uniform(0.92, 1.08), width, rate)
    return 0.3 * pulses / max(np.abs(pulses).max(), 1e-9)


def _hiss(count: int, rate: int, draw: np.random.Generator) -> np.ndarray:
    noise = _resonance(draw.standard_normal(count), draw.uniform(2500, 6000), 800, rate)
    return 0.08 * noise / np.abs(noise).max()


def _click(count: int, rate: int, draw: np.random.Generator) -> np.ndarray:
    after = np.arange(count) - int(0.6 * count)
    return 0.1 * draw.standard_normal(count) * np.where(after < 0, 0, np.exp(-after / (0.01 * rate)))


def _pause(count: int, rate: int, draw: np.random.Generator) -> np.ndarray:
    return np.zeros(2 * count)


def _resonance(samples: np.ndarray, hertz: float, width: float, rate: int) -> np.ndarray:
    """The samples through a filter that rings at a frequency, and leaves what does not change as it is."""
    fading, turn, places = np.exp(-np.pi * width / rate), 2 * np.pi * hertz / rate, np.arange(_RING)
    gain = 1 - 2 * fading * np.cos(turn) + fading**2
    return np.convolve(samples, gain * fading**places * np.sin(turn * (places + 1)) / np.sin(turn))[: len(samples)]
