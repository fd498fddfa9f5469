"""A compilation that is ended keeps what it has measured: the next one goes on from there, to the same programs."""

from __future__ import annotations

from pathlib import Path

import pytest
from blindformer.models.artifacts import load_client
from blindformer.models.building import compile_folder
from blindformer.models.cached import cached, compiled_models
from blindformer.models.generation.folder import found_or_compiled
from blindformer.models.loading.load import load
from blindformer.models.unfinished import UNFINISHED, Unfinished
from blindformer.tests.shared.tiny import TEMPLATE, tiny_llama

TEXTS = ["how is my password ?", "not good , bad !", "the password is lost ."]


class Interrupted:
    """Progress that is interrupted where it says `until`."""

    def __init__(self, until: str = "") -> None:
        self.until, self.whats = until, list[str]()

    def __call__(self, what: str, done: int, total: int) -> None:
        if what == self.until:
            raise KeyboardInterrupt
        self.whats.append(what)

    def times(self, word: str) -> int:
        return sum(word in what for what in self.whats)


def hashes(folder: Path) -> list[str]:
    return [part.program.hash() for part in load_client(folder).lengths.values()]


def test_lengths_that_were_measured_are_not_measured_again(tiny_encoder, tmp_path):
    def compiled(cache: Path, progress: Interrupted) -> Path:
        def make(folder: Path, plan: object, kept: Unfinished) -> Path:
            given = {"lengths": [8, 16], "calibration": TEXTS, "progress": progress, "kept": kept}
            return compile_folder(load(tiny_encoder), folder, **given)

        return cached(tiny_encoder, cache, make, None, {})

    whole = compiled(tmp_path / "whole", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        compiled(tmp_path / "again", Interrupted(until="16 tokens: optimise"))
    (left,) = compiled_models(tmp_path / "again")
    assert "goes on where it ended" in left.problem
    again = compiled(tmp_path / "again", progress := Interrupted())
    assert (progress.times("calibrate"), progress.times("8 tokens: measure")) == (0, 0)
    assert progress.times("16 tokens: measure") > 0
    assert hashes(again) == hashes(whole)
    assert not (again / UNFINISHED).exists()


def test_a_language_model_goes_on_behind_its_calibration(tmp_path):
    model = tiny_llama(tmp_path / "model", TEMPLATE)

    def compiled(cache: str, progress: Interrupted) -> Path:
        return found_or_compiled(model, tmp_path / cache, slots=48, progress=progress)

    whole = compiled("whole", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        compiled("again", Interrupted(until="8 tokens at a time, room for 48: export"))
    again = compiled("again", progress := Interrupted())
    assert (progress.times("calibrate"), progress.times("measure")) == (0, 0)
    assert hashes(again) == hashes(whole)


@pytest.mark.parametrize("text", ["", "[]", '{"plan": ', "\0"])
def test_a_damaged_file_is_none(tmp_path, text):
    (tmp_path / UNFINISHED).write_text(text)
    assert Unfinished.read(tmp_path / UNFINISHED).value("x", lambda: 3) == 3
    assert Unfinished.read(tmp_path / UNFINISHED).value("x", lambda: 4) == 3
