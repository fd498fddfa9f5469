"""How likely each token was, as the OpenAI API tells it: the model's own numbers, in both of that API's forms."""

from __future__ import annotations

import itertools

import openai
import pytest
import torch
from blindformer.models.artifacts import load_client
from blindformer.models.generation.folder import compile_chat_folder
from blindformer.models.generation.logprobs import Spelling
from blindformer.tests.parties.gateway.conftest import running
from blindformer.tests.shared.tiny import SPECIAL, TEMPLATE, tiny_llama

HI = {"role": "user", "content": "Hi"}
CLOSE = 0.02  # fixed point


@pytest.fixture(scope="module")
def chat(chat_folder):
    return load_client(chat_folder).chat


@pytest.fixture(scope="module")
def truth(chat, tmp_path_factory):
    """Of tokens after the prefix: logprobs of each place's successors [tokens, words], by transformers in the clear."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(tiny_llama(tmp_path_factory.mktemp("truth"), TEMPLATE)).eval()

    def rows(ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return model(torch.tensor([chat.prefix + ids])).logits[0, len(chat.prefix) :].log_softmax(-1)

    return rows


def ids_of(chat, text: str) -> list[int]:
    return chat.text(text)[len(chat.prefix) :]


def test_an_echoed_prompt_has_the_models_own_logprobs(client, truth, chat):
    text = "good day, é"
    completion = client.completions.create(model="tiny", prompt=text, max_tokens=0, echo=True, logprobs=5)
    (choice,) = completion.choices
    ids, logprobs = ids_of(chat, text), choice.logprobs
    expected = truth(ids)
    assert (choice.text, choice.finish_reason, completion.usage.completion_tokens) == (text, "length", 0)
    assert (logprobs.token_logprobs[0], logprobs.top_logprobs[0]) == (None, None)
    own = expected[range(len(ids) - 1), ids[1:]].tolist()
    assert logprobs.token_logprobs[1:] == pytest.approx(own, abs=CLOSE)
    for row, top, own in zip(expected, logprobs.top_logprobs[1:], logprobs.token_logprobs[1:], strict=False):
        assert max(top.values()) == pytest.approx(row.max().item(), abs=CLOSE)
        assert own in top.values()
        assert len(top) in (5, 6)
    assert logprobs.tokens == [*text[:-1], "bytes:\\xc3", "bytes:\\xa9"]
    assert logprobs.text_offset == [*range(len(text)), len(text) - 1]


def test_what_an_evaluation_harness_asks_for(client, truth, chat):
    """lm-eval's requests: lists of tokens, of which each is echoed, and one more."""
    prompts = [ids_of(chat, text) for text in ("the cat", "a dog sat")]
    asked = {"max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0, "seed": 1234}
    batch = client.completions.create(model="tiny", prompt=prompts, **asked)
    assert [choice.index for choice in batch.choices] == [0, 1]
    for ids, choice in zip(prompts, batch.choices, strict=True):
        expected, scored = truth(ids), choice.logprobs
        assert len(scored.token_logprobs) == len(ids) + 1
        assert scored.token_logprobs[1:-1] == pytest.approx(expected[range(len(ids) - 1), ids[1:]].tolist(), abs=CLOSE)
        greedy = [
            own == max(top.values()) for own, top in zip(scored.token_logprobs, scored.top_logprobs, strict=True) if top
        ]
        assert greedy == [
            row.argmax() == own for row, own in zip(expected, [*ids[1:], expected[-1].argmax()], strict=True)
        ]
    texts = client.completions.create(model="tiny", prompt=["the cat", "a dog sat"], **asked)
    assert [choice.logprobs.tokens for choice in texts.choices] == [choice.logprobs.tokens for choice in batch.choices]
    assert [choice.text[:-1] for choice in texts.choices] == ["the cat", "a dog sat"]
    assert texts.usage.completion_tokens == 2


def test_an_answers_tokens_have_their_logprobs_whatever_is_drawn(client, truth, chat):
    """Those of the model, not of what a temperature makes of them."""
    asked = {"model": "tiny", "messages": [HI], "temperature": 1.7, "seed": 5, "max_tokens": 6}
    (choice,) = client.chat.completions.create(**asked, logprobs=True).choices
    assert client.chat.completions.create(**asked).choices[0].message.content == choice.message.content
    spelling, logprobs = Spelling(chat.tokenizer), choice.logprobs.content
    tokens = {spelling(token): token for token in range(len(chat.tokenizer))}
    ids, drawn = chat.prompt([HI])[len(chat.prefix) :], [tokens[bytes(one.bytes)] for one in logprobs]
    own = truth(ids + drawn)[len(ids) - 1 :]
    assert [one.logprob for one in logprobs] == pytest.approx(own[range(6), drawn].tolist(), abs=CLOSE)
    assert drawn != own.argmax(-1)[:6].tolist()


def test_a_chats_tokens_come_with_their_bytes_and_the_most_likely_ones(client):
    """Those that the text leaves out, too, such as the one that ends it."""
    asked = {"model": "tiny", "messages": [HI], "max_tokens": 6, "logprobs": True, "top_logprobs": 3}
    (choice,) = client.chat.completions.create(**asked).choices
    logprobs = choice.logprobs.content
    shown = [bytes(one.bytes) for one in logprobs if one.token not in SPECIAL]
    assert b"".join(shown).decode(errors="replace") == choice.message.content
    assert len(logprobs) == 6
    for one in logprobs:
        scores = [top.logprob for top in one.top_logprobs]
        assert scores == sorted(scores, reverse=True)
        assert (one.token, one.logprob) == (one.top_logprobs[0].token, scores[0])  # nothing is drawn
    bare = client.chat.completions.create(**{**asked, "top_logprobs": openai.omit}).choices[0].logprobs.content
    assert [(one.token, one.top_logprobs) for one in bare] == [(one.token, []) for one in logprobs]


def test_a_stream_tells_each_token_once_with_its_text(client):
    asked = {"model": "tiny", "messages": [HI], "max_tokens": 6, "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**asked).choices[0]
    chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**asked, stream=True)]
    streamed = [chunk.logprobs.content for chunk in chunks if chunk.logprobs]
    assert [(one.token, one.bytes) for one in itertools.chain(*streamed)] == [
        (one.token, one.bytes) for one in whole.logprobs.content
    ]
    asked = {"model": "tiny", "prompt": "abc", "max_tokens": 4, "logprobs": 2, "echo": True}
    whole = client.completions.create(**asked).choices[0]
    chunks = [chunk.choices[0] for chunk in client.completions.create(**asked, stream=True)]
    assert "".join(chunk.text for chunk in chunks) == whole.text
    for name in ("tokens", "text_offset"):
        streamed = [getattr(chunk.logprobs, name) for chunk in chunks if chunk.logprobs]
        assert list(itertools.chain(*streamed)) == getattr(whole.logprobs, name)
    streamed = [chunk.logprobs.token_logprobs for chunk in chunks if chunk.logprobs]
    assert list(itertools.chain(*streamed))[1:] == pytest.approx(whole.logprobs.token_logprobs[1:], abs=CLOSE)


def test_a_model_that_reveals_only_tokens_has_none(tmp_path):
    model = tiny_llama(tmp_path / "model", TEMPLATE)
    folder = compile_chat_folder(model, tmp_path / "compiled", slots=16, sizes=(1, 8), reveal="token")
    with running(tmp_path / "key", {"tiny": {"folder": folder, "server": "local"}}) as gateway:
        for path, asked in {
            "completions": {"prompt": "abc", "logprobs": 1},
            "chat/completions": {"messages": [HI], "logprobs": True},
        }.items():
            response = gateway.http.post(f"/v1/{path}", json={"model": "tiny", **asked})
            error = response.json()["error"]
            assert (response.status_code, error["param"], error["code"]) == (400, "logprobs", "unsupported_parameter")
            assert "--reveal scores" in error["message"]
