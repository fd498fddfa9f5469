"""Semantic search: private vectors rank as clear ones, each text is asked once, and the index is its owner's alone."""

from __future__ import annotations

import json
from types import SimpleNamespace

import blindformer as bf
import pytest
import torch
from blindformer.errors import BlindformerError
from blindformer.models.loading.load import load
from blindformer.parties.client.search_index import SearchIndex
from blindformer.parties.client.session import ClientError
from blindformer.protocols.errors import PeerError

TEXTS = ["how is my password ?", "not good , bad !", "the password is lost .", "what a good red !"]
QUESTION = "my password is lost ."
MADE = {"lengths": [16], "calibration": TEXTS, "truncation": "windows"}


@pytest.fixture(scope="module")
def clear(tiny_encoder):
    with bf.pipeline(model=tiny_encoder, protocol="clear", **MADE) as client:
        yield client


@pytest.fixture
def asked(clear, monkeypatch):
    """Every text that the other parties are asked, in order."""
    texts, stream = [], clear.stream

    def noted(items, **options):
        texts.extend(items)
        return stream(items, **options)

    monkeypatch.setattr(clear, "stream", noted)
    return texts


@pytest.mark.parametrize("protocol", ["beaver", "delegated"])
def test_private_ranking_is_that_of_float32(tiny_encoder, tmp_path, protocol):
    loaded = load(tiny_encoder)
    length = loaded.length_for([*TEXTS, QUESTION], 16)
    with torch.no_grad():
        rows = [loaded.model(**loaded.encode(text, length))["sentence_embedding"][0] for text in [*TEXTS, QUESTION]]
    *vectors, question = torch.nn.functional.normalize(torch.stack(rows), dim=-1)
    cosines = torch.stack(vectors) @ question
    options = MADE if protocol == "beaver" else {"truncation": "windows"}
    with bf.pipeline(model=tiny_encoder, protocol=protocol, **options) as client:
        index = SearchIndex(client, tmp_path / "index")
        assert index.update(TEXTS) == (4, {})
        hits = index.search(QUESTION, top=4)
    assert [hit.place for hit in hits] == cosines.argsort(descending=True).tolist()
    assert [hit.score for hit in hits] == pytest.approx(sorted(cosines.tolist(), reverse=True), abs=5e-3)


def test_each_text_is_asked_once_and_what_is_gone_is_forgotten(clear, asked, tmp_path):
    file = tmp_path / "index"
    assert SearchIndex(clear, file).update([*TEXTS[:2], TEXTS[0]]).embedded == 2
    assert asked == TEXTS[:2]
    first = file.read_bytes()
    again = SearchIndex(clear, file)
    assert (again.update(TEXTS[:2]), file.read_bytes()) == ((0, {}), first)
    again.update([TEXTS[3], TEXTS[1], TEXTS[3]])
    assert asked == [*TEXTS[:2], TEXTS[3]]
    assert file.stat().st_size < len(first) + 10
    assert [hit.place for hit in again.search(TEXTS[3], top=2)] == [0, 2]
    assert asked[-1] == TEXTS[3], "a question that equals a document is asked, too"
    SearchIndex(clear, file).update(TEXTS[:1])
    assert asked[-1] == TEXTS[0], "it was forgotten"


def test_the_index_is_its_owners_alone_and_holds_no_text(clear, tmp_path):
    file = tmp_path / "index"
    SearchIndex(clear, file).update(TEXTS)
    assert file.stat().st_mode & 0o777 == 0o600
    assert not any(word.encode() in file.read_bytes() for word in ("password", "good", "lost"))


def test_what_was_embedded_before_an_error_is_kept(clear, asked, monkeypatch, tmp_path):
    file, stream = tmp_path / "index", clear.stream

    def lost(items):
        yield from list(stream(items))[:2]
        raise PeerError("server", "is gone", "ask again")

    with monkeypatch.context() as patch:
        patch.setattr(clear, "stream", lost)
        with pytest.raises(PeerError):
            SearchIndex(clear, file).update(TEXTS)
    asked.clear()
    assert SearchIndex(clear, file).update(TEXTS).embedded == 2
    assert asked == TEXTS[2:]


def test_one_text_that_cannot_be_embedded_leaves_the_others(clear, monkeypatch):
    fault, stream = BlindformerError("is out of range"), clear.stream

    def faulty(items):
        for place, result in stream(items):
            result.error = fault if items[place] == TEXTS[1] else None
            yield place, result

    monkeypatch.setattr(clear, "stream", faulty)
    index = SearchIndex(clear)
    assert index.update([*TEXTS, TEXTS[1]]) == (3, {1: fault, 4: fault})
    monkeypatch.undo()
    assert {hit.place for hit in index.search(QUESTION, top=9)} == {0, 2, 3}


def test_another_models_index_and_a_broken_one_are_refused(clear, tiny_encoder, tmp_path):
    file = tmp_path / "index"
    SearchIndex(clear, file).update(TEXTS)
    with (
        bf.pipeline(model=tiny_encoder, protocol="clear", **{**MADE, "truncation": "end"}) as other,
        pytest.raises(ClientError, match="another model's index"),
    ):
        SearchIndex(other, file)
    whole = file.read_bytes()
    for content in (b"", b"\x80\x04N.", whole[:-5], whole.replace(b"blindformer-index-1", b"blindformer-index-9")):
        file.write_bytes(content)
        with pytest.raises(ClientError, match="name another, or delete it"):
            SearchIndex(clear, file)
    with pytest.raises(ClientError, match="holds no documents"):
        SearchIndex(clear).search(QUESTION)
    answers = SimpleNamespace(part=SimpleNamespace(talks=False, name="mails"), task="text-classification")
    with pytest.raises(ClientError, match="is for models of sentence-embedding"):
        SearchIndex(answers)  # type: ignore[arg-type]


def test_the_command_ranks_a_table_and_keeps_its_index(call, tiny_encoder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "documents.csv"
    rows = "".join(f'{name},"{text}"\n' for name, text in zip("abcd", TEXTS, strict=True))
    file.write_text(f"id,text\n{rows}")
    how = ("search", tiny_encoder, "--weights", "public", "--file", file)
    code, printed, errors = call(*how, QUESTION, "--top", "2", "--format", "json")
    assert code == 0, errors
    result = json.loads(printed)
    assert (result["documents"], result["embedded"], result["index"]) == (4, 4, f"{file}.index")
    hits = result["results"][0]["hits"]
    assert [(hit["id"], hit["line"]) for hit in hits] == [("c", 4), ("a", 2)]
    assert "texts from" not in errors  # there is no other column
    ending = 'e,"[red] is good .",\nf,,\n'
    file.write_text(f"id,text,subject\n{rows}{ending}")
    code, printed, errors = call(*how, QUESTION, "--index", f"{file}.index")
    note, error = errors.splitlines()
    assert (code, note) == (1, f"note: {file}: texts from text, not from subject; --field names others")
    assert error == f"blindformer: {file}, line 7: a text is empty: write something, or leave it out"
    assert "[red] is good ." in printed
    assert "documents 5, of them new 1" in printed


def test_what_is_missing_is_said(refused, tmp_path):
    assert "--file FILE" in refused("search", "minilm", "how?")
    assert "no such" in refused("search", "minilm", "how?", "--file", tmp_path / "none").lower()
    (tmp_path / "texts").write_text("a text\n")
    assert "a question is empty" in refused("search", "minilm", " ", "--file", tmp_path / "texts")
    assert "give a model first" in refused("search", "--file", tmp_path / "texts")
