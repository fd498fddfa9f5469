"""A classifier compiled for two lengths, and saved."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from blindformer.models.artifacts import save
from blindformer.models.building import compile_lengths
from blindformer.models.compile import Compiled
from blindformer.models.loading.load import Loaded, load

TEXTS = ("how is my password ?", "not good , bad !", "the password is lost .", "what a good red !")
LENGTHS = (8, 16)


def randomise(model) -> None:
    """No weight may look like another's: no ones in a gamma, no zeros in a bias or in the row of the padding."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "LayerNorm.weight" in name else 0.0
            parameter.copy_(centre + 0.1 * torch.randn(parameter.shape, generator=generator))


@dataclass
class Made:
    loaded: Loaded
    folder: Path


@pytest.fixture(scope="session", params=["client", "private"])
def artifacts(request, tiny_classifier, tmp_path_factory) -> Made:
    """A classifier compiled for two lengths, its embedding released or not."""
    loaded = load(tiny_classifier)
    randomise(loaded.model)
    programs = compile_lengths(loaded, LENGTHS, texts=TEXTS, embedding=request.param)
    return Made(loaded, save(programs, tmp_path_factory.mktemp("compiled"), loaded))


@pytest.fixture(scope="session")
def compiled(artifacts) -> Compiled:
    """The program of one length alone."""
    return compile_lengths(artifacts.loaded, [8], texts=TEXTS)[8]


@pytest.fixture
def copy(artifacts, tmp_path) -> Path:
    """A folder to spoil."""
    return shutil.copytree(artifacts.folder, tmp_path / "copy")
