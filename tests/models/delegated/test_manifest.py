"""The digest that the parties compare stands for every number that steers the client."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from blindformer.approximations import Plan
from blindformer.models.delegated.layers import LayerGroup, LinearLayer, ParameterIndex
from blindformer.models.delegated.manifest import Manifest, integers_of, prepare, ring_of
from blindformer.models.delegated.sequences import DelegationError
from blindformer.protocols.delegated import RINGS
from blindformer.protocols.delegated.group import ClientGroup, GroupError
from torch import Tensor, nn

WIDE = 32


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.second = nn.Linear(WIDE, WIDE), nn.LayerNorm(WIDE), nn.Linear(WIDE, 64)
        self.register_buffer("table", torch.randn(WIDE), persistent=False)
        self.register_buffer("count", torch.tensor(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.norm(self.first(x)) + self.table)


def manifest_of(module: nn.Module) -> Manifest:
    return prepare(module, lambda: module(torch.ones(1, WIDE)), "net").manifest


NUMBERS = [
    *((name, "parameter") for name, _ in Net().named_parameters()),
    *((name, "buffer") for name, _ in Net().named_buffers()),
]


@pytest.mark.parametrize(("name", "kind"), NUMBERS)
def test_any_number_of_the_model_changes_the_digest(name, kind):
    module = Net()
    before = manifest_of(module)
    assert before.digest == manifest_of(module).digest == manifest_of(Net()).digest
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    with torch.no_grad():
        tensors[name].view(-1)[-1] += 1
    after = manifest_of(module)
    assert after.digest != before.digest
    delegated = name in before.parameters
    assert delegated == (after.kept == before.kept) == name.endswith(("first.weight", "second.weight"))


def changes(value: Any, path: tuple = ()) -> list[tuple]:
    """The place of each leaf of a manifest's content."""
    if isinstance(value, dict):
        return [place for key, one in value.items() for place in changes(one, (*path, key))]
    if isinstance(value, list | tuple):
        return [place for number, one in enumerate(value) for place in changes(one, (*path, number))]
    return [path]


def test_whatever_a_manifest_says_is_in_its_digest_but_the_models_name():
    manifest = manifest_of(Net())
    content = manifest.to_json()
    content["groups"] = [{**entry, "layers": list(entry["layers"])} for entry in content["groups"]]
    assert Manifest.from_json(content).digest == manifest.digest
    digests = {manifest.digest}
    for path in changes(content):
        changed: Any = copy.deepcopy(content)
        place = changed
        for key in path[:-1]:
            place = place[key]
        value = place[path[-1]]
        place[path[-1]] = not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else f"{value}0"
        if path[0] in ("ring", "format"):
            with pytest.raises(ValueError, match=f"{path[0]} {place[path[0]]}"):
                Manifest.from_json(changed)
        elif path == ("model",):
            assert Manifest.from_json(changed).digest == manifest.digest
        else:
            digests.add(Manifest.from_json(changed).digest)
    assert len(digests) == 1 + len(changes(content)) - 3
    assert replace(manifest, ring=40).digest not in digests


def test_the_scale_of_one_row_is_in_the_digest():
    """Twice the weights of a row have the same integers."""
    one, other = Net(), Net()
    with torch.no_grad():
        other.first.weight[3] *= 2
    one_, other_ = manifest_of(one), manifest_of(other)
    assert one_.groups[0].integers == other_.groups[0].integers
    assert one_.groups[0].scale != other_.groups[0].scale
    assert one_.digest != other_.digest


@pytest.mark.parametrize("ring", RINGS.values())
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_integers_leave_the_inputs_half_of_the_ring(scale, ring):
    matrix = torch.randn(50, 96) * scale
    matrix[3], matrix[4, 1:], matrix[5] = 0, 0, 1e-42  # whose unit float32 cannot say
    integers, scales = integers_of(matrix, ring)
    assert integers.dtype == torch.int16
    assert integers.double().norm(dim=1).max() < 2.0 ** ((ring - 1) / 2) * 1.003
    assert not integers[3].any()
    assert integers.abs().max() == min(2**15 - 1, round(2.0 ** ((ring - 1) / 2)))  # a row of one number
    usual = [0, 1, 2, *range(6, 50)]
    error = (integers.double() * scales.double()[:, None] - matrix.double())[usual].norm(dim=1)
    assert (error / matrix.double()[usual].norm(dim=1)).max() < {32: 1.2e-4, 24: 2e-3}[ring]
    ClientGroup(integers, scales, ring)


@pytest.mark.parametrize("plan", ["he", "exact", Plan.preset("fast")], ids=["he", "exact", "a plan of its own"])
def test_a_plan_that_is_of_compiled_models_is_refused(plan):
    with pytest.raises(DelegationError, match=r"^plan .* 32 bits \(faithful\) or 24 \(fast\); choose one of these$"):
        ring_of(plan)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_are_refused(bad):
    matrix = torch.ones(3, 4)
    matrix[1, 2] = bad
    with pytest.raises(DelegationError, match="weights: some are not finite"):
        integers_of(matrix)


def test_a_layer_is_found_by_the_memory_it_lies_in():
    module = nn.Module()
    module.w, module.c = nn.Parameter(torch.randn(12, 5)), nn.Parameter(torch.randn(4, 3, 2, 2))
    module.square = nn.Parameter(torch.randn(6, 6))
    index = ParameterIndex(module)
    w, c, square = module.w, module.c, module.square
    views = {
        w: LinearLayer("w", 0, 12, 5),
        w[3:7]: LinearLayer("w", 3, 4, 5),
        w.t(): LinearLayer("w", 0, 5, 12, True),
        w.detach(): LinearLayer("w", 0, 12, 5),
        c: LinearLayer("c", 0, 4, 12),
        c[1:3]: LinearLayer("c", 1, 2, 12),
        c.flatten(1): LinearLayer("c", 0, 4, 12),
        square.t(): LinearLayer("square", 0, 6, 6, True),
    }
    for view, layer in views.items():
        assert index.layer_of(view) == layer
        matrix = layer.matrix(index.parameters[layer.parameter])
        assert torch.equal(matrix, view.detach().reshape(layer.outputs, -1))
    others = [w.clone(), w[:, 1:3], w[::2], w.view(5, 12), w.t()[1:3], w[2], c.transpose(0, 1), torch.randn(12, 5)]
    others += [w.view(6, 10), w.flatten()[2:52].view(10, 5), w.to_sparse()]
    for view in others:
        assert index.layer_of(view) is None
    group = LayerGroup((LinearLayer("w", 3, 4, 5), LinearLayer("w", 0, 2, 5)))
    assert torch.equal(group.matrix(index.parameters), torch.cat([w[3:7], w[:2]]))
    for one, other in itertools.combinations(views.values(), 2):
        assert one != other or one.parameter == other.parameter == "w" or one.parameter == "c"


def test_a_group_that_the_ring_has_no_room_for_is_refused():
    with pytest.raises(GroupError, match=r"layer: 65600 inputs .* do not fit a ring of 32; prepare .* fewer bits"):
        ClientGroup(torch.full((2, 65600), 2**15 - 1, dtype=torch.int16), torch.ones(2))
