# pyright: reportMissingImports=false
"""Flower's strategies by name, and what of them a checkpoint has to keep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from flwr.serverapp import strategy as flower
from torch import Tensor

from .messages import WEIGHT
from .settings import FederateError, FederateSettings

PROXIMAL = 0.01
MOMENTUM = 0.9
SERVER_RATE = 0.01
CUT = 0.2  # share of the values at each end that the trimmed mean leaves out
_MEMORY = ("m_t", "v_t", "momentum_vector")

STRATEGIES = {
    "fedavg": lambda settings, common: flower.FedAvg(**common),
    "fedprox": lambda settings, common: flower.FedProx(**common, proximal_mu=settings.proximal or PROXIMAL),
    "fedavgm": lambda settings, common: flower.FedAvgM(**common, server_momentum=MOMENTUM),
    "fedadam": lambda settings, common: flower.FedAdam(**common, eta=SERVER_RATE, eta_l=SERVER_RATE),
    "fedyogi": lambda settings, common: flower.FedYogi(**common, eta=SERVER_RATE, eta_l=SERVER_RATE),
    "fedadagrad": lambda settings, common: flower.FedAdagrad(**common, eta=SERVER_RATE, eta_l=SERVER_RATE),
    "fedmedian": lambda settings, common: flower.FedMedian(**common),
    "fedtrimmedavg": lambda settings, common: flower.FedTrimmedAvg(**common, beta=CUT),
}


def strategy_of(settings: FederateSettings) -> Any:
    """Flower's strategy. Whom it asks is decided before, so it takes all that it is shown. Errors: FederateError."""
    check_strategy(settings.strategy)
    common = {"fraction_evaluate": 0.0, "min_train_nodes": 1, "min_available_nodes": 1, "weighted_by_key": WEIGHT}
    return STRATEGIES[settings.strategy](settings, common)


def check_strategy(name: str) -> None:
    if name not in STRATEGIES:
        raise FederateError(f"unknown strategy {name!r}: use one of {', '.join(STRATEGIES)}")


def memory(strategy: Any) -> dict[str, Tensor]:
    """What a strategy carries from round to round, by name."""
    tensors = {}
    for field in _MEMORY:
        value = getattr(strategy, field, None)
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value) if value is not None else ()
        tensors |= {f"{field}.{key}": torch.from_numpy(np.asarray(array)) for key, array in pairs}
    return tensors


def remember(strategy: Any, tensors: Mapping[str, Tensor]) -> None:
    """Give a new strategy what `memory` found in an old one."""
    for field in _MEMORY:
        arrays = {n.removeprefix(f"{field}."): t.numpy() for n, t in tensors.items() if n.startswith(f"{field}.")}
        if arrays:
            plain = all(key.isdigit() for key in arrays)
            setattr(strategy, field, [arrays[str(i)] for i in range(len(arrays))] if plain else arrays)
