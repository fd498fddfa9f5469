"""A compiled classifier for sixteen tokens, in a folder and in memory; what a language model answers in the clear."""

from __future__ import annotations

import pytest
from blindformer.models.artifacts import save
from blindformer.parties.client import clear
from blindformer.parties.client.compare import compile_text

TEXTS = ("how is my password ?", "not good , bad !")


@pytest.fixture(scope="module")
def compiled(loaded):
    return compile_text(loaded, 16, texts=[*TEXTS, "the password is lost .", "what a good red !"])


@pytest.fixture(scope="module")
def folder(compiled, tmp_path_factory):
    return save(compiled, tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="module")
def wanted(chat_folder, request):
    """The tokens that answer "Hi" and then "Ho": as many as the module's TOKENS says."""
    with clear.conversation(chat_folder) as talk:
        return [talk.say(text, max_new_tokens=request.module.TOKENS).tokens for text in ("Hi", "Ho")]
