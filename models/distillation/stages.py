"""The student's two stages: the teacher's states first, then its answers and the labels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..loading.heads import SentenceEncoder
from .batches import Tokens, in_order
from .losses import answer_loss, embedding_loss, state_loss
from .processes import ALONE, Processes
from .ranges import RangePenalty, blame, extremes
from .settings import DistillSettings
from .states import TeacherStates, states_of
from .teacher import judged
from .training import Stage

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
        processes: Processes = ALONE,
    ) -> None:
        self.student, self.teacher, self.kept = student, teacher, kept
        self.train, self.validation, self.settings, self.start = train, validation, settings, start
        self.penalty, self.processes = RangePenalty(), processes
        self.embeds = type(student) is SentenceEncoder

    def known(self, tokens: Tokens, deep: bool) -> TeacherStates:
        """The teacher's states on some texts."""
        layers = self.kept if deep else ()
        return TeacherStates(self.teacher, tokens, layers=layers, deep=deep, cache_mb=self.settings.cache_mb)

    def penalised(self, texts: int, loss: Tensor, parts: dict[str, float]) -> Found:
        """The loss of so many texts with what activations beyond their limits cost."""
        outside = self.penalty.take(texts / self.processes.totals(texts)[0], self.processes)
        return loss + self.settings.range_weight * outside, {**parts, "ranges": outside.item()}

    def blame(self, indices: Sequence[int]) -> str:
        return blame(extremes(self.student, self.train.batch(indices)), self.start)


def hidden_stage(pupil: Pupil) -> Stage:
    """Embeddings, hidden states and attention, layer by layer. The models must let their attention be looked at.

    Of sentence encoders the hidden states and the sentence's embedding.
    """
    settings, train, validation = pupil.settings, pupil.train, pupil.validation
    known, known_validation = pupil.known(train, deep=True), pupil.known(validation, deep=True)

    def compare(
        tokens: Tokens,
        teacher: TeacherStates,
        indices: Sequence[int],
        length: int | None = None,
        processes: Processes = ALONE,
    ) -> Found:
        batch = tokens.batch(indices, length)
        ours, theirs = states_of(pupil.student, batch, True), teacher(indices, batch)
        loss, parts = state_loss(ours, theirs, settings.attention_weight, processes)
        if not pupil.embeds:
            return loss, parts
        answers, more = embedding_loss(ours.logits, theirs.logits, processes)
        return loss + answers, parts | more

    def validate() -> dict[str, float]:
        sums: dict[str, float] = {}
        for indices in in_order(validation.lengths, settings.batch):
            found, parts = compare(validation, known_validation, indices)
            for name, value in (("loss", found.item()), *parts.items()):
                sums[name] = sums.get(name, 0.0) + value * len(indices) / len(validation)
        return {**sums, "score": -sums["loss"]}

    def loss(indices: Sequence[int], length: int) -> Found:
        return pupil.penalised(len(indices), *compare(train, known, indices, length, pupil.processes))

    return Stage("hidden", settings.hidden_epochs, settings.hidden_rate, loss, validate, blame=pupil.blame)


def logit_stage(pupil: Pupil) -> Stage:
    """The teacher's softened answers and the labels; the epoch with the least loss on validation counts.

    Not the most accurate one: on some hundred texts accuracy is noise of a point or two, and the loss is not.
    """
    settings, train, validation = pupil.settings, pupil.train, pupil.validation
    known, known_validation = pupil.known(train, deep=False), pupil.known(validation, deep=False)

    def compare(
        tokens: Tokens,
        teacher: TeacherStates,
        indices: Sequence[int],
        length: int | None = None,
        processes: Processes = ALONE,
    ) -> Found:
        batch, labels = tokens.batch(indices, length), tokens.labels_of(indices)
        ours, theirs = pupil.student(**batch).logits, teacher(indices, batch).logits
        return answer_loss(ours, theirs, labels, settings.temperature, settings.soft_weight, processes)

    def loss(indices: Sequence[int], length: int) -> Found:
        return pupil.penalised(len(indices), *compare(train, known, indices, length, pupil.processes))

    def validate() -> dict[str, float]:
        found = judged(pupil.student, validation)
        lost = sum(
            compare(validation, known_validation, indices)[0].item() * len(indices) / len(validation)
            for indices in in_order(validation.lengths, settings.batch)
        )
        return {**found, "loss": lost, "score": -lost}

    return Stage("logits", settings.logit_epochs, settings.logit_rate, loss, validate, blame=pupil.blame)
