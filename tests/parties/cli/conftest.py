"""Words that the tiny models know, and a folder to work in."""

from __future__ import annotations

import pytest

# The tiny models know a few words only: to them the built-in calibration texts are all one unknown word.
KNOWN = ("how is my password ?", "not good , bad !", "the password is lost .", "what a good red !", "good", "bad blue")


@pytest.fixture
def known(tmp_path):
    """Options that calibrate on words that the tiny models know."""
    file = tmp_path / "known"
    file.write_text("\n".join(KNOWN))
    return "--calibrate", file


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to work in, and a home of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path
