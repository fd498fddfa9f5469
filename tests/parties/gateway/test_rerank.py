"""Documents by relevance for a query, in the form of Jina and Cohere: by a cross-encoder, or by embeddings."""

from __future__ import annotations

import pytest
import torch
from blindformer.models.building import compile_folder
from blindformer.models.loading.load import load
from blindformer.tests.parties.gateway.conftest import TEXTS, running
from blindformer.tests.shared.tiny import save_tokenizer, tiny_config

QUERY, DOCUMENTS = "my password ?", ["red , blue .", "the password is lost .", "not good !"]


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory):
    """The folder of a small BERT that gives a pair of texts one score."""
    from transformers import BertForSequenceClassification

    torch.manual_seed(4)
    folder = tmp_path_factory.mktemp("cross-encoder")
    BertForSequenceClassification(tiny_config(num_labels=1, initializer_range=0.4)).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def crossed(cross_encoder, tmp_path_factory):
    """A gateway before it."""
    folder = tmp_path_factory.mktemp("crossed")
    pairs = list(zip(TEXTS, reversed(TEXTS), strict=True))
    compile_folder(cross_encoder, folder / "compiled", lengths=[24], calibration=pairs)
    sections = {"cross": {"folder": folder / "compiled", "server": "local"}}
    with running(folder / "key", sections, **{"gateway.truncate": "end"}) as running_gateway:
        yield running_gateway


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_a_model_that_embeds_ranks_by_cosines(gateway, tiny_encoder, path):
    asked = {"model": "sentences", "query": QUERY, "documents": DOCUMENTS}
    reply = gateway.http.post(path, json=asked).json()
    loaded = load(tiny_encoder)
    with torch.no_grad():
        query, *rows = [loaded.model(**loaded.encode(t, 16))["sentence_embedding"][0] for t in (QUERY, *DOCUMENTS)]
    cosines = [torch.cosine_similarity(query, row, 0).item() for row in rows]
    assert [one["index"] for one in reply["results"]] == sorted(range(3), key=lambda at: -cosines[at])
    for one in reply["results"]:
        assert one == {"index": one["index"], "relevance_score": pytest.approx(cosines[one["index"]], abs=4e-3)}
    assert reply["model"] == "sentences"
    assert reply["usage"]["total_tokens"] == sum(loaded.task.tokens(text) for text in (QUERY, *DOCUMENTS))
    assert reply["blindformer"]["sent_bytes"] > 0


def test_a_cross_encoder_ranks_by_its_score_and_tells_the_documents_if_asked(crossed, cross_encoder):
    """The only model need not be named."""
    given = [DOCUMENTS[0], {"text": DOCUMENTS[1]}, DOCUMENTS[2]]
    asked = {"query": QUERY, "documents": given, "top_n": 2, "return_documents": True}
    results = crossed.http.post("/v1/rerank", json=asked).json()["results"]
    loaded = load(cross_encoder)
    with torch.no_grad():
        scores = [loaded.model(**loaded.encode((QUERY, t), 24))["logits"].sigmoid().item() for t in DOCUMENTS]
    best = sorted(range(3), key=lambda at: -scores[at])[:2]
    assert [one["index"] for one in results] == best
    assert [one["relevance_score"] for one in results] == pytest.approx([scores[at] for at in best], abs=4e-3)
    assert [one["document"] for one in results] == [{"text": DOCUMENTS[at]} for at in best]


@pytest.mark.parametrize(
    ("more", "param", "message"),
    [
        ({"model": "tiny"}, "model", "model tiny: does not do ranking, it is for chat; give one that does: sentences"),
        ({"model": "pictures"}, "model", "give one that does: sentences"),
        ({"documents": []}, "documents", "documents: is empty; give at least one"),
        ({"documents": [1]}, "documents", "documents.0: should be a valid"),
        (
            {"documents": ["good", "bad " * 40]},
            "documents",
            "documents[1]: text has 42 tokens, the model is compiled for 16 at most: give "
            '"truncate": true in the request, or --truncate end to the gateway, compile with '
            "--lengths 16,64 (`up` has it, too), shorten it, or split it into several",
        ),
        ({"documents": ["good", " "]}, "documents", "documents[1]: a text is empty"),
        ({"query": ""}, "query", "query: a text is empty"),
        ({"top_n": 0}, "top_n", "top_n: should be greater"),
    ],
)
def test_what_cannot_be_ranked_is_one_line(gateway, more, param, message):
    response = gateway.http.post("/rerank", json={"query": QUERY, "documents": DOCUMENTS, **more})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert message in response.json()["error"]["message"]
