"""Differential privacy: clipped updates, Gaussian noise, and what an accountant says of both.

H. B. McMahan, D. Ramage, K. Talwar, L. Zhang, arXiv:1710.06963: each client takes part in a round with probability q,
its update is clipped to norm C, and the sum gets noise of deviation z C and is divided by q N, the expected number. A
client that drops out makes the sum smaller and costs no privacy. Flower's own wrappers divide by the number that
replied and draw from numpy's global generator; their accounted mode takes neither sampled nor dropped clients.

Local: every client adds its own noise. Any two updates may differ by 2 C, so its deviation is 2 z C.
Example: every client adds noise to a step of its own (learning.py). Clients share no example, so epsilon is that of one
that took part in every round.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..protocols.streams import gaussian
from .settings import FederateError, FederateSettings


def accountant() -> Any:
    """Opacus' accountant of Renyi differential privacy. Errors: FederateError if the library is missing."""
    try:
        from opacus.accountants import RDPAccountant  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise FederateError("dp needs Opacus' accountant; run: pip install 'blindformer[federated]'") from None
    return RDPAccountant()


@contextmanager
def _unworried() -> Iterator[None]:
    """Without the accountant's warning that more orders might make epsilon smaller: what it says holds as it is."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Optimal order is the")
        yield


def spent(noise: float, rate: float, steps: int, delta: float) -> float:
    """Epsilon of so many rounds. No noise is no privacy: infinity."""
    if steps == 0:
        return 0.0
    if noise == 0:
        return math.inf
    counted = accountant()
    counted.history = [(noise, rate, steps)]
    with _unworried():
        return float(counted.get_epsilon(delta=delta))


def sampling(settings: FederateSettings) -> float:
    """How likely what is protected is in a round, as nobody can foresee it."""
    return {"central": settings.fraction, "local": 1.0, "example": settings.sample}[settings.dp]


def noise_for(settings: FederateSettings) -> float:
    """The multiplier: what is set, or what the wanted epsilon needs for all rounds."""
    if settings.dp == "none":
        return 0.0
    if settings.noise:
        return settings.noise
    accountant()
    from opacus.accountants.utils import get_noise_multiplier  # pyright: ignore[reportMissingImports]

    try:
        with _unworried():
            return float(
                get_noise_multiplier(
                    target_epsilon=settings.epsilon,
                    target_delta=settings.delta,
                    sample_rate=sampling(settings),
                    steps=settings.rounds,
                    accountant="rdp",
                )
            )
    except ValueError as error:
        raise FederateError(f"epsilon {settings.epsilon:g} cannot be kept ({error}); raise it") from None


@dataclass
class Budget:
    """What may have been seen so far.

    asked  rounds that clients were asked in. Each counts from before its question is sent, for all of them: whether it
           ended well, was cut off and is repeated, or who answered in it, makes it no cheaper
    """

    settings: FederateSettings
    noise: float
    asked: int = 0

    @classmethod
    def of(cls, settings: FederateSettings) -> Budget:
        return cls(settings, noise_for(settings))

    @property
    def expected(self) -> float:
        """Clients of a round, on average."""
        return self.settings.fraction * self.settings.clients

    def epsilon(self) -> float | None:
        """Spent so far, by the accountant, for the sampling as it was; None without differential privacy."""
        if self.settings.dp == "none":
            return None
        return spent(self.noise, sampling(self.settings), self.asked, self.settings.delta)

    def release(self, total: Tensor, count: float) -> Tensor:
        """The mean update, from the sum of so many clipped updates."""
        if self.settings.dp == "local":
            return total / max(1.0, count)
        return (total + self.noise * self.settings.clip * gaussian(len(total))) / self.expected

    def to_dict(self) -> dict[str, Any]:
        return {"noise": self.noise, "asked": self.asked}
