"""A data set of ten small images a class that a model learns in seconds, and clients that share it, in this process."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

pytest.importorskip("flwr", reason="the extra `federated` is not installed")

from blindformer.federated.client import client_app
from blindformer.federated.examples import PARTITION, ExampleSource
from blindformer.federated.federate import LocalGrid, prepare
from blindformer.federated.learning import flat
from blindformer.federated.rounds import Federation, Round
from blindformer.federated.settings import FederateSettings
from blindformer.models.data import Dataset, Examples

logging.getLogger("flwr").setLevel(logging.ERROR)


def squares(count: int, seed: int) -> Examples:
    """Grey noise 4 x 4 with a bright quarter: which one is the label."""
    generator = torch.Generator().manual_seed(seed)
    labels = [i % 4 for i in range(count)]
    images = torch.randint(0, 90, (count, 4, 4), generator=generator, dtype=torch.uint8)
    for image, label in zip(images, labels, strict=True):
        row, column = 2 * (label // 2), 2 * (label % 2)
        image[row : row + 2, column : column + 2] += 150
    return Examples(images, labels)


@pytest.fixture(scope="session")
def data() -> Dataset:
    names = ("upper left", "upper right", "lower left", "lower right")
    return Dataset("squares", "image", names, squares(96, 0), squares(24, 1), squares(40, 2), {})


SMALL = {"clients": 4, "rounds": 2, "hidden": 16, "layers": 1, "epochs": 2, "batch": 8, "rate": 2e-2}


def partitions(count):
    return {i + 1: {PARTITION: i} for i in range(count)}


class Wire(LocalGrid):
    """Keeps what passes the server.

    silent      kind of message -> nodes that do not answer it
    ask         changes a message in place, before it is sent
    bend        (message, its answer) -> the reply that the server gets
    """

    def __init__(self, app, settings, nodes=None, silent=None, ask=None, bend=None):
        super().__init__(app, nodes or partitions(settings.clients), settings.to_config())
        self.silent, self.ask, self.bend = silent or {}, ask, bend
        self.sent, self.received = [], []

    def send_and_receive(self, messages, *, timeout=None):
        messages = list(messages)
        self.sent += messages
        for message in messages if self.ask else ():
            self.ask(message)
        heard = [m for m in messages if m.metadata.dst_node_id not in self.silent.get(m.metadata.message_type, ())]
        replies = list(super().send_and_receive(heard, timeout=timeout))
        self.received += replies
        return replies

    def _answer(self, message):
        return self.bend(message, super()._answer) if self.bend else super()._answer(message)


def of(node, kind, change):
    """A `bend`: `change(message, answer)` makes this node's replies to messages of this kind."""

    def bend(message, answer):
        meant = (message.metadata.dst_node_id, message.metadata.message_type) == (node, kind)
        return change(message, answer) if meant else answer(message)

    return bend


@dataclass
class Ran:
    """`moved`: how far the weights of the model have moved."""

    rounds: list[Round]
    made: Federation
    wire: Wire
    moved: torch.Tensor

    @property
    def state(self) -> dict[str, torch.Tensor]:
        return self.made.subject.state()


def run(data, given, *, folder=None, app=None, source=None, change=None, progress=None, **wire) -> Ran:
    """A run of these settings, without a checkpoint where there is no folder. `change(made)` comes before it begins."""
    settings = FederateSettings(**given)
    federation, _ = prepare(settings, data, folder or Path("no such folder"), progress)
    federation.work = federation.work if folder else None
    if change:
        change(federation)
    before = flat(federation.subject.state())
    grid = Wire(app or client_app(source or ExampleSource(data)), settings, **wire)
    rounds = federation.run(grid)
    return Ran(rounds, federation, grid, flat(federation.subject.state()) - before)
