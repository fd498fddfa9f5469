# pyright: reportMissingImports=false
"""The clients' half of the Flower app: it trains on its own examples and tells the server no more than it may know."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp
from torch import Tensor

from ..protocols.errors import BlindformerError
from . import secure_client as secure
from .examples import Source, client_name
from .learning import learn
from .messages import ARRAYS, CONFIG, METRICS, SECURE, VECTOR, answer, record, refusal, summary, tensors
from .privacy import gaussian
from .secure import SCALE
from .settings import FederateError, Settings
from .steps import private_step
from .subject import About, Subject, join
from .updates import clipped, difference

Handler = Callable[[Message, Context], Message]


def client_app(source: Source) -> ClientApp:
    """An app whose clients take their examples from `source`."""
    app, made = ClientApp(), _Made()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return _answered(message, context, lambda: _train(message, context, source, made))

    @app.train("keys")
    def keys(message: Message, context: Context) -> Message:
        def run() -> dict[str, Any]:
            session = str(message.content.config_records[SECURE]["session"])
            part, sent = secure.keys(session, message.metadata.dst_node_id)
            part.keep(context.state)
            return {SECURE: sent}

        return _answered(message, context, run)

    @app.train("shares")
    def shares(message: Message, context: Context) -> Message:
        return _answered(message, context, lambda: _step(message, context, secure.shares))

    @app.train("unmask")
    def unmask(message: Message, context: Context) -> Message:
        return _answered(message, context, lambda: _step(message, context, secure.unmask))

    return app


class _Made:
    """The subject that was built last: clients of one process that want the same share it, one after the other."""

    def __init__(self) -> None:
        self.key, self.subject = "", None

    def get(self, about: About, settings: Settings) -> Subject:
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


def _step(
    message: Message, context: Context, run: Callable[[secure.Part, ConfigRecord], ConfigRecord]
) -> dict[str, Any]:
    part = secure.Part.kept(context.state)
    sent = run(part, message.content.config_records[SECURE])
    part.keep(context.state)
    return {SECURE: sent}


def _train(message: Message, context: Context, source: Source, made: _Made) -> dict[str, Any]:
    settings = Settings.of(context.run_config)
    config: Any = message.content.config_records[CONFIG]
    about = About.of(str(config["about"]))
    part = None
    if settings.secagg:
        part = secure.Part.kept(context.state)
        secure.begin_vector(part, message.content.config_records[SECURE])
    subject = made.get(about, settings)
    examples = source.examples(context.node_config, settings, about.labels, about.side)
    if not len(examples):
        raise FederateError("has no examples; give it some, or leave it out")
    before = tensors(message.content.array_records[ARRAYS])
    subject.set(before)
    name = client_name(context.node_config, context.node_id)
    rows, rate = subject.encode(examples), float(config["rate"])
    clip, noise = float(config["clip"]), float(config["noise"])
    if settings.dp == "example":
        if part is not None:  # the noise of the others is in the sum, too
            noise /= secure.others(part) ** 0.5
        private_step(subject, rows, rate=rate, share=settings.sample, clip=clip, noise=noise)
        loss = None
    else:
        proximal = float(config["proximal-mu"]) if "proximal-mu" in config else 0.0
        draw = _draw(settings.seed, name, int(config["server-round"]))
        loss = learn(subject, rows, settings, rate=rate, proximal=proximal, draw=draw)
    after = subject.state()
    if part is None and not settings.clips_updates:
        return {ARRAYS: record(after), METRICS: summary(float(len(examples)), loss)}
    weight, update = float(len(examples)), difference(after, before)
    vector = _vector(update, weight, loss or 0.0, settings, clip, noise)
    if part is None:
        return {ARRAYS: record({VECTOR: vector.float()}), METRICS: summary(1.0, None)}
    sent = secure.masked(part, vector)
    part.keep(context.state)
    return {ARRAYS: record({VECTOR: sent}), METRICS: summary(1.0, None)}


def _vector(update: Tensor, weight: float, loss: float, settings: Settings, clip: float, noise: float) -> Tensor:
    """What is added up: the update times its weight, and the three numbers after it (see updates.EXTRA).

    Where clients are protected every one weighs the same, its update is clipped, and its loss is not told.
    """
    if not settings.clips_updates:
        return torch.cat([update * weight, torch.tensor([weight, weight * loss, 0.0], dtype=torch.float64)])
    if settings.secagg:  # rounding to fixed point may not make it longer than the norm
        clip -= len(update) ** 0.5 * 2.0 ** -(SCALE + 1)
    short = float(update.norm()) <= clip
    update = clipped(update, clip)
    if settings.dp == "local":
        update = update + 2 * noise * clip * gaussian(len(update))  # any two updates differ by 2 clip at most
    return torch.cat([update, torch.tensor([1.0, 0.0, short - 0.5], dtype=torch.float64)])


def _draw(seed: int, name: str, number: int) -> int:
    """Of the order of examples: another one for each client and round, the same in every engine."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name} {number}".encode()).digest()[:6], "big")


app = client_app(Source())
