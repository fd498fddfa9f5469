"""Linear layers of a model, and the groups of them that read one input.

A layer is a matrix [outputs, inputs] that lies in one parameter of the model: all of it, some of its rows, or its
transpose. A convolution's is the matrix that its unfolded input is multiplied by.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class LinearLayer:
    """Rows `first` to `first + outputs` of the matrix in `parameter`, which is stored transposed if `transposed`."""

    parameter: str
    first: int
    outputs: int
    inputs: int
    transposed: bool = False

    def matrix(self, parameter: Tensor) -> Tensor:
        """[outputs, inputs], a view."""
        whole = parameter.t() if self.transposed else parameter.reshape(len(parameter), -1)
        return whole[self.first : self.first + self.outputs]


@dataclass(frozen=True)
class LayerGroup:
    """Layers that read one input, in the order of their calls."""

    layers: tuple[LinearLayer, ...]

    @property
    def inputs(self) -> int:
        return self.layers[0].inputs

    @property
    def outputs(self) -> int:
        return sum(layer.outputs for layer in self.layers)

    def matrix(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """[outputs, inputs], of all layers below each other."""
        return torch.cat([layer.matrix(parameters[layer.parameter]) for layer in self.layers])


def base_name(name: str, known: Collection[str] = ()) -> str:
    """What a parameter is called in the model without the adapter that peft put on it. `known`: names of that model,
    which may stand below another head."""
    parts = name.replace(".base_layer.", ".").replace(".original_module.", ".").split(".")
    below = (".".join(parts[at:]) for at in range(len(parts)))
    return next((one for one in below if one in known), ".".join(parts))


class ParameterIndex:
    """Finds the parameter in whose memory a tensor lies. Holds for one module, as long as its parameters stay. `known`:
    as of `base_name`, by which parameters are called."""

    def __init__(self, module: nn.Module, known: Collection[str] = ()) -> None:
        named = {base_name(name, known): value for name, value in module.named_parameters()}  # by the first name
        self.parameters: dict[str, Tensor] = {name: value.data for name, value in named.items()}
        self._names = {value.untyped_storage().data_ptr(): name for name, value in named.items() if value.numel()}

    def name_of(self, tensor: Tensor) -> str | None:
        return self._names.get(tensor.untyped_storage().data_ptr()) if tensor.layout is torch.strided else None

    def layer_of(self, matrix: Tensor) -> LinearLayer | None:
        """The layer whose [outputs, inputs] this view is; None for what is no parameter, or lies in it otherwise."""
        name = self.name_of(matrix)
        if name is None or matrix.dim() < 2 or not matrix.is_floating_point():
            return None
        parameter = self.parameters[name]
        if parameter.dim() < 2 or not parameter.is_contiguous():
            return None
        outputs, inputs = len(matrix), matrix[0].numel()
        offset = matrix.storage_offset() - parameter.storage_offset()
        if matrix.dim() == 2 and parameter.dim() == 2 and matrix.stride() == (1, outputs) and offset == 0:
            same = parameter.shape == (inputs, outputs)
            return LinearLayer(name, 0, outputs, inputs, transposed=True) if same else None
        if not matrix.is_contiguous() or parameter[0].numel() != inputs or offset % inputs:
            return None
        return LinearLayer(name, offset // inputs, outputs, inputs)
