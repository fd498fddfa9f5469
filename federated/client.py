# pyright: reportMissingImports=false
"""The clients' half of the Flower app: it trains on its own examples and tells the server no more than it may know.

With differential privacy it answers whatever its examples are, and says nothing of them beside its update, which is
clipped (central; and there, if the norm adapts, whether it was) or clipped and noised (local, example). The table of
all kinds is in docs/federated.md.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp
from torch import Tensor

from ..errors import BlindformerError, first_line
from ..models.distillation.batches import EncodedRows
from ..versions import my_version
from . import secure_client as secure
from .examples import ExampleSource, client_name, part_of
from .learning import clipped, difference, learn, private_step, summed
from .messages import ARRAYS, CONFIG, DRAWN, METRICS, SECURE, VECTOR, answer, record, refusal, summary, tensors
from .privacy import gaussian
from .secure import SCALE, reach
from .settings import FederateError, FederateSettings
from .subject import About, Subject, join
from .terms import Terms

COUNT = "count"  # in a client's own state


def client_app(source: ExampleSource) -> ClientApp:
    """An app whose clients take their examples from `source`."""
    app, cache = ClientApp(), _Made()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return _answered(message, context, lambda: _train(message, context, source, cache))

    @app.train("keys")
    def keys(message: Message, context: Context) -> Message:
        def run() -> dict[str, Any]:
            _agree(message, context)
            session = str(message.content.config_records[SECURE]["session"])
            part, sent = secure.keys(session, message.metadata.dst_node_id, Terms.of(context.node_config).who())
            part.keep(context.state)
            return {SECURE: sent}

        return _answered(message, context, run)

    @app.train("shares")
    def shares(message: Message, context: Context) -> Message:
        def run(part: secure.SecureState, request: ConfigRecord) -> ConfigRecord:
            most = FederateSettings.of(context.run_config).clients
            return secure.shares(part, request, most, Terms.of(context.node_config).who())

        return _answered(message, context, lambda: _step(message, context, run))

    @app.train("unmask")
    def unmask(message: Message, context: Context) -> Message:
        return _answered(message, context, lambda: _step(message, context, secure.unmask))

    return app


class _Made:
    """The subject that was built last: clients of one process that want the same share it, one after the other."""

    def __init__(self) -> None:
        self.key, self.subject = "", None

    def get(self, about: About, settings: FederateSettings) -> Subject:
        key = settings.fingerprint() + about.to_json()
        if self.subject is None or self.key != key:
            self.key, self.subject = key, join(about, settings)
        return self.subject


def _answered(message: Message, context: Context, run: Callable[[], dict[str, Any]]) -> Message:
    """The reply with these records, or one that says why there are none."""
    name = client_name(context.node_config, context.node_id)
    try:
        return answer(message, name, **run())
    except BlindformerError as error:
        return refusal(message, name, str(error))


def _agree(message: Message, context: Context) -> int:
    """The number of this round, by its own count or the server's. Errors: FederateError where its terms are not met."""
    settings, config = FederateSettings.of(context.run_config), message.content.config_records.get(CONFIG)
    if config is None:
        raise FederateError(f"runs blindformer {my_version()}, the server an older one; install the same")
    part_of(context.node_config, settings)
    counted: Any = context.state.config_records.get(COUNT, {"rounds": 0})
    number = max(int(counted["rounds"]) + 1, int(str(config["server-round"])))
    Terms.of(context.node_config).check(settings, float(str(config["noise"])), number)
    return number


def _step(
    message: Message, context: Context, run: Callable[[secure.SecureState, ConfigRecord], ConfigRecord]
) -> dict[str, Any]:
    part = secure.SecureState.kept(context.state)
    sent = run(part, message.content.config_records[SECURE])
    part.keep(context.state)
    return {SECURE: sent}


class NothingLearned(UserWarning):
    """Said on a client's own machine: its examples could not be trained on, and it sends an update of nothing."""


@dataclass(frozen=True)
class _Learned:
    """What a client's training comes to. `tail`: see EXTRA."""

    update: Tensor
    weight: float
    loss: float | None
    tail: tuple[float, float]


