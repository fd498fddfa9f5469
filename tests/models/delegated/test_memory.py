"""Layers that a client with memory to spare computes by itself: which they are, and that answers stay right."""

from __future__ import annotations

import pytest
import torch
from blindformer.models.delegated.folder import load_part, save_delegated
from blindformer.models.delegated.part import DelegatedPart, delegated_part
from blindformer.models.delegated.sequences import DelegationError, check_weights, groups_within, read_memory
from blindformer.models.loading.load import load
from blindformer.models.program.pricing import NETWORKS
from blindformer.parties.reports.estimate import price_of_pass
from blindformer.tests.models.delegated.conftest import Integers
from blindformer.tests.shared.tiny import tiny_llama
from torch import Tensor, nn

WIDE, MOST = 40, 120
OUT, QKV, FEED = 4 * WIDE * WIDE, 3 * 4 * WIDE * WIDE, 4 * WIDE * MOST


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDE, WIDE) for _ in range(4))
        self.up, self.down = nn.Linear(WIDE, MOST), nn.Linear(MOST, WIDE)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.o(torch.tanh(self.q(x)) * self.k(x) + self.v(x))
        return x + self.down(torch.relu(self.up(x)))


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.parametrize(
    ("memory", "rounds"),
    [
        (0, 8),
        (OUT - 1, 8),
        (OUT, 7),
        (2 * OUT, 6),
        (2 * OUT + QKV, 5),
        (2 * (OUT + QKV), 4),
        (2 * (OUT + QKV) + FEED, 3),
    ],
)
def test_the_least_memory_for_a_round_goes_first(delegate, memory, rounds):
    """Both outputs of attention, then queries, keys and values together; feed-forward layers last."""
    x = torch.randn(1, 5, WIDE)
    delegated = delegate(Blocks(), x=x)
    sequence = tuple((group, 5) for group in range(8))
    chosen = groups_within(memory, delegated.runner.groups, sequence, delegated.runner.index.parameters)
    assert len(chosen) == 8 - rounds
    for number in chosen:
        for layer in delegated.runner.groups[number].layers:
            delegated.runner.index.parameters[layer.parameter].copy_(
                dict(delegated.module.named_parameters())[layer.parameter]
            )
            delegated.runner.keep([layer.parameter])
    delegated.check(x=x)
    assert len(delegated.carrier.sequences[0]) == rounds


def test_a_layer_that_is_called_often_goes_first(delegate):
    class Twice(Blocks):
        def forward(self, x: Tensor) -> Tensor:
            return self.blocks[1](self.blocks[0](self.blocks[0](x)))

    delegated = delegate(Twice(), x=torch.randn(1, 5, WIDE))
    sequence = delegated.runner.steps(delegated.runner.module, (), {"x": torch.randn(1, 5, WIDE)})
    calls = tuple((step.group, step.rows) for step in sequence if step.group is not None)
    (first,) = groups_within(OUT, delegated.runner.groups, calls, delegated.runner.index.parameters)
    assert delegated.names[first] == ["blocks.0.o.weight"]


def test_a_size_is_read_or_refused_in_a_line(delegate):
    assert [read_memory(text) for text in ("", "200MB", "1.5 GB")] == [0, 200e6, 1.5e9]
    with pytest.raises(DelegationError, match=r"^client memory '200': is no size"):
        read_memory("200")
    delegated = delegate(Block(), x=torch.randn(1, 5, WIDE))
    with pytest.raises(DelegationError, match=r"^client memory: has room for the whole model"):
        groups_within(1e9, delegated.runner.groups, ((0, 5), (1, 5)), delegated.runner.index.parameters)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A prepared model, and the model."""
    loaded = load(tiny_llama(tmp_path_factory.mktemp("memory") / "model"))
    return save_delegated(loaded, delegated_part(loaded), tmp_path_factory.mktemp("memory") / "open"), loaded


def scores(part: DelegatedPart) -> tuple[Tensor, int]:
    """And the rounds."""
    carrier = Integers(part.model)
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    return part.runner.run(carrier, part.runner.module, input_ids=ids, use_cache=False).logits, carrier.calls


def test_each_client_of_a_folder_chooses_for_itself(folder):
    """The manifest is one and the same, and weights that others compute with take no memory."""
    place, loaded = folder
    (plain, rounds), part = scores(load_part(place)), load_part(place, memory=20e3)
    answer, fewer = scores(part)
    assert (rounds, fewer) == (4, 2)
    assert part.model.manifest == load_part(place).model.manifest
    assert torch.cosine_similarity(answer.flatten(), plain.flatten(), dim=0) > 0.99999
    exact = dict(loaded.model.model.named_parameters())
    for name, parameter in part.runner.module.named_parameters():
        assert torch.equal(parameter, exact[name]) == (name not in part.runner.delegated)
    here, plan = (price_of_pass(loaded, 16, NETWORKS["lan"], memory=memory) for memory in (20e3, 0))
    assert (here.rounds, plan.rounds, here.layers) == (2, 4, 2)
    assert here.up_bytes < plan.up_bytes


def test_weights_that_are_not_the_manifests_are_refused(folder):
    part = load_part(folder[0])
    integers, scale = part.model.integers[0], part.model.scales[0]
    matrix = integers * scale[:, None]
    check_weights(matrix, integers, scale)
    matrix[3, 4] += 1.1 * scale[3]
    with pytest.raises(DelegationError, match=r"^weights: are not those of the manifest"):
        check_weights(matrix, integers, scale)
