"""The tiny models of tests/models, with queries of two texts."""

import pytest
import torch
from blindformer.tests.models import conftest as models


@pytest.fixture
def build():
    """build(name, attention) -> (model in evaluation mode, inputs: two texts, the second padded, or two images)."""

    def make(name: str, attention: str = "sdpa"):
        model = models.build(name)
        model.set_attn_implementation(attention)
        model.config.use_cache = False
        first, second = models.batches(name, 2)
        return model, {key: torch.cat([first[key], second[key]]) for key in first}

    return make
