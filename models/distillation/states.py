"""A model's states on a batch without its padding, and a teacher's states kept in memory.

N tokens of a batch that are not padding, P pairs of tokens of one text, H hidden size, A heads, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..loading.heads import SentenceEncoder
from .batches import Tokens, in_order


@dataclass
class States:
    """logits [texts, C], or a sentence encoder's answers, [texts, H]; hidden: embeddings and each layer's output,
    [N, H]; attention: each layer's, [P, A]."""

    logits: Tensor
    hidden: list[Tensor] = field(default_factory=list)
    attention: list[Tensor] = field(default_factory=list)


def states_of(model: nn.Module, batch: dict[str, Tensor], deep: bool) -> States:
    """`deep`: hidden states and attention, too. A model that keeps its attention to itself gives none; a sentence
    encoder is not asked for it."""
    mask = batch.get("attention_mask", torch.ones(())).bool()
    if isinstance(model, SentenceEncoder):
        found = model.model(**batch, output_hidden_states=True)
        (answers,) = model.answer(model.pooled(found.last_hidden_state, batch["attention_mask"])).to_tuple()
        return States(answers, [h[mask] for h in found.hidden_states])
    if not deep:
        return States(model(**batch).logits)
    found = model(**batch, output_hidden_states=True, output_attentions=True)
    pairs = mask[:, :, None] & mask[:, None, :]
    attention = [a.permute(0, 2, 3, 1)[pairs] for a in (found.attentions or ()) if a is not None]
    return States(found.logits, [h[mask] for h in found.hidden_states], attention)


class TeacherStates:
    """A teacher's states on a fixed set of texts: computed when first asked for; kept in half precision if they fit.

    layers   which of the teacher's layers the student's correspond to (0: the first)
    """

    def __init__(
        self,
        teacher: nn.Module,
        tokens: Tokens,
        *,
        layers: Sequence[int],
        deep: bool,
        cache_mb: int,
    ) -> None:
        self.teacher, self.tokens, self.deep = teacher.eval(), tokens, deep
        self.layers = list(layers)
        self._keeps = self._bytes() <= cache_mb * 1_000_000
        self._kept: list[States] = []

    def __call__(self, indices: Sequence[int], batch: dict[str, Tensor]) -> States:
        with torch.autocast(self.tokens.device.type, enabled=False):  # what is learned from is exact
            if not self._keeps:
                return self._run(batch)
            if not self._kept:  # not earlier: a stage that is done already needs none
                self._kept = self._compute()
            rows = [self._kept[i] for i in indices]
            return States(
                torch.stack([row.logits for row in rows]),
                [torch.cat(parts) for parts in zip(*(row.hidden for row in rows), strict=True)],
                [torch.cat(parts) for parts in zip(*(row.attention for row in rows), strict=True)],
            )

    def _run(self, batch: dict[str, Tensor]) -> States:
        with torch.no_grad():
            found = states_of(self.teacher, batch, self.deep)
        if self.deep:
            found.hidden = [found.hidden[0], *(found.hidden[i + 1] for i in self.layers)]
            found.attention = [found.attention[i] for i in self.layers] if found.attention else []
        return found

    def _bytes(self) -> int:
        if not self.deep:
            return 0
        config = self.teacher.config
        heads = getattr(config, "num_attention_heads", getattr(config, "n_head", 0))
        hidden = getattr(config, "hidden_size", getattr(config, "n_embd", 0))
        layers, lengths = len(self.layers), self.tokens.lengths
        return 2 * sum((layers + 1) * hidden * n + layers * heads * n * n for n in lengths)

    def _compute(self) -> list[States]:
        lengths = self.tokens.lengths
        kept: list[States | None] = [None] * len(self.tokens)
        for indices in in_order(lengths, 32):
            found = self._run(self.tokens.batch(indices))
            sizes = [lengths[i] for i in indices]
            hidden = [h.half().split(sizes) for h in found.hidden]
            attention = [a.half().split([n * n for n in sizes]) for a in found.attention]
            for at, i in enumerate(indices):
                # Clones: a view would keep the whole batch alive.
                kept[i] = States(found.logits[at].clone(), [h[at].clone() for h in hidden],
                                 [a[at].clone() for a in attention])  # fmt: skip
        return [state for state in kept if state is not None]
