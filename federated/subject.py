"""What is learned: a model, how examples become its input, and which of its weights travel."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..approximations import Plan, approximate
from ..approximations.plan import FILE_NAME
from ..models.data import Dataset, Examples
from ..models.distillation.batches import EncodedRows, pixels, tokenise
from ..models.distillation.student import check_modules, in_training, settled
from ..models.loading.load import load
from ..models.loading.students import weights_digest
from ..versions import spoken_version
from . import images, texts
from .settings import FederateError, FederateSettings
from .strategies import check_strategy

SETTLED_ON = 64  # examples that a plan's trained constants are fitted to


@dataclass(eq=False)
class Subject:
    """`rate`: the learning rate unless one is set. `processor`: the tokenizer or image processor of the result.

    measured   batches that the ranges of the final plan are measured on, from the server's own examples
    """

    model: nn.Module
    encode: Callable[[Examples], EncodedRows]
    processor: Any
    rate: float
    measured: Callable[[Examples], list[dict[str, Tensor]]]

    def trained(self) -> dict[str, nn.Parameter]:
        """The weights that are trained, and travel, by name."""
        return {name: p for name, p in sorted(self.model.named_parameters()) if p.requires_grad}

    def state(self) -> dict[str, Tensor]:
        """A copy of their values."""
        return {name: p.detach().clone() for name, p in self.trained().items()}

    def digest(self) -> str:
        """SHA-256 of them."""
        return weights_digest(sorted(self.trained().items()))

    def set(self, values: Mapping[str, Tensor]) -> None:
        """Give them values. Errors: FederateError if these are another model's."""
        wanted = self.trained()
        check_like(values, wanted)
        with torch.no_grad():
            for name, parameter in wanted.items():
                parameter.copy_(values[name])

    def frozen_digest(self) -> str:
        """Of the weights that stay as they are: who trains the top must have the same below."""
        frozen = ((n, p) for n, p in sorted(self.model.named_parameters()) if not p.requires_grad)
        return weights_digest(frozen)


@dataclass(frozen=True)
class About:
    """What the server tells its clients of the subject.

    side     pixels a side of an image, 0 for texts
    plan     JSON, with the constants that are trained with
    frozen   digest of the weights that do not travel
    version  of this package: an update of another one may mean something else
    """

    labels: tuple[str, ...]
    side: int
    plan: str
    frozen: str
    version: str

    def to_json(self) -> str:
        return json.dumps(vars(self))

    @classmethod
    def of(cls, text: str) -> About:
        fields = json.loads(text)
        return cls(**{**fields, "labels": tuple(fields["labels"])})


def check_like(values: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Errors: FederateError unless both have the same names and shapes."""
    if set(values) != set(wanted):
        odd = sorted(set(values) ^ set(wanted))
        raise FederateError(f"weights {odd[0]!r} are on one side alone ({len(odd)} such names); use the same settings")
    for name, value in values.items():
        if value.shape != wanted[name].shape:
            raise FederateError(
                f"{name} has shape {list(value.shape)}, not {list(wanted[name].shape)}; use the same settings"
            )


def new_subject(labels: Sequence[str], side: int, settings: FederateSettings) -> Subject:
    """The subject before training, the same on every side. Errors: those of `load`, FederateError."""
    if side:
        model = images.vision_model(labels, side, settings)
        return Subject(model, pixels, images.processor(side), images.rate_of(settings), images.calibration)
    loaded = load(settings.model)
    return Subject(
        texts.text_model(loaded, labels, settings),
        lambda examples: tokenise(loaded, examples, settings.length),
        loaded.processor,
        texts.rate_of(settings),
        lambda examples: texts.calibration(loaded, examples, settings.length),
    )


def settle(settings: FederateSettings, data: Dataset) -> FederateSettings:
    """The settings with all that was left open: by the model's own plan, if it has one, and by the kind of data.

    Errors: FederateError for what cannot be done with this data, those of `load`.
    """
    check_strategy(settings.strategy)
    others, theirs = (("hidden",), "images") if data.kind == "text" else (("model", "trained"), "texts")
    defaults = FederateSettings.model_fields
    if odd := next((name for name in others if getattr(settings, name) != defaults[name].default), None):
        raise FederateError(f"{odd}: is for {theirs}, and {data.name} holds {data.kind}s; leave it out")
    if data.kind == "image" and settings.lora > 0:
        raise FederateError("lora adapts what a model knows; one of images begins from nothing: leave lora out")
    if data.kind == "text" and not settings.plan:
        loaded = load(settings.model)
        if loaded.plan() is not None:
            settings = settings.model_copy(update={"plan": str((loaded.folder / FILE_NAME).absolute())})
    return settings.by_kind(data.kind)


def plan_for(settings: FederateSettings) -> Plan:
    """The preset, or the plan in the file, to be fitted and calibrated anew. Errors: PlanError."""
    if settings.plan.endswith(".json"):
        return Plan.load(settings.plan).replace(ranges={}, fits={})
    return Plan.preset(settings.plan)


def begin(data: Dataset, settings: FederateSettings) -> tuple[Subject, Plan, About]:
    """The server's part: the subject with the plan in force, the plan with the constants it is trained with."""
    settings = settle(settings, data)
    side = images.side_of(data.train) if data.kind == "image" else 0
    subject = new_subject(data.labels, side, settings)
    known = subject.encode(data.validation.subset(SETTLED_ON, settings.seed))
    wanted = plan_for(settings)
    check_modules(subject.model, wanted)
    plan = settled(subject.model, [known.batch(range(len(known)))], wanted)
    approximate(subject.model, in_training(plan))
    about = About(tuple(data.labels), side, plan.to_json(), subject.frozen_digest(), spoken_version())
    return subject, plan, about


def join(about: About, settings: FederateSettings) -> Subject:
    """A client's part. Errors: FederateError if it runs another version, or has another base model."""
    if about.version != spoken_version():
        raise FederateError(f"runs blindformer {spoken_version()}, the server {about.version}; install the same")
    subject = new_subject(about.labels, about.side, settings.by_kind("image" if about.side else "text"))
    if subject.frozen_digest() != about.frozen:
        raise FederateError(f"its base model {settings.model} has other weights than the server's; copy the server's")
    approximate(subject.model, in_training(Plan.from_json(about.plan, "the server's plan")))
    return subject
