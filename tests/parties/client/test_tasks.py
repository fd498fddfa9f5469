"""`bf.Client` for every task: what transformers' pipelines answer. The other parties are threads of this process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from blindformer.models.artifacts import load_server, save
from blindformer.models.artifacts.server import compiled_of
from blindformer.models.building import compile_folder, compile_lengths
from blindformer.models.compile import AnswerOutOfRange
from blindformer.models.loading.answers import read_answer
from blindformer.models.loading.huggingface import InputError
from blindformer.models.loading.load import load
from blindformer.parties.client.client import Client
from blindformer.parties.client.sessions import Sessions
from blindformer.parties.client.threads import ThreadParties
from blindformer.tests.models.loading.test_task import nested
from blindformer.tests.patience import PATIENCE

TEXTS = ["how is my password ?", "not good , bad !", "the password is lost .", "what a good red !"]
TOLERANCE = 2e-3


@pytest.fixture
def threads():
    """`threads(folder)` is a client of a compiled folder, with its parties in this process."""
    clients = []

    def make(folder: Path) -> Client:
        client, server = Client(folder=folder), load_server(folder)

        def opened(part, progress):
            compiled = compiled_of(part, server[part.program.hash()], server.plan)
            return ThreadParties(compiled, timeout=PATIENCE, progress=progress)

        client.sessions = Sessions(opened, wait=0.0)
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()


def test_features(tiny_features, tmp_path, threads):
    from transformers import pipeline

    expected = pipeline("feature-extraction", str(tiny_features))
    client = threads(compile_folder(tiny_features, tmp_path, lengths=[16], calibration=TEXTS))
    nested(client(TEXTS[0]), expected(TEXTS[0]), 5e-3)
    nested(client(TEXTS[:2]), expected(TEXTS[:2]), 5e-3)


def test_sentence_embeddings(tiny_encoder, tmp_path, threads):
    loaded = load(tiny_encoder)
    with torch.no_grad():
        hidden = [loaded.model(**loaded.encode(text, 16)).sentence_embedding[0] for text in TEXTS[:2]]
    expected = [torch.nn.functional.normalize(vector, dim=0).tolist() for vector in hidden]
    client = threads(compile_folder(loaded, tmp_path, lengths=[16], calibration=TEXTS))
    embeddings = client(TEXTS[:2])
    nested(embeddings, expected, TOLERANCE)
    assert [sum(x * x for x in vector) for vector in embeddings] == pytest.approx([1, 1])
    nested(client(TEXTS[0]), expected[0], TOLERANCE)


def test_images_from_files(tiny_vision, pictures, tmp_path, threads):
    from transformers import pipeline

    expected = pipeline("image-classification", str(tiny_vision))
    files = [str(file) for file in sorted(pictures.iterdir())[:2]]
    client = threads(compile_folder(tiny_vision, tmp_path, calibration=[pictures]))
    nested(client(files[0]), expected(files[0]), TOLERANCE)
    nested(client(files, top_k=2), expected(files, top_k=2), TOLERANCE)
    assert client.query(files[0]).length == 0
    with pytest.raises(InputError, match="there is no such file"):
        client.query("how is my password ?")


def test_next_tokens(tiny_causal, tmp_path, threads):
    loaded = load(tiny_causal)
    client = threads(compile_folder(loaded, tmp_path, lengths=[8], calibration=TEXTS))
    inputs = loaded.encode("how good", 8)
    with torch.no_grad():
        expected = read_answer(loaded.task, {"logits": loaded.model(**inputs).logits}, inputs, 3)
    answer = client("how good", top_k=3)
    assert [row["score"] for row in answer] == pytest.approx([row["score"] for row in expected], abs=TOLERANCE)
    assert len(client("how good")) == 5


def test_an_answer_out_of_range_is_that_texts_error_alone(tiny_classifier, tmp_path, threads, monkeypatch):
    """And all others are asked, as if it had been good."""
    (compiled,) = compile_lengths(loaded := load(tiny_classifier), [8], texts=TEXTS).values()
    program = compiled.program
    last = list(program.instructions)
    last[program.outputs["logits"]] = last[program.outputs["logits"]].model_copy(update={"bound": 1e-6})
    compiled.program = program.model_copy(update={"instructions": tuple(last)})
    client = threads(save(compiled, tmp_path, loaded))
    results = [result for _, result in client.stream(TEXTS[:2])]
    assert [type(result.error) for result in results] == [AnswerOutOfRange] * 2
    assert [result.value for result in results] == [None] * 2
    assert all(result.report.rounds for result in results)
    asked, ask = [], client.ask
    monkeypatch.setattr(client, "ask", lambda *questions: asked.append(questions) or ask(*questions))
    with pytest.raises(AnswerOutOfRange):
        client.query_many(TEXTS[:2])
    assert len(asked) == 2
