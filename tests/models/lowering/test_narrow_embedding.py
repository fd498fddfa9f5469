"""An embedding that is made narrower right away is the client's part, projection and all; no other layer is."""

import torch
from blindformer.models.compile import compile
from torch import nn

TOKENS = {"input_ids": torch.tensor([[1, 2, 3]])}


class Narrow(nn.Module):
    """`residual`: something else reads the embedding, too; `deep`: layers follow."""

    def __init__(self, residual: bool = False, deep: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.project = nn.Embedding(10, 8), nn.Linear(8, 4)
        self.layer = nn.Linear(4, 4) if deep else nn.Identity()
        self.residual = residual

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.words(input_ids)
        out = self.layer(self.project(x))
        return out + x[..., :4] if self.residual else out


def released(model: nn.Module) -> set[str]:
    return set(compile(model.eval(), TOKENS, "he").program.released)


def test_a_projection_that_alone_reads_the_words_is_released_with_them():
    assert released(Narrow()) == {"words.weight", "project.weight", "project.bias"}


def test_a_layer_beside_other_readers_is_not():
    assert released(Narrow(residual=True)) == {"words.weight"}


def test_a_model_s_only_layer_is_not():
    assert released(Narrow(deep=False)) == {"words.weight"}
