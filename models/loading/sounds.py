"""Sounds as a model of speech takes them: WAV files, and arrays of samples."""

from __future__ import annotations

import wave
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError

SOUND_ENDINGS = (".wav",)
_TYPES = {1: np.uint8, 2: np.int16, 4: np.int32}  # by bytes of a sample


def open_sound(sound: Any, rate: int) -> np.ndarray:
    """Samples from -1 to 1, float32 [samples], of a file or an array. `rate`: the model's, in samples a second.

    Channels are averaged. Errors: InputError.
    """
    if isinstance(sound, Mapping):  # as transformers' pipelines and data sets have them
        if sound.get("sampling_rate", rate) != rate:
            raise InputError(
                f"a sound has {sound['sampling_rate']} samples a second, the model takes {rate}; resample it"
            )
        sound = sound.get("raw", sound.get("array", ()))
    if not isinstance(sound, str | Path):
        samples = np.asarray(sound, dtype=np.float32)
        if samples.ndim != 1 or not samples.size:
            raise InputError("a sound is a WAV file's path or an array of samples [samples]; give one of these")
        return samples
    try:
        with wave.open(str(sound), "rb") as file:
            found, width, channels = file.getframerate(), file.getsampwidth(), file.getnchannels()
            data = file.readframes(file.getnframes())
    except FileNotFoundError:
        raise InputError(f"{sound}: there is no such file; give a WAV file's path") from None
    except (OSError, EOFError, wave.Error) as error:
        raise InputError(f"{sound}: is no WAV file that can be read ({error or 'it ends too soon'})") from None
    if found != rate:
        raise InputError(f"{sound}: has {found} samples a second, the model takes {rate}; resample it")
    if width not in _TYPES:
        raise InputError(f"{sound}: has samples of {8 * width} bits; save it with 16")
    whole = np.frombuffer(data[: len(data) // (width * channels) * width * channels], _TYPES[width])
    if not whole.size:
        raise InputError(f"{sound}: holds no samples; record something, or leave it out")
    middle, scale = (128.0, 128.0) if width == 1 else (0.0, 2.0 ** (8 * width - 1))
    return ((whole.astype(np.float32) - middle) / scale).reshape(-1, channels).mean(1)
