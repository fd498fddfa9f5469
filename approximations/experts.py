"""Mixtures of experts, on secrets: every expert computes, and the router's weights choose among the results.

transformers sends each token to its experts, which shows who was chosen.
"""

from __future__ import annotations

from typing import Protocol, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor


class Experts(Protocol):
    """What transformers' modules of this form have: weights [experts, outputs, inputs], or transposed."""

    has_gate: bool
    has_bias: bool
    is_transposed: bool
    gate_up_proj: Tensor
    up_proj: Tensor
    down_proj: Tensor

    def act_fn(self, x: Tensor) -> Tensor: ...
    def _apply_gate(self, x: Tensor) -> Tensor: ...


def is_experts(module: object) -> TypeGuard[Experts]:
    """Whether it holds the weights of all experts in transformers' form (`use_experts_implementation`), without a norm
    after each expert."""
    form = ("has_gate", "has_bias", "is_transposed", "_apply_gate")
    return all(hasattr(module, name) for name in form) and not getattr(module, "has_post_expert_norm", False)


def all_experts(module: Experts, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """sum over e of w_e expert_e(x). x [tokens, hidden]; indices and weights [tokens, k]; an expert that is not chosen
    has weight 0."""
    up = "gate_up_proj" if module.has_gate else "up_proj"
    count = len(module.down_proj)
    chosen = F.one_hot(top_k_index, count).to(top_k_weights.dtype)
    weights = (chosen * top_k_weights.unsqueeze(-1)).sum(-2)  # [tokens, experts]
    results = []
    for expert in range(count):
        hidden = _layer(module, hidden_states, up, expert)
        hidden = module._apply_gate(hidden) if module.has_gate else module.act_fn(hidden)
        results.append(_layer(module, hidden, "down_proj", expert) * weights[:, expert : expert + 1])
    return torch.stack(results).sum(0)


def _layer(module: Experts, x: Tensor, name: str, expert: int) -> Tensor:
    weight = getattr(module, name)[expert]
    bias = getattr(module, f"{name}_bias")[expert] if module.has_bias else None
    return F.linear(x, weight.t() if module.is_transposed else weight, bias)
