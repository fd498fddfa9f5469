"""The whole of it: teacher, student, two stages, calibration, and a folder that every transformers script loads."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...approximations import Choice, Plan, approximate, calibrate, out_of_range, restore
from ...approximations.registry import EXACT
from ...protocols.devices import find_device
from ..data import Dataset, Examples, check_unseen, keep_reading, load_data, load_texts
from ..distillation_settings import EMBEDDINGS, DistillError, DistillSettings, check_used
from ..loading.calibration_texts import calibration_texts
from ..loading.heads import SentenceEncoder, save_model
from ..loading.huggingface import huggingface
from ..loading.layers import layer_count, narrowed, spread, widths, with_layers
from ..loading.load import Loaded, load, package_of
from ..loading.students import REPORT, save_student, weights_digest
from .batches import UNLABELLED, by_private_length, in_order, passages, pixels, tokenise, with_variants
from .checkpoints import check_new, locked, storing
from .narrowing import arrange
from .ranges import extremes, watching
from .refit import concentrate, refit
from .stages import Pupil, hidden_stage, logit_stage
from .student import (
    check_modules,
    compact_student,
    freeze,
    in_clear,
    in_training,
    settled,
)
from .teacher import (
    IMAGES,
    VIT,
    check_teaches,
    classifier_of,
    cosines,
    embeddings_of,
    freeze_embeddings,
    freeze_tables,
    is_classifier,
    judged,
    new_vit,
    spearman,
    teacher_stage,
)
from .training import Progress, Stage, train

TEACHER = "teacher"
_WORK = ".distillation"
_CALIBRATION = 256  # training texts that ranges are first measured on, beside the built-in ones
_FINAL = 1024  # the same for the plan that is kept: of fewer, or of texts cut short, an answer in a hundred was refused
_REFIT = 1500  # texts that a student of embeddings is refitted on
_EACH_PASSAGE = 32  # texts: one passage of several for so many
_MOST = 12  # texts of a passage
_FEW_KEYS = 0.5  # that 2Quad's (x + 5)^2 gets more where tokens are pooled
_LONGEST = 128  # tokens of these, however short the texts of training were cut


@dataclass
class Distilled:
    """The result. `report`: what is in distillation.json: settings, history, validation figures, ranges left."""

    folder: Path
    plan: Plan
    report: dict[str, Any]


Say = Callable[[str], None]


def distill(
    teacher: str | Path,
    data: str | Path | Dataset,
    out: str | Path,
    plan: Plan | str = "fast",
    *,
    transfer: str | Path | Dataset | None = None,
    start: str | Path | None = None,
    embeddings: bool = False,
    device: str = "cpu",
    progress: Progress | None = None,
    say: Say | None = None,
    **settings: Any,
) -> Distilled:
    """Train a student that uses a plan's approximations to answer as a teacher does.

        student = bf.distill("./my-classifier", "tickets.csv", "student", plan="fast", layers=2)

    teacher     a classifier's folder; an encoder such as "minilm", which is fine-tuned on the data first (out/teacher);
                or "vit", a small image model that is trained on the data's images first
    data        a data set, or an argument of `load_data`
    out         a new folder; an interrupted run with the same settings is resumed exactly
    plan        a preset's name or a plan
    transfer    another data set that the teacher labels for the student
    start       a student of the same teacher to continue, of the same shape (default: the teacher's weights)
    embeddings  train a sentence encoder's embeddings for any task; labels are ignored
    device      "cpu", "cuda" or "cuda:1"
    settings    fields of `DistillSettings`

    Raises DistillError, DataError, LoadError and PlanError.
    """
    chosen, out = DistillSettings(**settings), Path(out)
    check_used([*settings, *([] if transfer is None else ["transfer"])], teacher == VIT, embeddings)
    check_new(out, out / _WORK)
    plan = Plan.preset(plan) if isinstance(plan, str) else plan
    plan = pooling(plan, plan.pool if chosen.pool is None else chosen.pool)
    dataset = data if isinstance(data, Dataset) else load_data(data, seed=chosen.seed)
    more = load_texts(transfer, seed=chosen.seed) if isinstance(transfer, str | Path) else transfer
    run: type[_Pipeline] = _Pipeline
    if teacher == VIT:
        run, chosen = _OfImages, DistillSettings(**{**IMAGES, **settings})
    elif embeddings:
        run, chosen = _OfSentences, DistillSettings(**{**EMBEDDINGS, **settings})
    loaded = new_vit(dataset, chosen) if teacher == VIT else load(teacher)
    begun = None if start is None else load(start)
    if teacher != VIT:
        check_teaches(loaded)
    place = find_device(device)
    with locked(out):
        return run(loaded, begun, dataset, more, out, plan, chosen, progress, say or (lambda stage: None), place).run()


def pooling(plan: Plan, pool: tuple[int, ...]) -> Plan:
    """The plan with tokens pooled after these layers. A short text then leaves so few keys that a sum of squares may
    be near zero, so each gets a little more."""
    softmax: Choice = plan.softmax
    if pool and softmax.name in ("2quad", "linear") and "epsilon" not in softmax.options:
        softmax = Choice(name=softmax.name, options={**softmax.options, "epsilon": _FEW_KEYS})
    return plan.replace(pool=pool, softmax=softmax)


class _Pipeline:
    measure = "accuracy"

    def __init__(
        self,
        loaded: Loaded,
        begun: Loaded | None,
        data: Dataset,
        transfer: Dataset | None,
        out: Path,
        plan: Plan,
        settings: DistillSettings,
        progress: Progress | None,
        say: Say,
        device: torch.device,
    ) -> None:
        self.loaded, self.begun, self.data, self.transfer, self.out = loaded, begun, data, transfer, out
        self.settings, self.progress, self.say, self.device = settings, progress, say, device
        self.plan = self._for_clients(plan)
        self.work = out / _WORK
        self.history: dict[str, list[dict[str, float]]] = {}

    def run(self) -> Distilled:
        check_new(self.out, self.work)
        self.work.mkdir(exist_ok=True)
        given = self._is_given()
        self.train, self.validation = self._read(self.data.train), self._read(self.data.validation)
        teacher = self.loaded.model if given else self._untrained()
        compact = self._is_compact()
        kept = [] if compact else self._layers_kept(teacher)
        check_modules(student := self._student(teacher, kept), self.plan)  # before anything slow happens
        if self.begun is not None:
            self._check_alike(self.begun.model, student, self.begun)
        if not given:
            self._fine_tune(teacher)
        teacher.requires_grad_(False)
        if self._is_narrower(teacher):
            teacher = self._arranged(teacher)
        student = self._student(teacher, kept)
        self.plan = settled(student, self._calibration(), self.plan)
        approximate(student, in_training(self.plan))
        about = weights_digest(teacher.state_dict().items())
        if self.begun is None:
            self._start(teacher, student, kept)
        else:
            about += self._go_on(student, self.begun)
        student.requires_grad_(True)
        self._freeze(student, compact)
        self.train = self._extended()
        start = extremes(student, self._calibration()[0])
        texts = (self.train.on(self.device), self.validation.on(self.device))
        pupil = Pupil(student, teacher, kept, *texts, self.settings, start)
        with watching(student, pupil.penalty), _placed(self.device, student, teacher):
            if self.settings.hidden_epochs:
                weighs = not pupil.embeds and self.plan.has_scores()
                with _eager_attention(teacher, student) if weighs else nullcontext():
                    self._train(student, hidden_stage(pupil), about)
            if not pupil.embeds:
                self._train(student, logit_stage(pupil), about)
        return self._finish(teacher, student, kept)

    # --- texts: runs of images and of embeddings differ in these ---------------------------------------------------
    def _is_given(self) -> bool:
        """Whether the teacher is a classifier for these labels, whose order is then the model's."""
        if is_classifier(self.loaded):
            check_unseen(self.loaded.folder, self.data)
            self.data = self.data.matched(self.loaded.labels)
            return True
        return False

    def _start(self, teacher: nn.Module, student: nn.Module, kept: list[int]) -> None:
        """The student starts with its teacher's weights, refitted if it is narrower."""
        if self._is_narrower(teacher):
            refit(teacher, student, self._shown(), kept)
        else:
            self._concentrate(student, Plan.preset(EXACT))

    def _concentrate(self, student: nn.Module, own: Plan) -> None:
        """Where not all features of queries and keys are read, they are turned so that these hold the most. `own`: what
        the weights were trained with."""
        if own.has_scores() and not self.plan.has_scores():
            concentrate(student, self._calibration(), own, self.plan)

    def _check_alike(self, start: nn.Module, student: nn.Module, begun: Loaded) -> None:
        """Errors: DistillError for one to go on from that is another teacher's, or of another shape."""
        states = (student.state_dict(), start.state_dict())
        shapes, theirs = ({name: value.shape for name, value in state.items()} for state in states)
        if shapes != theirs:
            unlike = next(name for name in {**shapes, **theirs} if shapes.get(name) != theirs.get(name))
            raise DistillError(f"start {begun.name}: has not the student's shape, first {unlike}; leave it out")
        if [*begun.labels.values()] not in ([], list(self.data.labels)):
            raise DistillError(
                f"start {begun.name}: has the labels {', '.join(begun.labels.values())}, and the data "
                f"{', '.join(self.data.labels)}; leave it out"
            )

    def _go_on(self, student: nn.Module, begun: Loaded) -> str:
        """Give the student another one's weights. Returns their digest."""
        weights = begun.model.state_dict()
        own = in_training(begun.plan() or self.plan)  # longer texts may be outside its ranges
        student.load_state_dict(weights)
        self._concentrate(student, own)
        return weights_digest(weights.items())

    def _judge(self, model: nn.Module) -> float:
        return judged(model, self.validation)["accuracy"]

    def _read(self, examples: Examples) -> Any:
        return tokenise(self.loaded, examples, self.settings.length)

    def _for_clients(self, plan: Plan) -> Plan:
        return in_clear(plan) if self._is_compact() else plan

    def _layers_kept(self, teacher: nn.Module) -> list[int]:
        count = layer_count(teacher)
        return spread(self.settings.layers or count, count)

    def _is_compact(self) -> bool:
        return self.settings.hidden is not None

    def _is_narrower(self, teacher: nn.Module) -> bool:
        """Whether the student has fewer heads than its teacher, or fewer features in its feed-forward."""
        chosen = (self.settings.heads, self.settings.intermediate)
        differs = [ours not in (None, theirs) for ours, theirs in zip(chosen, widths(teacher), strict=True)]
        return not self._is_compact() and any(differs)

    def _narrowed(self, model: nn.Module) -> nn.Module:
        return narrowed(model, self.settings.heads, self.settings.intermediate)

    def _arranged(self, teacher: nn.Module) -> nn.Module:
        """A copy of the teacher in which the heads and features that the student keeps come first."""
        teacher = copy.deepcopy(teacher)
        arrange(teacher, self._shown(), self.settings.heads, self.settings.intermediate)
        return teacher

    def _shown(self) -> list[dict[str, Tensor]]:
        """Training texts that layers are compared on."""
        return self._calibration()

    def _untrained(self) -> nn.Module:
        return classifier_of(self.loaded, self.data.labels, self.settings.seed)

    def _freeze(self, model: nn.Module, compact: bool) -> None:
        (freeze if compact else freeze_embeddings)(model)

    def _extended(self) -> Any:
        """The training texts, those of the transfer set, and variants."""
        texts = self._transferred()
        more = Examples(self.data.train.texts + texts, [*self.data.train.labels, *[UNLABELLED] * len(texts)])
        if self.settings.augment:
            more = with_variants(more, self.settings.augment, self.settings.seed)
        return self._read(more)

    def _student(self, teacher: nn.Module, kept: list[int]) -> nn.Module:
        if not self._is_compact():
            return self._narrowed(with_layers(teacher, kept))
        return compact_student(teacher, self.settings, dict(enumerate(self.data.labels)), self._calibration())

    def _transferred(self) -> list[str]:
        """The texts of another data set, without those that this one judges by. Errors: DataError for images."""
        if self.transfer is None:
            return []
        parts = (self.transfer.train, self.transfer.validation, self.transfer.test)
        judged_by = set(self.data.validation.texts + self.data.test.texts)
        return [text for part in parts for text in part.texts if text not in judged_by]

    def _fine_tune(self, teacher: nn.Module) -> None:
        about = weights_digest(teacher.state_dict().items())
        self._freeze(teacher, False)
        texts = (self.train.on(self.device), self.validation.on(self.device))
        with _placed(self.device, teacher):
            self._train(teacher, teacher_stage(teacher, *texts, self.settings), about)
        if not (self.out / TEACHER / "config.json").exists():
            self._save(teacher, self.out / TEACHER)

    def _train(self, model: nn.Module, stage: Stage, about: str) -> None:
        file = self.work / f"{stage.name}.safetensors"
        texts = self.train.content() + self.validation.content()
        fingerprint = self.settings.fingerprint(stage.name, self.plan.to_json(), texts, about)
        self.say(stage.name)
        lengths = self.train.lengths
        self.history[stage.name] = train(
            model, stage, lengths, self.settings, file, fingerprint, self.progress, self.device
        )

    # --- the result ------------------------------------------------------------------------------------------------
    def _finish(self, teacher: nn.Module, student: nn.Module, kept: list[int]) -> Distilled:
        self.say("calibrate")
        with torch.no_grad():
            before, trained = self._judge(teacher), self._judge(student)
        restore(student)
        plan = calibrate(student, self._calibration(_FINAL, _LONGEST), self.plan)
        left = out_of_range(student, [self.validation.batch(i) for i in in_order(self.validation.lengths, 32)], plan)
        approximate(student, plan)
        with torch.no_grad():
            final = self._judge(student)
        restore(student)
        report = {
            "teacher": self.loaded.name,
            "start": None if self.begun is None else self.begun.name,
            "data": {"name": self.data.name, "labels": list(self.data.labels), "train": len(self.data.train),
                     "validation": len(self.data.validation), "test": len(self.data.test)},
            "transfer": {"name": self.transfer.name, "texts": len(self._transferred())} if self.transfer else None,
            "plan": self.plan.name,
            "kept_layers": kept,
            "settings": self.settings.model_dump(),
            f"validation_{self.measure}": {"teacher": before, "student_in_training": trained, "student": final},
            "sites_out_of_range": sorted(left),
            "history": self.history,
        }  # fmt: skip
        self._save(student, self.out, plan, report)
        shutil.rmtree(self.work)
        return Distilled(self.out, plan, report)

    def _save(
        self, model: nn.Module, folder: Path, plan: Plan | None = None, report: dict[str, Any] | None = None
    ) -> None:
        # A run that is cut off here is repeated from its checkpoints: their folder goes last.
        with storing(str(folder)), huggingface():
            folder.mkdir(exist_ok=True)
            keep_reading(self.data, folder)
            if plan is not None:
                plan.save(folder)
            if report is not None:
                (folder / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            self._save_model(model, folder, plan)

    def _save_model(self, model: nn.Module, folder: Path, plan: Plan | None) -> None:
        if self.loaded.processor is not None:
            self.loaded.processor.save_pretrained(folder)
        save_model(model, folder)

    def _calibration(self, count: int = _CALIBRATION, longest: int = 0) -> list[dict[str, Tensor]]:
        """Training texts and the built-in ones, padded to each length that a private run will pad them to. `longest`:
        the tokens that they are cut at, if not those of training."""
        texts = self.data.train.subset(count, self.settings.seed).texts + calibration_texts()
        tokens = tokenise(self.loaded, Examples(texts, [0] * len(texts)), max(longest, self.settings.length))
        return by_private_length(tokens)


class _OfImages(_Pipeline):
    """A new teacher, and a student of its shape."""

    def _read(self, examples: Examples) -> Any:
        return pixels(examples)

    def _is_compact(self) -> bool:
        return False

    def _untrained(self) -> nn.Module:
        return self.loaded.model

    def _freeze(self, model: nn.Module, compact: bool) -> None:
        """Everything learns."""

    def _extended(self) -> Any:
        return self.train

    def _calibration(self, count: int = _CALIBRATION, longest: int = 0) -> list[dict[str, Tensor]]:
        few = pixels(self.data.train.subset(count, self.settings.seed))
        return [few.batch(indices) for indices in in_order(few.lengths, 32)]


class _OfSentences(_Pipeline):
    """A sentence encoder and a student of its width, which starts from refitted layers and learns its states."""

    measure = "spearman"

    def _is_given(self) -> bool:
        if not isinstance(self.loaded.model, SentenceEncoder):
            raise DistillError(f"{self.loaded.name}: is no sentence encoder, so it has no embeddings to teach")
        if self.settings.hidden:
            raise DistillError("hidden: a student of embeddings has its teacher's width; leave it out")
        return True

    def _start(self, teacher: nn.Module, student: nn.Module, kept: list[int]) -> None:
        self.say("refit")
        refit(teacher, student, self._shown(), kept)

    def _shown(self) -> list[dict[str, Tensor]]:
        some = self._with_passages(self.data.train.subset(_REFIT, self.settings.seed))
        return [some.batch(indices) for indices in in_order(some.lengths, 32)]

    def _freeze(self, model: nn.Module, compact: bool) -> None:
        freeze_tables(model)

    def _extended(self) -> Any:
        """The training texts, variants of them, and passages of several."""
        some = self.data.train.subset(self.settings.texts or len(self.data.train), self.settings.seed)
        return self._with_passages(with_variants(some, self.settings.augment, self.settings.seed))

    def _with_passages(self, some: Examples) -> Any:
        scale = max(self.settings.length / _LONGEST, 1.0)  # of a student for longer texts, as many more, and longer
        longer = passages(some.texts, int(len(some) * scale / _EACH_PASSAGE), self.settings.seed, int(_MOST * scale))
        return self._read(Examples(some.texts + longer, [UNLABELLED] * (len(some) + len(longer))))

    def _save_model(self, model: nn.Module, folder: Path, plan: Plan | None) -> None:
        base = package_of(self.loaded.folder)
        if plan is None or base is None:
            super()._save_model(model, folder, plan)
            return
        example, kept = self.validation.batch([0]), self._layers_kept(self.loaded.model)
        save_student(folder, model, base, self.loaded.model, plan, example, kept)
        model.config.save_pretrained(folder)  # type: ignore[operator, union-attr]

    def _judge(self, model: nn.Module) -> float:
        """Spearman's correlation with the teacher's cosines, over pairs of validation texts."""
        ours, theirs = (embeddings_of(m, self.validation) for m in (model, self.loaded.model))
        half = len(self.validation) // 2
        return spearman(*(cosines(e[:half], e[half : 2 * half]) for e in (ours, theirs)))


@contextmanager
def _placed(device: torch.device, *models: nn.Module) -> Iterator[None]:
    """Models on a device, and back on the CPU at the end."""
    for model in models:
        model.to(device)
    try:
        yield
    finally:
        for model in models:
            model.to("cpu")


@contextmanager
def _eager_attention(*models: nn.Module) -> Iterator[None]:
    """Attention that can be looked at. A model that knows one way only is left alone."""
    before = [getattr(model.config, "_attn_implementation", None) for model in models]

    def use(model: nn.Module, way: str | None) -> None:
        if way is not None:
            with suppress(AttributeError, ValueError):
                model.set_attn_implementation(way)  # type: ignore[operator]

    for model in models:
        use(model, "eager")
    try:
        yield
    finally:
        for model, way in zip(models, before, strict=True):
            use(model, way)
