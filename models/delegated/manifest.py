"""What the parties of a delegated model agree on: the manifest, whose digest stands for all numbers that steer it.

Server and dealer hold the integers of the weights; the client holds the same, what one unit of them stands for, and the
parameters that it computes with itself. The manifest has the SHA-256 of each, so a party that has other numbers is
refused at the handshake. Integers are handed out, never rounded again elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ...approximations import Plan
from ...protocols.delegated import RING, RINGS
from ...protocols.delegated.group import ClientGroup
from ..loading.adapters import is_added
from .layers import LayerGroup, LinearLayer, ParameterIndex, base_name
from .sequences import DelegationError, Layers, delegated_layers

FORMAT = 1


@dataclass(frozen=True)
class GroupEntry:
    """`integers`, `scale`: SHA-256 of the group's tensors."""

    layers: tuple[LinearLayer, ...]
    integers: str
    scale: str

    @property
    def group(self) -> LayerGroup:
        return LayerGroup(self.layers)


@dataclass(frozen=True)
class Manifest:
    """`kept`: SHA-256 of the parameters and buffers that the client computes with. `model`: a name, for people."""

    model: str
    groups: tuple[GroupEntry, ...]
    kept: str
    ring: int = RING
    format: int = FORMAT

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all of it but the name."""
        content = {name: value for name, value in asdict(self).items() if name != "model"}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def plan(self) -> str:
        return next(name for name, ring in RINGS.items() if ring == self.ring)

    @property
    def layer_groups(self) -> list[LayerGroup]:
        return [entry.group for entry in self.groups]

    @cached_property
    def parameters(self) -> frozenset[str]:
        """The delegated ones, by name."""
        return frozenset(layer.parameter for entry in self.groups for layer in entry.layers)

    def hash(self) -> str:
        """As a Program's: what the parties compare."""
        return self.digest

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: Any) -> Manifest:
        """Errors: KeyError, TypeError, ValueError for what is no manifest of this version."""
        if content["format"] != FORMAT or content["ring"] not in RINGS.values():
            raise ValueError(f"format {content['format']}, ring {content['ring']}")
        entries = [
            GroupEntry(tuple(LinearLayer(**layer) for layer in entry["layers"]), entry["integers"], entry["scale"])
            for entry in content["groups"]
        ]
        return cls(str(content["model"]), tuple(entries), content["kept"], content["ring"])


@dataclass(frozen=True)
class DelegatedModel:
    """A model that is prepared: by group, integers int16 [outputs, inputs], and float32 [outputs] of one unit each."""

    manifest: Manifest
    integers: Sequence[Tensor]
    scales: Sequence[Tensor]
    kept: frozenset[str]

    def client_groups(self) -> list[ClientGroup]:
        """The client's side of each group, with a check of its own."""
        tensors = zip(self.integers, self.scales, strict=True)
        return [ClientGroup(integers, scale, self.manifest.ring) for integers, scale in tensors]


def prepare(
    module: nn.Module,
    run: Callable[[], Any],
    name: str = "",
    progress: Callable[[int, int], None] = lambda done, total: None,
    ring: int = RING,
    stored: dict[str, Tensor] | None = None,
    write: Callable[[int, Tensor], Tensor] = lambda number, integers: integers,
) -> DelegatedModel:
    """`run` calls the module on inputs of a usual shape. An adapter on it is the client's own: none of its parameters
    is delegated, and the manifest is that of the model without it.

    stored  numbers of parameters that have none yet; the client's are filled in, and each is forgotten when it has been
            used
    write   keeps a group's integers, and returns them as they are kept

    Errors: DelegationError, and those of `write`.
    """
    stored = {} if stored is None else stored
    layers: Layers = delegated_layers(module, run, fill=lambda names: fill(module, stored, names))
    parameters = ParameterIndex(module).parameters
    last = {layer.parameter: number for number, group in enumerate(layers.groups) for layer in group.layers}
    entries, integers, scales = [], [], []
    for number, group in enumerate(layers.groups):
        progress(number, len(layers.groups))
        whole, unit = integers_of(group.matrix({**parameters, **stored}), ring)
        for used in [name for name in stored if last[name] == number]:
            del stored[used]
        entries.append(GroupEntry(group.layers, digest_of(whole), digest_of(unit)))
        integers.append(write(number, whole))
        scales.append(unit)
    kept = kept_digest(module, layers.parameters)
    return DelegatedModel(Manifest(name, tuple(entries), kept, ring), integers, scales, layers.kept)


