"""What a federated run may be told. The same values travel to server and clients as the Flower app's configuration."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..models.distillation_settings import wrong_setting
from ..protocols.errors import BlindformerError

OUT = "out"
"""The one key of an app's configuration that is no setting: the server's folder."""

ROBUST = ("fedmedian", "fedtrimmedavg")
"""Strategies that compare the clients' updates, and so have to see each."""


BY_KIND: dict[str, dict[str, Any]] = {
    "image": {"plan": "fast", "rounds": 60, "lora": 0},
    "text": {"plan": "faithful", "rounds": 10, "lora": 8},
}
"""What works best for each kind of data, where nothing is set. A model of texts knows its language already: with a
plan's own functions put below what is trained, it would have to learn it anew."""


class FederateError(BlindformerError):
    """A federated run that cannot start, resume or be stored."""


def needs_flower() -> None:
    """Errors: FederateError where Flower is not installed."""
    if find_spec("flwr") is None:
        raise FederateError(
            "federated training needs Flower, which is not installed; run: pip install 'blindformer[federated]'"
        )


OF_PRIVACY = ("clip", "noise", "epsilon", "delta")


class FederateSettings(BaseModel):
    """Everything that decides a run's result. Names with dashes are those of `[tool.flwr.app.config]`.

    data        a data set's name, or a file that `load_data` takes; the training part is dealt out to the clients,
                the rest stays with the server, to calibrate and to judge by
    text, label columns of a table (default: by their usual names); encoding: of its file ("": UTF-8, or
                as its first bytes say); skip_bad: leave out rows that cannot be read
    clients     how many share the training part; alpha: of the Dirichlet distribution over each class (0: all alike)
    rounds      of training and averaging (0: by the kind of data, as BY_KIND has it)
    plan        a preset, or a plan's JSON file ("": the plan in the model's folder, else by the kind)
    model       for texts: the folder of a classifier or encoder that training begins with; images begin from nothing
    lora        for texts: the rank of adapters that are trained in place of the layers, beside the head (0: none;
                -1: by the kind, unless `trained` is set)
    trained     for texts: how many of the last layers are trained whole, beside the head (0, without adapters: all)
    layers      of the compact model; for texts, evenly spaced ones of `model` (0: all)
    hidden      width of the model for images
    fraction    of the clients that take part in a round
    epochs      of a client over its own examples in a round; rate falls in a line over the rounds
    proximal    weight of FedProx's pull towards the round's start
    secagg      secure aggregation: the server sees sums alone
    dp          none; central: the server adds noise to the sum; local: each client to its own update (both protect
                clients); example: each client to the one step that it then makes in a round (protects single examples)
    sample      share of its examples that a client draws for that step
    examples    of a client, about: what that step is divided by; the same for all, and public (0: the data set's
                training part, dealt evenly)
    adaptive    the clipping norm follows the median of the updates' norms (central only)
    noise       multiplier of the clipping norm (0: what `epsilon` needs for all rounds)
    timeout     seconds that a round waits for a client
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    data: str = "digits"
    text: str = ""
    label: str = ""
    encoding: str = ""
    skip_bad: bool = False
    clients: int = Field(default=10, ge=1)
    rounds: int = Field(default=0, ge=0)
    strategy: str = "fedavg"
    alpha: float = Field(default=0.0, ge=0)
    plan: str = ""
    seed: int = Field(default=0, ge=0)
    model: str = "minilm"
    trained: int = Field(default=0, ge=0)
    lora: int = Field(default=-1, ge=-1)
    layers: int = Field(default=0, ge=0)
    hidden: int = Field(default=64, ge=8)
    length: int = Field(default=32, ge=8)
    fraction: float = Field(default=1.0, gt=0, le=1)
    epochs: int = Field(default=1, ge=1)
    batch: int = Field(default=16, ge=1)
    rate: float = Field(default=0.0, ge=0)
    proximal: float = Field(default=0.0, ge=0)
    secagg: bool = False
    dp: Literal["none", "central", "local", "example"] = "none"
    sample: float = Field(default=1.0, gt=0, le=1)
    examples: int = Field(default=0, ge=0)
    adaptive: bool = False
    clip: float = Field(default=1.0, gt=0)
    noise: float = Field(default=0.0, ge=0)
    epsilon: float = Field(default=8.0, gt=0)
    delta: float = Field(default=1e-5, gt=0, lt=1)
    timeout: float = Field(default=600.0, gt=0)

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise FederateError(wrong_setting(error, type(self).model_fields)) from None

    @model_validator(mode="after")
    def _together(self) -> FederateSettings:
        hidden = "secagg" if self.secagg else "dp" if self.clips_updates else ""
        if hidden and self.strategy in ROBUST:
            raise ValueError(
                f"strategy {self.strategy} compares single updates, which {hidden} hides; use fedavg, or leave it out"
            )
        if self.lora > 0 and self.trained:
            raise ValueError("lora adapts all layers, trained names some to train whole; leave one of them out")
        private = [name for name in OF_PRIVACY if name in self.model_fields_set]
        if private and self.dp == "none":
            raise ValueError(
                f"{' and '.join(private)}: without dp nothing is clipped, no noise is added; choose dp central, local "
                "or example, or leave it out"
            )
        if self.noise and "epsilon" in private:
            raise ValueError("noise and epsilon: either says how much noise there is; leave one of them out")
        if self.adaptive and self.dp != "central":
            raise ValueError("adaptive clipping goes with dp central; choose it, or leave adaptive out")
        if self.sample < 1 and self.dp != "example":
            raise ValueError("sample goes with dp example; choose it, or leave sample out")
        if self.epochs > 1 and self.dp == "example":
            raise ValueError("with dp example a round is one step, not epochs; leave epochs out, and raise rounds")
        if self.secagg and self.clients < 3:
            raise ValueError(f"secagg with {self.clients} clients hides nothing: give 3 or more")
        return self

    def by_kind(self, kind: str) -> FederateSettings:
        """The same with what was left to the kind of data, image or text: alike on every side."""
        known = BY_KIND[kind]
        lora = self.lora if self.lora >= 0 else 0 if self.trained else known["lora"]
        values = {"rounds": self.rounds or known["rounds"], "plan": self.plan or known["plan"], "lora": lora}
        return self.model_copy(update=values)

    @property
    def clips_updates(self) -> bool:
        """Whether what is protected is a client: its update has a bounded norm, and no weight but one."""
        return self.dp in ("central", "local")

    @property
    def own_noise(self) -> bool:
        """Whether clients add the noise: what they send needs none of the server's, and tells nothing exact."""
        return self.dp in ("local", "example")

    @property
    def secret_draw(self) -> bool:
        """Whether epsilon counts on it that nobody but the server knows who was in a round, or how many were."""
        return self.dp == "central" and self.fraction < 1

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> FederateSettings:
        """From a Flower app's configuration, which both sides get whole. Errors: FederateError."""
        fields = cls.model_fields
        return cls(**{k: v for k, v in config.items() if k != OUT and (k not in fields or v != fields[k].default)})

    def to_config(self) -> dict[str, Any]:
        """As a Flower app's configuration: numbers, texts and truth values by name."""
        return self.model_dump()

    def fingerprint(self) -> str:
        """What a checkpoint belongs to. More rounds, or more patience, may be asked for when a run goes on."""
        fixed = self.model_copy(update={"timeout": 1.0})
        return hashlib.sha256(fixed.model_dump_json().encode()).hexdigest()
