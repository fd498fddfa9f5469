"""An encoder-decoder model as a function of what it reads: of a source, once, or of new tokens and the rows kept.

    a pass over a source     the encoder, then each decoder layer's keys and values of what the encoder gives: they are
                             kept whole, and nothing is revealed
    a pass over new tokens   the decoder, with its own rows (decoder.py) beside those of the source

transformers' own cache holds both kinds of rows, so every model that keeps them there is read as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache

from ..lowering.lower import Inputs
from .decoder import KV_LENGTH, Decoder, counted, filled_cache, tied_table

_SOURCE = "source_"


class CrossDecoder(Decoder):
    """The model's next rows, or those of a source.

    start    id of the token that an answer begins with
    Its forward takes either a source
        input_ids, attention_mask    of a text, [1, S]; or
        input_features               of a recording
    and gives source_key_0, source_value_0, ... [1, heads, S, features]; or what a Decoder takes, and
        source_key_0, ...            rows of a source, then any others
        attention_mask               [1, S]: 1 where the source has something; none where it is never padded
    and gives what a Decoder gives.
    """

    def __init__(self, model: nn.Module, start: int, reveal: str = "scores", embedding: str = "client") -> None:
        self.scale = 1.0  # of hidden states, before the head
        super().__init__(model, torch.tensor([start]), reveal, embedding)

    @property
    def whole(self) -> tuple[str, ...]:
        """Names of the rows of a source."""
        return tuple(f"{_SOURCE}{name}" for name in self.names)

    @property
    def at_end(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride] - it is the model's nature
        return any(getattr(module, "has_relative_attention_bias", False) for module in self._decoder.modules())

    def inputs(self, last: bool = False) -> Inputs:
        whole = frozenset(self.whole)
        return Inputs(frozenset({KV_LENGTH}), frozenset(self.names) | whole, last, self.at_end, whole)

    def rows_of(self, source: Mapping[str, Tensor]) -> int:
        """How many rows are kept of a source."""
        with torch.no_grad():
            return next(iter(self(**source).values())).shape[2]

    def padded(self, source: Mapping[str, Tensor], size: int) -> dict[str, Tensor]:
        """Rows of a source and its mask, as passes over new tokens take them, with room for `size` of the source."""
        with torch.no_grad():
            rows: dict[str, Tensor] = self(**source)
        free = size - next(iter(rows.values())).shape[2]
        given = {name: F.pad(value, (0, 0, 0, free)) for name, value in rows.items()}
        mask = source.get("attention_mask")
        return given if mask is None else {**given, "attention_mask": F.pad(mask, (0, free))}

    def empty(self, slots: int) -> dict[str, Tensor]:
        return {name: torch.zeros(1, shape[1], slots, shape[3]) for name, shape in self.shapes.items()}

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride] - it reads sources, too
        self,
        input_ids: Tensor | None = None,
        rows: Tensor | None = None,
        noise: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_features: Tensor | None = None,
        **past: Tensor,
    ) -> dict[str, Tensor]:
        mask = None if attention_mask is None else attention_mask[:, None, None].bool()
        if rows is None or input_ids is None:
            return self._read_source(input_ids if input_features is None else input_features, mask)
        places = counted(past[self.names[0]])
        free = places[-1:] + 1 - rows if self.at_end else 0
        stands = torch.where((places >= free) & (places < free + rows), places - free, -1)
        own = filled_cache(_layers(past, self.names), None if self.at_end else _Counting(rows))
        cache = EncoderDecoderCache(own, filled_cache(_layers(past, self.whole)))
        states = self._anything(past[self.whole[0]].shape[2])
        seen = self._masks(torch.arange(input_ids.shape[1]) + rows, stands)
        if self.gives == "hidden":
            options = {} if mask is None else {"encoder_attention_mask": mask}
            options |= {"attention_mask": seen, "encoder_hidden_states": states, "use_cache": True}
            hidden = self._decoder(input_ids=input_ids, **options, **{self.cache_name: cache}).last_hidden_state
            revealed = hidden if self.scale == 1.0 else hidden * self.scale
        else:
            options = {"decoder_attention_mask": seen, "attention_mask": mask, "encoder_outputs": (states,)}
            options |= {"use_cache": True, self.cache_name: cache}
            revealed = self.model(decoder_input_ids=input_ids, **options).logits
        return self._outputs(revealed, noise, own, input_ids.shape[1])

    def _read_source(self, source: Tensor | None, mask: Tensor | None) -> dict[str, Tensor]:
        model: Any = self.model
        hidden = model.get_encoder()(source, **({} if mask is None else {"attention_mask": mask})).last_hidden_state
        layers = self._crossed(hidden, mask).cross_attention_cache.layers
        return {
            f"{_SOURCE}{name}": getattr(layers[int(number)], f"{kind}s")
            for name in self.names
            for kind, number in [name.split("_")]
        }

    def _crossed(self, hidden: Tensor, mask: Tensor | None = None) -> EncoderDecoderCache:
        """The caches of a decoder that has read one token, and these states of an encoder."""
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        options: dict[str, Any] = {} if mask is None else {"encoder_attention_mask": mask}
        options |= {"encoder_hidden_states": hidden, "use_cache": True, self.cache_name: cache}
        self._decoder(input_ids=torch.full((1, 1), self.start), **options)
        return cache

    @property
    def _decoder(self) -> Any:
        model: Any = self.model
        return model.get_decoder()

    def _anything(self, size: int) -> Tensor:
        """States of an encoder that nobody reads, or that no answer depends on."""
        return torch.ones(1, size, self.config.hidden_size)

    def _keep_prefix(self, prefix: Tensor) -> None:
        """None: an answer's first tokens read its source. One is read here, to see what there is to keep."""
        self.start = int(prefix)
        with torch.no_grad():
            layers: Any = self._crossed(self._anything(2)).self_attention_cache.layers
        self.shapes = {f"{kind}_{n}": layer.keys.shape for n, layer in enumerate(layers) for kind in ("key", "value")}
        self.names = tuple(self.shapes)

    def _is_tied(self) -> bool:
        """Here a number may stand between the two, as in T5."""
        table, model = tied_table(self.model), self.model
        if table is None:
            return False
        ids, states = torch.arange(min(4, len(table)))[None], self._anything(2)
        with torch.no_grad():
            hidden = self._decoder(input_ids=ids, encoder_hidden_states=states).last_hidden_state
            logits, product = model(encoder_outputs=(states,), decoder_input_ids=ids).logits, hidden @ table.T
        scale = float((logits * product).sum() / product.square().sum())
        self.scale = 1.0 if abs(scale - 1) < 1e-4 else scale
        return torch.allclose(logits, self.scale * product, rtol=1e-4, atol=1e-4)


class _Counting(DynamicCache):
    """A cache with room, of whose rows so many are filled: so a decoder knows where the next token stands."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.filled = rows

    def get_seq_length(self, layer_idx: int = 0) -> Any:
        return self.filled


def _layers(past: Mapping[str, Tensor], names: tuple[str, ...]) -> list[tuple[Tensor, Tensor]]:
    """Keys and values, by layer."""
    return [(past[key], past[value]) for key, value in zip(names[::2], names[1::2], strict=True)]
