"""A compiled classifier for sixteen tokens, in a folder and in memory."""

from __future__ import annotations

import pytest
from blindformer.models.artifacts import save
from blindformer.parties.local.compare import compile_text

TEXTS = ("how is my password ?", "not good , bad !")


@pytest.fixture(scope="module")
def compiled(loaded):
    return compile_text(loaded, 16, texts=[*TEXTS, "the password is lost .", "what a good red !"])


@pytest.fixture(scope="module")
def folder(compiled, tmp_path_factory):
    return save(compiled, tmp_path_factory.mktemp("compiled"))
