"""Which token of the calibration texts has the largest values: one far beyond all others leaves them too few bits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .decoder import Decoder, conversation


@dataclass(frozen=True)
class Sink:
    """`times`: how many times the values of the module's median token its values at `token` reach."""

    module: str
    token: int
    place: int
    times: float


def sink(decoder: Decoder, texts: Iterable[Tensor]) -> Sink:
    """Of all tokens after the prefix, the one with the largest values beside other tokens' of the same module."""
    largest = Sink("", 0, 0, 0.0)
    for ids in texts:

        def seen(module: Any, given: Any, out: Any, ids: Tensor = ids, name: str = "") -> None:
            nonlocal largest
            value = out[0] if isinstance(out, tuple) else out
            if isinstance(value, Tensor) and value.shape[:-1] == (1, len(ids)):
                tops = value[0].abs().amax(-1)
                place, times = int(tops.argmax()), float(tops.max() / tops.median().clamp(min=1e-9))
                if times > largest.times:
                    largest = Sink(name, int(ids[place]), place, times)

        hooks = [
            module.register_forward_hook(lambda *given, name=name, seen=seen: seen(*given, name=name))
            for name, module in decoder.model.named_modules()
        ]
        try:
            for _ in conversation(decoder, ids, len(ids), len(ids)):
                pass  # its forward pass has been seen when it ends
        finally:
            for hook in hooks:
                hook.remove()
    return largest
