"""What a language model answers, for those that ask it through parties."""

from __future__ import annotations

import pytest
from blindformer.parties.local import clear


@pytest.fixture(scope="module")
def wanted(chat_folder, request):
    """The tokens that answer "Hi" and then "Ho": as many as the module's TOKENS says."""
    with clear.conversation(chat_folder) as talk:
        return [talk.say(text, max_new_tokens=request.module.TOKENS).tokens for text in ("Hi", "Ho")]
