"""A compiled classifier for sixteen tokens, in a folder and in memory; what a language model answers in the clear."""

from __future__ import annotations

import pytest
from blindformer.models.artifacts import save
from blindformer.models.building import compile_lengths
from blindformer.tests.shared.tiny import clear_conversation

TEXTS = ("how is my password ?", "not good , bad !")


@pytest.fixture(scope="module")
def compiled(loaded):
    return compile_lengths(loaded, [16], texts=[*TEXTS, "the password is lost .", "what a good red !"])[16]


@pytest.fixture(scope="module")
def folder(compiled, tmp_path_factory):
    return save(compiled, tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="module")
def wanted(chat_folder, request):
    """The tokens that answer "Hi" and then "Ho": as many as the module's TOKENS says."""
    with clear_conversation(chat_folder) as talk:
        return [talk.say(text, max_new_tokens=request.module.TOKENS).tokens for text in ("Hi", "Ho")]
