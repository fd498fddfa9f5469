"""A compiled classifier's folder; what a language model answers in the clear."""

from __future__ import annotations

import pytest
from blindformer.tests.shared.tiny import clear_conversation


@pytest.fixture(scope="session")
def folder(classifier):
    return classifier.folder


@pytest.fixture(scope="module")
def wanted(chat_folder, request):
    """The tokens that answer "Hi" and then "Ho": as many as the module's TOKENS says."""
    with clear_conversation(chat_folder) as talk:
        return [talk.say(text, max_new_tokens=request.module.TOKENS).tokens for text in ("Hi", "Ho")]