def fill(module: nn.Module, stored: dict[str, Tensor], names: Collection[str]) -> bool:
    """Give these parameters their numbers, which are then no longer `stored`. Whether one had none yet."""
    empty = [name for name in names if name in stored]
    parameters = dict(module.named_parameters())
    for name in empty:
        parameters[name].data.copy_(stored.pop(name))
    return bool(empty)


def digest_of(tensor: Tensor) -> str:
    """SHA-256 of a tensor's type, shape and bytes."""
    digest = hashlib.sha256()
    _add(digest, tensor)
    return digest.hexdigest()


def _add(digest: Any, tensor: Tensor) -> None:
    digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def kept_digest(module: nn.Module, delegated: frozenset[str]) -> str:
    """SHA-256 of names, shapes, types and bytes of all that a module computes with by itself, but for an adapter: who
    guesses at its numbers could compare them with a hash."""
    digest = hashlib.sha256()
    named: Mapping[str, Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name, tensor in sorted((base_name(name), tensor) for name, tensor in named.items() if not is_added(name)):
        if name not in delegated:
            digest.update(f"{name} ".encode())
            _add(digest, tensor)
    return digest.hexdigest()


# A group's weights as integers of 16 bits, and what one unit of each output's row stands for.
#
# A product of integers must stay below 2^31 in a ring of 32 bits, and is bounded by |q| |w| (Cauchy and Schwarz), so
# all rows w get one norm: the square root of 2^31, which leaves the inputs as much. Then weights and inputs are rounded
# alike, to about sqrt(inputs) / 160,000 of their size each; in a ring of 24 bits, to sqrt(inputs) / 10,000.


_MOST = 2**15 - 1
_CHUNK_NUMBERS = 2**17  # numbers that are widened to float64: 1 MB, which caches hold
_LEAST = torch.finfo(torch.float32).tiny  # below it float32 has fewer digits, and rows would get another norm


def ring_of(plan: Plan | str | None) -> int:
    """Bits of the ring. None: the plan "faithful". Errors: DelegationError."""
    return RINGS[plan_name(plan)]


def plan_name(plan: Plan | str | None) -> str:
    """The same, and its name."""
    if isinstance(plan, Plan) or (plan or "faithful") not in RINGS:
        name = "of your own" if isinstance(plan, Plan) else plan
        raise DelegationError(
            f"plan {name}: a public model runs as it is, in 32 bits (faithful) or 24 (fast); choose one of these"
        )
    return plan or "faithful"


def integers_of(matrix: Tensor, ring: int = RING) -> tuple[Tensor, Tensor]:
    """[outputs, inputs] -> (int16 of the same shape, float32 [outputs]). Errors: DelegationError."""
    norm = 2.0 ** ((ring - 1) / 2)
    integers = torch.empty(matrix.shape, dtype=torch.int16)
    scales = torch.empty(len(matrix), dtype=torch.float32)
    few = max(1, _CHUNK_NUMBERS // max(1, matrix.shape[1]))
    for rows, out, scale in zip(*(whole.split(few) for whole in (matrix, integers, scales)), strict=True):
        exact = rows.to(torch.float64)
        norms = torch.linalg.vecdot(exact, exact).sqrt_()
        if not bool(norms.isfinite().all()):
            raise DelegationError("weights: some are not finite; repair or download the model again")
        low, high = torch.aminmax(exact, dim=1)
        unit = torch.maximum(norms / norm, torch.maximum(-low, high) / _MOST)
        scale.copy_(torch.where(unit >= _LEAST, unit, 1.0))
        out.copy_(exact.div_(scale[:, None].double()).round_().clamp_(-_MOST, _MOST))
    return integers, scales
