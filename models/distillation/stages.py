"""The student's two stages: the teacher's states first, then its answers and the labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..distillation_settings import DistillSettings
from ..loading.heads import SentenceEncoder
from .batches import Tokens, in_order
from .ranges import RangePenalty, blame, extremes
from .teacher import judged
from .training import Stage

# A model's states on a batch without its padding, and a teacher's states kept in memory.
#
# N tokens of a batch that are not padding, P pairs of tokens of one text, H hidden size, A heads, C classes.


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
        output = model.model(**batch, output_hidden_states=True)
        (answers,) = model.answer(model.pooled(output.last_hidden_state, batch["attention_mask"])).to_tuple()
        return States(answers, [h[mask] for h in output.hidden_states])
    if not deep:
        return States(model(**batch).logits)
    weighs = getattr(model.config, "_attn_implementation", "") != "sdpa"  # which keeps its attention to itself, too
    output = model(**batch, output_hidden_states=True, output_attentions=weighs)
    pairs = mask[:, :, None] & mask[:, None, :]
    seen = [a for a in output.attentions or () if a is not None and a.shape[-2:] == pairs.shape[-2:]]
    attention = [a.permute(0, 2, 3, 1)[pairs] for a in seen]  # not of layers behind a pooling, which are the last ones
    return States(output.logits, [h[mask] for h in output.hidden_states], attention)


class TeacherStates:
    """A teacher's states on a fixed set of texts: computed when first asked for; kept in half precision if they fit.

    layers   which of the teacher's layers the student's correspond to (0: the first)
    bfloat16 whether its matrix products are of bfloat16, which changes its answers by less than a student errs
    """

    def __init__(
        self, teacher: nn.Module, tokens: Tokens, *, layers: Sequence[int], deep: bool, cache_mb: int, bfloat16: bool
    ) -> None:
        self.teacher, self.tokens, self.deep, self.bfloat16 = teacher.eval(), tokens, deep, bfloat16
        self.layers = list(layers)
        self._keeps = self._bytes() <= cache_mb * 1_000_000
        self._kept: list[States] = []

    def __call__(self, indices: Sequence[int], batch: dict[str, Tensor]) -> States:
        with torch.autocast(self.tokens.device.type, enabled=False):
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
        with torch.no_grad(), torch.autocast(self.tokens.device.type, torch.bfloat16, enabled=self.bfloat16):
            states = states_of(self.teacher, batch, self.deep)
        if self.deep:
            states.hidden = [states.hidden[0], *(states.hidden[i + 1] for i in self.layers)]
            states.attention = [states.attention[i] for i in self.layers] if states.attention else []
        return states

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
            states = self._run(self.tokens.batch(indices))
            sizes = [lengths[i] for i in indices]
            hidden = [h.half().split(sizes) for h in states.hidden]
            attention = [a.half().split([n * n for n in sizes]) for a in states.attention]
            for at, i in enumerate(indices):
                # Clones: a view would keep the whole batch alive.
                kept[i] = States(states.logits[at].clone(), [h[at].clone() for h in hidden],
                                 [a[at].clone() for a in attention])  # fmt: skip
        return [state for state in kept if state is not None]


# What a student is trained on: the teacher's states, its softened answers, and the labels.
#
# The recipe is the field's: X. Jiao et al., TinyBERT, arXiv:1909.10351 (states first, answers second); G. Hinton et
# al., arXiv:1503.02531 (temperature); D. Li et al., MPCFormer, arXiv:2211.01452 (both, with approximations in place). N
# tokens of a batch that are not padding, H hidden size, A heads, C classes.


def state_loss(student: States, teacher: States, attention_weight: float) -> tuple[Tensor, dict[str, float]]:
    """Mean squared errors of embeddings, hidden states and attention, each layer's divided by its teacher's variance.

    Layers differ in scale by orders of magnitude: without the division, the largest would be all that is learned.
    """
    hidden = _mean_relative(student.hidden, teacher.hidden)
    parts = {"hidden": hidden.item()}
    total = hidden
    if attention_weight and student.attention and teacher.attention:
        theirs = [_joined(t, s.shape[-1]) for s, t in zip(student.attention, teacher.attention, strict=False)]
        attention = _mean_relative(student.attention, theirs)
        parts["attention"] = attention.item()
        total = total + attention_weight * attention
    return total, parts


def _joined(attention: Tensor, heads: int) -> Tensor:
    """Attention [P, A] of fewer heads: the mean of neighbours."""
    return attention if attention.shape[-1] == heads else attention.float().unflatten(-1, (heads, -1)).mean(-1)


def embedding_loss(student: Tensor, teacher: Tensor) -> tuple[Tensor, dict[str, float]]:
    """The squared error of sentence embeddings [texts, H], relative to the teacher's variance."""
    error = _relative(student, teacher)
    return error, {"embedding": error.item()}


