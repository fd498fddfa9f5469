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
    """Everything that decides a run's result. Names with dashes are those of `[tool.flwr.app.config]`. The text below a
    setting is shown by `blindformer federate --set help`."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), use_attribute_docstrings=True)

    data: str = "digits"
    """A data set's name, or a file that `load_data` takes; the training part is dealt out to the clients, the rest
    stays with the server, to calibrate and to judge by."""
    text: str = ""
    """The column of the texts (default: by its usual names)."""
    label: str = ""
    """The column of the labels (default: by its usual names)."""
    encoding: str = ""
    """The encoding of the table (default: UTF-8, or as its first bytes say)."""
    skip_bad: bool = False
    """Leave out rows that cannot be read, such as those without a label."""
    clients: int = Field(default=10, ge=1)
    """Clients that share the training part."""
    rounds: int = Field(default=0, ge=0)
    """Rounds of training and averaging; 0: by the kind of data."""
    strategy: str = "fedavg"
    """Flower's strategy: fedavg, fedprox, fedavgm, fedadam, fedyogi, fedadagrad ..."""
    alpha: float = Field(default=0.0, ge=0)
    """Alpha of the Dirichlet shares that clients have of each class; 0: all are alike."""
    plan: str = ""
    """A preset, or a plan's JSON file (default: the plan in the model's folder, else by the kind of data)."""
    seed: int = Field(default=0, ge=0)
    """The seed of all that is drawn at random."""
    model: str = "minilm"
    """The classifier or encoder of texts that training begins with; images begin from nothing."""
    trained: int = Field(default=0, ge=0)
    """Last layers of a model of texts to train whole, beside the head; 0: none, without adapters all."""
    lora: int = Field(default=-1, ge=-1)
    """Rank of adapters in a model of texts, trained in place of its layers; 0: none; -1: 8, unless `trained` is set."""
    layers: int = Field(default=0, ge=0)
    """Layers of the model; 0: all, of a model of images 1."""
    hidden: int = Field(default=64, ge=8)
    """Width of a new model of images."""
    length: int = Field(default=32, ge=8)
    """Tokens that longer texts are cut at."""
    fraction: float = Field(default=1.0, gt=0, le=1)
    """Part of the clients that is asked in each round."""
    epochs: int = Field(default=1, ge=1)
    """Epochs of a client over its own examples, in each round; the rate falls in a line over the rounds."""
    batch: int = Field(default=16, ge=1)
    """Examples of a client's step."""
    rate: float = Field(default=0.0, ge=0)
    """Learning rate of the clients; 0: what suits the kind of data."""
    proximal: float = Field(default=0.0, ge=0)
    """Weight of FedProx's pull towards the round's start."""
    secagg: bool = False
    """Secure aggregation: the server sees sums alone."""
    dp: Literal["none", "central", "local", "example"] = "none"
    """central: the server adds noise to the sum; local: each client to its own update (both protect clients); example:
    each client to the one step that it then makes in a round (protects single examples)."""
    sample: float = Field(default=1.0, gt=0, le=1)
    """Share of its examples that a client draws for its step of a round (dp example)."""
    examples: int = Field(default=0, ge=0)
    """Examples of a client, about: what that step is divided by, the same for all, and public; 0: the training part,
    dealt evenly."""
    clip: float = Field(default=1.0, gt=0)
    """The norm that an update, or an example's gradient, is clipped to."""
    noise: float = Field(default=0.0, ge=0)
    """Deviation of the noise, in clipping norms; 0: as `epsilon` needs it for all rounds."""
    epsilon: float = Field(default=8.0, gt=0)
    """The privacy budget of all rounds."""
    delta: float = Field(default=1e-5, gt=0, lt=1)
    """The probability that epsilon does not hold."""
    timeout: float = Field(default=600.0, gt=0)
    """Seconds that a round waits for a client."""

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
                f"{' and '.join(private)}: needs differential privacy; set dp to central, local or example"
            )
        if self.noise and "epsilon" in private:
            raise ValueError("noise and epsilon: either says how much noise there is; leave one of them out")
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
