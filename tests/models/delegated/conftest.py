"""Small modules whose linear layers something else computes, in exact integers; their own weights are not there."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from blindformer.models.delegated.layers import ParameterIndex
from blindformer.models.delegated.manifest import DelegatedModel, prepare
from blindformer.models.delegated.running import DelegatedRunner
from blindformer.models.delegated.sequences import GroupCalls
from blindformer.models.lowering.structure import tensors_of
from torch import Tensor, nn


class Integers:
    """A carrier that multiplies integers, and notes the sequence of each pass."""

    def __init__(self, model: DelegatedModel) -> None:
        self.integers = model.integers
        self.groups = model.client_groups()
        self.sequences: list[GroupCalls] = []
        self.left: list[tuple[int, int]] = []
        self.ended: list[str] = []
        self.refused = False
        self.calls = 0

    def begin(self, sequence: GroupCalls) -> None:
        self.sequences.append(sequence)
        self.left = list(sequence)

    def call(self, group: int, x: Tensor) -> Tensor:
        assert self.left.pop(0) == (group, len(x))
        self.calls += 1
        mine, inputs = self.groups[group], self.groups[group].inputs
        sent = mine.mask(x, torch.zeros(len(x), inputs, dtype=torch.int32))
        product = sent.q.to(torch.int64) @ self.integers[group].to(torch.int64).t()
        assert product.abs().max() < 2**31
        values = torch.empty(product.shape)
        assert mine.open(sent, product.to(torch.int32), torch.zeros(product.shape, dtype=torch.int32), values)
        return values

    def end(self) -> None:
        assert not self.left
        self.ended.append("end")

    def abandon(self) -> None:
        self.ended.append("abandon")


class Delegated:
    """A module, prepared on these inputs. `module`: as it was; `runner`: of a copy whose delegated weights are gone."""

    def __init__(self, module: nn.Module, **inputs: Any) -> None:
        self.module = module.eval().requires_grad_(False)
        copied = copy.deepcopy(self.module)
        self.model = prepare(copied, lambda: copied(**inputs))
        parameters = dict(copied.named_parameters())
        for name in self.model.manifest.parameters:
            parameters[name].data = torch.full_like(parameters[name], torch.nan)
        self.runner = DelegatedRunner(copied, self.model)
        self.runner.index = ParameterIndex(copied)
        self.carrier = Integers(self.model)
        self.shapes = [(group.outputs, group.inputs) for group in self.runner.groups]

    @property
    def names(self) -> list[list[str]]:
        """The delegated parameters, group by group."""
        return [[layer.parameter for layer in group.layers] for group in self.runner.groups]

    def run(self, **inputs: Any) -> dict[str, Tensor]:
        return tensors_of(self.runner.run(self.carrier, self.runner.module, **copy.deepcopy(inputs)))

    def check(self, tolerance: float = 2e-4, **inputs: Any) -> None:
        """The answer is the module's own, within this part of its size."""
        answers = self.run(**inputs)
        wanted = tensors_of(self.module(**copy.deepcopy(inputs)))
        assert answers.keys() == wanted.keys()
        for name, value in wanted.items():
            error = (answers[name].double() - value.double()).norm()
            assert error <= tolerance * value.double().norm(), name


@pytest.fixture
def delegate():
    """delegate(module, **inputs) -> Delegated"""
    torch.manual_seed(0)
    return Delegated