def _mean_relative(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    return torch.stack([_relative(s, t) for s, t in zip(student, teacher, strict=True)]).mean()


def _relative(student: Tensor, teacher: Tensor) -> Tensor:
    student, teacher = student.float(), teacher.float()
    return F.mse_loss(student, teacher) / teacher.var().clamp_min(1e-8)


def answer_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    temperature: float,
    soft_weight: float,
) -> tuple[Tensor, dict[str, float]]:
    """soft T^2 KL(teacher || student at temperature T) + (1 - soft) cross entropy; logits [texts, C].

    A label below 0 is unknown: such a text counts in the first part only.
    """
    student = student.float()
    soft = F.kl_div(
        F.log_softmax(student / temperature, -1),
        F.log_softmax(teacher.float() / temperature, -1),
        log_target=True,
        reduction="batchmean",
    ) * (temperature * temperature)
    total, parts = soft_weight * soft, {"soft": soft.item()}
    if (labels >= 0).any():
        hard = F.cross_entropy(student, labels, ignore_index=-1)
        total, parts["hard"] = total + (1 - soft_weight) * hard, hard.item()
    return total, parts


Found = tuple[Tensor, dict[str, float]]


class Pupil:
    """What both stages need: the models, the texts, and the penalty that observes the student.

    kept    which of the teacher's layers the student's correspond to
    start   ranges of the student's activations before training, by site
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        kept: list[int],
        train: Tokens,
        validation: Tokens,
        settings: DistillSettings,
        start: dict[str, tuple[float, float]],
    ) -> None:
        self.student, self.teacher, self.kept = student, teacher, kept
        self.train, self.validation, self.settings, self.start = train, validation, settings, start
        self.penalty = RangePenalty()
        self.embeds = type(student) is SentenceEncoder

    def known(self, tokens: Tokens, deep: bool) -> TeacherStates:
        """The teacher's states on some texts."""
        layers = self.kept if deep else ()
        cache_mb, bfloat16 = self.settings.cache_mb, self.settings.bfloat16
        return TeacherStates(self.teacher, tokens, layers=layers, deep=deep, cache_mb=cache_mb, bfloat16=bfloat16)

    def penalised(self, loss: Tensor, parts: dict[str, float]) -> Found:
        """The loss with what activations beyond their limits cost."""
        outside = self.penalty.take()
        return loss + self.settings.range_weight * outside, {**parts, "ranges": outside.item()}

    def blame(self, indices: Sequence[int]) -> str:
        return blame(extremes(self.student, self.train.batch(indices)), self.start)


Compare = Callable[[Tokens, Sequence[int], dict[str, Tensor], States], Found]
"""The loss of a batch: of which texts, at these positions, the model's inputs and the teacher's states."""


def hidden_stage(pupil: Pupil) -> Stage:
    """Embeddings, hidden states and attention, layer by layer. The models must let their attention be looked at.

    Of sentence encoders the hidden states and the sentence's embedding.
    """
    settings = pupil.settings

    def compare(tokens: Tokens, indices: Sequence[int], batch: dict[str, Tensor], theirs: States) -> Found:
        ours = states_of(pupil.student, batch, True)
        loss, parts = state_loss(ours, theirs, settings.attention_weight)
        if not pupil.embeds:
            return loss, parts
        answers, more = embedding_loss(ours.logits, theirs.logits)
        return loss + answers, parts | more

    return _stage(pupil, "hidden", settings.hidden_epochs, settings.hidden_rate, compare, deep=True)


def logit_stage(pupil: Pupil) -> Stage:
    """The teacher's softened answers and the labels; the epoch with the least loss on validation counts.

    Not the most accurate one: on some hundred texts accuracy is noise of a point or two, and the loss is not.
    """
    settings = pupil.settings

    def compare(tokens: Tokens, indices: Sequence[int], batch: dict[str, Tensor], theirs: States) -> Found:
        ours, labels = pupil.student(**batch).logits, tokens.labels_of(indices)
        return answer_loss(ours, theirs.logits, labels, settings.temperature, settings.soft_weight)

    return _stage(pupil, "logits", settings.logit_epochs, settings.logit_rate, compare, deep=False)


def _stage(pupil: Pupil, name: str, epochs: int, rate: float, compare: Compare, deep: bool) -> Stage:
    """`deep`: the teacher's hidden states are compared; else answers, which are judged by their labels, too."""
    train, validation = pupil.train, pupil.validation
    known, known_validation = pupil.known(train, deep), pupil.known(validation, deep)

    def loss(indices: Sequence[int], length: int) -> Found:
        batch = train.batch(indices, length)
        return pupil.penalised(*compare(train, indices, batch, known(indices, batch)))

    def validate() -> dict[str, float]:
        figures, sums = {} if deep else judged(pupil.student, validation), dict[str, float]()
        for indices in in_order(validation.lengths, pupil.settings.batch):
            batch = validation.batch(indices)
            error, parts = compare(validation, indices, batch, known_validation(indices, batch))
            for part, value in (("loss", error.item()), *parts.items()):
                sums[part] = sums.get(part, 0.0) + value * len(indices) / len(validation)
        return {**figures, **sums, "score": -sums["loss"]}

    return Stage(name, epochs, rate, loss, validate, blame=pupil.blame)