@dataclass(frozen=True)
class _Task:
    """A round as it reaches one client. `rows`: reads its examples; `part`: of a secure sum, if there is one;
    `trusted`: other clients that add noise to it."""

    name: str
    settings: FederateSettings
    subject: Subject
    config: Any
    part: secure.SecureState | None
    trusted: int
    rows: Callable[[], EncodedRows]

    def learned(self) -> _Learned:
        """By the kind of privacy. Errors: FederateError, and what training may raise, without differential privacy."""
        kinds = {"none": self._plain, "central": self._clipped, "local": self._noised, "example": self._step}
        return kinds[self.settings.dp]()

    def _trained(self) -> tuple[Tensor, float, float]:
        """The update as it is, the number of examples, the loss."""
        rows, before = self.rows(), self.subject.state()
        proximal = float(self.config["proximal-mu"]) if "proximal-mu" in self.config else 0.0
        draw = _draw(self.settings.seed, self.name, int(self.config["server-round"]))
        rate = float(self.config["rate"])
        loss = learn(self.subject, rows, self.settings, rate=rate, proximal=proximal, draw=draw)
        return difference(self.subject.state(), before), float(len(rows)), loss

    def _plain(self) -> _Learned:
        update, weight, loss = self._trained()
        return _Learned(update * weight, weight, loss, (weight, weight * loss))

    def _clipped(self) -> _Learned:
        if self.part is not None and not self.config[DRAWN]:  # it is there so that nobody sees who was drawn
            return _Learned(torch.zeros(self._size(), dtype=torch.float64), 0.0, None, (0.0, 0.0))
        update, clip = self._or_nothing(lambda: self._trained()[0]), float(self.config["clip"])
        if self.part is not None:  # rounding to fixed point may not make it longer than the norm
            clip -= len(update) ** 0.5 * 2.0 ** -(SCALE + 1)
        return _Learned(clipped(update, clip), 1.0, None, (1.0, 0.0))

    def _noised(self) -> _Learned:
        """Any two updates differ by twice the norm at most, whatever the examples. The rest is the same for all."""
        clip, noise = float(self.config["clip"]), float(self.config["noise"])
        update = clipped(self._or_nothing(lambda: self._trained()[0]), clip)
        return _Learned(update + 2 * noise * clip * gaussian(len(update)), 1.0, None, (1.0, 0.0))

    def _step(self) -> _Learned:
        """How many examples there are is in the noised sum alone: weight and divisor are the same for all."""
        clip, noise, expected = (float(self.config[key]) for key in ("clip", "noise", "examples"))
        if self.part is not None:  # the noise of others is in the sum, too: of those alone that add it, for certain
            noise /= max(1, secure.noisy_others(self.part, self.trusted)) ** 0.5
        before, share, rate = self.subject.state(), self.settings.sample, float(self.config["rate"])
        total = self._or_nothing(lambda: summed(self.subject, self.rows(), share=share, clip=clip))
        private_step(self.subject, total, rate=rate, expected=share * expected, clip=clip, noise=noise)
        update = difference(self.subject.state(), before)
        return _Learned(update * expected, expected, None, (expected, 0.0))

    def _or_nothing(self, run: Callable[[], Tensor]) -> Tensor:
        """The vector, or zeros in its place: whether examples could be trained on, and why not, is about them, too."""
        try:
            return run()
        except Exception as error:
            warnings.warn(
                f"{self.name}: {first_line(error)}; it sends an update of nothing", NothingLearned, stacklevel=2
            )
            return torch.zeros(self._size(), dtype=torch.float64)

    def _size(self) -> int:
        return sum(p.numel() for p in self.subject.trained().values())


def _train(message: Message, context: Context, source: ExampleSource, cache: _Made) -> dict[str, Any]:
    settings = FederateSettings.of(context.run_config)
    config: Any = message.content.config_records[CONFIG]
    context.state[COUNT] = ConfigRecord({"rounds": _agree(message, context)})
    about = About.of(str(config["about"]))
    part = None
    if settings.secagg:
        part = secure.SecureState.kept(context.state)
        secure.begin_vector(part, message.content.config_records[SECURE], Terms.of(context.node_config).who())
    subject = cache.get(about, settings)
    subject.set(tensors(message.content.array_records[ARRAYS]))

    def rows() -> EncodedRows:
        examples = source.examples(context.node_config, settings, about.labels, about.side)
        if not len(examples):
            raise FederateError("has no examples; give it some, or leave it out")
        return subject.encode(examples)

    name = client_name(context.node_config, context.node_id)
    trusted = Terms.of(context.node_config).trusted_others
    learned = _Task(name, settings, subject, config, part, trusted, rows).learned()
    if part is None and not settings.clips_updates:
        return {ARRAYS: record(subject.state()), METRICS: summary(learned.weight, learned.loss)}
    vector = torch.cat([learned.update, torch.tensor(learned.tail, dtype=torch.float64)])
    if part is None:
        return {ARRAYS: record({VECTOR: vector.float()}), METRICS: summary(1.0, None)}
    if settings.own_noise:  # a refusal of what is too large would tell of it
        vector = vector.clamp(-reach(len(part.members)), reach(len(part.members)))
    sent = secure.masked(part, vector)
    part.keep(context.state)
    return {ARRAYS: record({VECTOR: sent}), METRICS: summary(1.0, None)}


def _draw(seed: int, name: str, number: int) -> int:
    """Of the order of examples: another one for each client and round, the same in every engine."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name} {number}".encode()).digest()[:6], "big")


app = client_app(ExampleSource())
