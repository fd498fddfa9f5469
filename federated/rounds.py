# pyright: reportMissingImports=false
"""The server's rounds: whom to ask, what becomes of the answers, how good the model is, and a checkpoint."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import torch
from flwr.app import ConfigRecord, Message
from torch import Tensor

from ..files import make_folder
from ..models.data import Dataset
from ..models.distillation.checkpoints import read, write
from ..models.distillation.teacher import judged
from .collecting import Collected, collect
from .learning import rate_at
from .messages import name_of, record, tensors
from .privacy import Budget
from .settings import FederateError, FederateSettings
from .strategies import memory, remember, strategy_of
from .subject import About, Subject

CHECKPOINT = "round.safetensors"
FAILED = "the secure sum failed; the model stays as it was"
_POLL = 1.0


@dataclass(frozen=True)
class Round:
    """What happened in one round.

    clients   whose update counts, how many
    accuracy  of the model after it, on the server's validation examples
    loss      mean of the clients', where the server may know it
    lost      clients whose update did not count, and why
    epsilon   spent up to here

    Clients, who was lost, and seconds, which tell how many there were, are left out where the draw is secret.
    """

    number: int
    accuracy: float
    loss: float | None
    clients: int | None
    lost: dict[str, str]
    epsilon: float | None
    seconds: float | None


Progress = Callable[[Round, int], None]


class Grid(Protocol):
    """The server's way to its clients: what is used of Flower's Grid."""

    def get_node_ids(self) -> Iterable[int]: ...
    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]: ...


@dataclass
class Federation:
    """A run, as its server sees it. `work`: the folder of its checkpoint; None keeps none.

    left_out    nodes that have cheated, and are asked no more
    took_part   whether any client has, so far; where the draw is a secret, a run that was cut off says so in any case
    first_lost  the first client that was lost since this server started, and why
    before      hash of the weights before the first round
    """

    settings: FederateSettings
    data: Dataset
    subject: Subject
    about: About
    work: Path | None = None
    progress: Progress | None = None
    history: list[Round] = field(default_factory=list)
    left_out: list[int] = field(default_factory=list)
    took_part: bool = False
    first_lost: tuple[str, str] | None = None
    before: str = ""

    def run(self, grid: Grid) -> list[Round]:
        """All rounds that are left. The subject has the result's weights. Errors: FederateError."""
        settings = self.settings
        self.before = self.subject.digest()
        strategy, budget = strategy_of(settings), Budget.of(settings)
        strategy, budget = self._resume(strategy, budget)
        validation: Any = self.subject.encode(self.data.validation)
        for number in range(len(self.history) + 1, settings.rounds + 1):
            started = time.monotonic()
            now = self.subject.state()
            collected = self._round(grid, strategy, budget, number, now)
            with torch.no_grad():
                accuracy = judged(self.subject.model, validation)["accuracy"]
            self.took_part |= bool(collected.taken)
            self.first_lost = self.first_lost or next(iter(collected.lost.items()), None)
            round_ = Round(number, accuracy, collected.loss, len(collected.taken), collected.lost, budget.epsilon(),
                           time.monotonic() - started)  # fmt: skip
            if settings.secret_draw:
                failed = {"round": FAILED} if "round" in collected.lost else {}
                round_ = replace(round_, clients=None, lost=failed, seconds=None)
            self.history.append(round_)
            self._keep(strategy, budget)
            if self.progress:
                self.progress(round_, settings.rounds)
        return self.history

    def _round(self, grid: Grid, strategy: Any, budget: Budget, number: int, now: Mapping[str, Tensor]) -> Collected:
        nodes, drawn = self._sample(grid, number)
        if not nodes:
            return Collected([])
        if self.settings.dp != "none":  # from here on something may be seen, whether or not this server lives to tell
            budget.asked += 1
            self._keep(strategy, budget)
        config = ConfigRecord(
            {
                "about": self.about.to_json(),
                "rate": rate_at(self.settings, self.settings.rate or self.subject.rate, number),
                "clip": self.settings.clip,
                "noise": budget.noise,
                "examples": self.settings.examples or len(self.data.train) / self.settings.clients,
            }
        )
        chosen = SimpleNamespace(get_node_ids=lambda: nodes)  # of a grid, a strategy reads this alone
        messages = list(strategy.configure_train(number, record(now), config, chosen))

        def send(outgoing: Iterable[Message]) -> list[Message]:
            # In the order of names, which every engine has alike: sums of floats depend on it. A SuperLink answers in
            # its own name for a node that is gone: that is silence.
            asked = list(outgoing)
            nodes = {message.metadata.dst_node_id for message in asked}
            replies = grid.send_and_receive(asked, timeout=self.settings.timeout) if asked else []
            good = [reply for reply in replies if reply.metadata.src_node_id in nodes]
            return sorted(good, key=lambda reply: (name_of(reply), reply.metadata.src_node_id))

        collected = collect(messages, drawn, now, self.settings, budget, send)
        self.left_out += [node for node in collected.left_out if node not in self.left_out]
        if collected.replies:
            arrays, _ = strategy.aggregate_train(number, collected.replies)
            if arrays is not None:
                self.subject.set(tensors(arrays))
        return collected

    def _sample(self, grid: Grid, number: int) -> tuple[list[int], list[int]]:
        """Nodes of this round, and those of them that are to train.

        These are drawn each by itself and unpredictably where the accountant counts on it; there may be none.
        """
        settings = self.settings
        nodes = sorted(set(self._connected(grid)) - set(self.left_out))
        if settings.fraction == 1:
            return nodes, nodes
        if settings.secret_draw:
            chance = secrets.SystemRandom()
            return nodes, [node for node in nodes if chance.random() < settings.fraction]
        count = min(len(nodes), max(1, round(settings.fraction * len(nodes))))
        random = np.random.default_rng((settings.seed, number))
        nodes = sorted(nodes[i] for i in random.choice(len(nodes), count, replace=False))
        return nodes, nodes

    def _connected(self, grid: Grid) -> list[int]:
        """Waits for all clients before the first round; later for any. Errors: FederateError."""
        wanted = self.settings.clients if not self.history else 1
        until = time.monotonic() + self.settings.timeout
        while len(nodes := list(grid.get_node_ids())) < wanted:
            if time.monotonic() > until:
                raise FederateError(
                    f"{self.settings.clients} clients asked for, {len(nodes)} connected in "
                    f"{self.settings.timeout:g} s; start the others, or ask for fewer"
                )
            time.sleep(_POLL)
        return nodes

    # --- checkpoints -------------------------------------------------------------------------------------------------
    def _keep(self, strategy: Any, budget: Budget) -> None:
        if self.work is None:
            return
        make_folder(self.work.absolute())
        kept = {f"model.{n}": t for n, t in self.subject.state().items()}
        kept |= {f"strategy.{n}": t for n, t in memory(strategy).items()}
        state = {
            "fingerprint": self.settings.fingerprint(),
            "history": [asdict(r) for r in self.history],
            "budget": budget.to_dict(),
            "left_out": self.left_out,
            "took_part": self.took_part or self.settings.secret_draw,  # the checkpoint does not say who was drawn
        }
        write(self.work / CHECKPOINT, kept, state)

    def _resume(self, strategy: Any, budget: Budget) -> tuple[Any, Budget]:
        stored = None if self.work is None else read(self.work / CHECKPOINT)
        if stored is None:
            return strategy, budget
        kept, state = stored
        if state["fingerprint"] != self.settings.fingerprint():
            raise FederateError(
                f"{self.work}: belongs to a run with other settings or version; give another folder, or remove it"
            )
        self.subject.set({n.removeprefix("model."): t for n, t in kept.items() if n.startswith("model.")})
        remember(strategy, {n.removeprefix("strategy."): t for n, t in kept.items() if n.startswith("strategy.")})
        self.history = [Round(**row) for row in state["history"]]
        self.left_out, self.took_part = state["left_out"], state["took_part"]
        return strategy, Budget(self.settings, **state["budget"])
