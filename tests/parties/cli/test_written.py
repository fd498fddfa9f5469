"""Commands with models that write about what they read: translations of texts, transcripts of recordings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from blindformer.parties.client.client import open_here
from blindformer.parties.client.local import find_local
from blindformer.tests.models.loading.test_recordings import RATE, write
from blindformer.tests.shared.deployment import Deployment
from blindformer.tests.shared.speech import tiny_whisper
from blindformer.tests.shared.tiny import tiny_marian

FORMS = ("--format", "json")
pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture(scope="module")
def marian(tmp_path_factory):
    return tiny_marian(tmp_path_factory.mktemp("marian"))


@pytest.mark.slow
def test_a_translator_is_compiled_inspected_and_asked(call, marian):
    code, printed, errors = call("compile", marian, "--lengths", "16", "--tokens", 32, "--out", "it")
    assert code == 0, errors
    assert "answers of 32 tokens, by tokens of a pass" in printed
    code, printed, _ = call("models", "show", "it")
    assert code == 0
    assert "answers of 32 tokens; by tokens of a pass" in printed
    assert "\n16 tokens" in printed
    code, printed, errors = call("query", "it", "hello", "--server", "local", *FORMS)
    assert code == 0, errors
    report = json.loads(printed)
    (row,) = report["results"]
    assert (row["length"], row["finish"]) == (16, "length")
    assert row["translation_text"]
    assert "so how long an answer is" in report["learned"]["public"]
    assert "1 of 1 answers ended at the limit of tokens" in errors


def test_recordings_are_written_down_by_services_elsewhere(call, here, heard_folder):
    noise = np.random.default_rng(0).integers(-3000, 3000, 3 * RATE).astype(np.int16)
    short, long = (write(Path(name), noise[:count]) for name, count in (("a.wav", RATE), ("b.wav", 3 * RATE)))
    Path("c.wav").write_text("no audio")
    with Deployment(here, heard_folder) as site:
        code, printed, errors = call("query", heard_folder / "client", short, long, "c.wav", *site.words(), *FORMS)
        code_of_text, lines, _ = call("query", heard_folder / "client", short, *site.words())
    assert (code, code_of_text, errors.count("c.wav: is no WAV file that can be read")) == (1, 0, 1)
    first, second, third = json.loads(printed)["results"]
    assert (first["audio"], first["finish"], list(third)) == ("a.wav", "length", ["number", "audio", "error"])
    assert second["rounds"] > 1.5 * first["rounds"] > 0  # it was heard in two pieces
    assert first["text"].split()[0] in lines
    with open_here(find_local("clear"), heard_folder) as reference:
        expected = [reference.query(audio) for audio in (short, long)]
    assert [row["text"] for row in (first, second)] == [result.value["text"] for result in expected]
    assert [row["language"] for row in (first, second)] == [result.language for result in expected]


@pytest.mark.slow
def test_run_pads_to_the_usual_lengths_or_the_one_that_is_needed(call, marian):
    def run(*words):
        code, printed, errors = call("run", marian, *words, "--protocol", "clear", *FORMS)
        return code, json.loads(printed)["results"] if printed else [], errors

    code, (short, long), _ = run("hello", "hello " * 6)
    assert (code, short["length"], long["length"]) == (0, 32, 64)
    code, results, errors = run("hello " * 20)
    assert (code, results, errors.count("\n")) == (1, [], 1)
    assert "has 120 tokens" in errors


def test_a_file_that_is_no_recording_is_said_before_anything_is_compiled(refused, capsys, here):
    Path("a.wav").touch()
    model = tiny_whisper(here / "whisper")
    capsys.readouterr()  # of making it
    line = refused("run", model, "a.wav", "--protocol", "clear")
    assert "a.wav: is no WAV file that can be read (it ends too soon)" in line
    assert not (here / "home").exists()
