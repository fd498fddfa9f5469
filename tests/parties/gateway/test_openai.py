"""The `openai` package against the gateway: its own objects, streams and errors, and the models' own answers."""

from __future__ import annotations

import threading

import openai
import pytest
import torch
from blindformer.models.loading.load import load
from blindformer.parties.gateway.problems import ApiError
from blindformer.parties.gateway.requests import ClassifyRequest, EmbeddingsRequest
from blindformer.tests.pages import execute
from blindformer.tests.parties.gateway.conftest import TEXTS
from blindformer.tests.shared.deployment import eventually
from blindformer.tests.shared.tiny import clear_conversation

HI = {"role": "user", "content": "Hi"}


@pytest.fixture(scope="module")
def here(chat_folder):
    """The same model in one process, in the clear."""
    with clear_conversation(chat_folder) as talk:
        yield talk


def test_a_conversation_goes_on_and_what_was_read_is_not_read_again(client, here):
    first = client.chat.completions.create(model="tiny", messages=[HI], max_tokens=4)
    expected = here.say("Hi", max_new_tokens=4)
    (choice,) = first.choices
    assert (choice.message.content, choice.finish_reason) == (expected.text, "length")
    assert (first.usage.completion_tokens, first.usage.total_tokens) == (4, first.usage.prompt_tokens + 4)
    assert first.blindformer["sent_bytes"] > 0
    assert first.blindformer["rounds"] > 0
    more = [HI, {"role": "assistant", "content": choice.message.content}, {"role": "user", "content": "Ho"}]
    second = client.chat.completions.create(model="tiny", messages=more, max_completion_tokens=3)
    assert second.choices[0].message.content == here.say("Ho", max_new_tokens=3).text
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens
    other = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "Zz"}], max_tokens=1)
    assert other.usage.prompt_tokens_details.cached_tokens < first.usage.prompt_tokens


def test_a_stream_has_the_same_words_its_end_and_its_usage(client):
    asked = {"model": "tiny", "messages": [HI], "max_tokens": 5}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert chunks[-1].usage == whole.usage.model_copy(
        update={"prompt_tokens_details": chunks[-1].usage.prompt_tokens_details}
    )
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


def test_a_text_is_continued_and_ends_before_a_text_to_stop_at(client, here):
    expected = here.complete("abc", max_new_tokens=12).text
    completion = client.completions.create(model="tiny", prompt="abc", max_tokens=12)
    assert completion.choices[0].text == expected
    stop = expected[3:5]
    cut = client.completions.create(model="tiny", prompt="abc", max_tokens=12, stop=[stop])
    assert (cut.choices[0].text, cut.choices[0].finish_reason) == (expected[: expected.index(stop)], "stop")
    drawn = [
        client.completions.create(model="tiny", prompt="abc", max_tokens=6, temperature=1.5, top_p=0.9, seed=7)
        for _ in range(2)
    ]
    assert drawn[0].choices == drawn[1].choices


def test_a_callers_system_prompt_goes_before_the_users_message(client):
    one = [{"role": "system", "content": "Be kind."}, HI]
    parts = [{"type": "text", "text": "Be kind."}, {"type": "text", "text": ""}, {"type": "text", "text": "Hi"}]
    completions = [
        client.chat.completions.create(model="tiny", messages=messages, max_tokens=3)
        for messages in (one, [{"role": "user", "content": parts}])
    ]
    assert completions[0].choices == completions[1].choices


@pytest.mark.parametrize("form", [openai.omit, "float"])
def test_embeddings_are_the_models_own(client, tiny_encoder, form):
    """The package asks for base64 where nothing is said."""
    embeddings = client.embeddings.create(model="sentences", input=TEXTS[:2], encoding_format=form)
    loaded = load(tiny_encoder)
    with torch.no_grad():
        clear = [loaded.model(**loaded.encode(text, 16))["sentence_embedding"][0] for text in TEXTS[:2]]
    assert [item.index for item in embeddings.data] == [0, 1]
    for item, truth in zip(embeddings.data, clear, strict=True):
        assert torch.tensor(item.embedding).allclose(torch.nn.functional.normalize(truth, dim=0), atol=2e-3)
    assert embeddings.usage.prompt_tokens == sum(loaded.task.tokens(text) for text in TEXTS[:2])


@pytest.mark.parametrize(("truncate", "side"), [(True, "right"), ("END", "right"), ("start", "left")])
def test_a_text_that_is_too_long_is_cut_where_the_request_says_and_that_is_said(client, tiny_encoder, truncate, side):
    loaded, words = load(tiny_encoder), "how is my password , " + "not good " * 20
    options = {"padding": "max_length", "truncation": True, "max_length": 16, "return_tensors": "pt"}
    inputs = type(loaded.processor).from_pretrained(tiny_encoder, truncation_side=side)(words, **options)
    with torch.no_grad():
        truth = loaded.model(**inputs)["sentence_embedding"][0]
    asked = {"input": ["good", words], "extra_body": {"truncate": truncate}}
    reply = client.embeddings.create(model="sentences", **asked)
    assert torch.tensor(reply.data[1].embedding).allclose(torch.nn.functional.normalize(truth, dim=0), atol=2e-3)
    assert reply.usage.prompt_tokens == loaded.task.tokens("good") + 16
    assert reply.blindformer["truncated"] == {"input[1]": loaded.task.tokens(words) - 16}
    whole = client.embeddings.create(model="sentences", input="good", extra_body={"truncate": truncate})
    assert "truncated" not in whole.blindformer


def test_what_is_cut_is_said_in_the_terms_of_others_or_is_the_gateways_default():
    for more, ends in (  # for each default: off, start, end, windows
        ({}, "off start end windows"),
        ({"truncate": False}, "off off off off"),
        ({"truncate": True}, "end start end windows"),
        ({"truncate": "START"}, "start start start start"),
        ({"truncate": True, "truncation_direction": "Left"}, "start start start start"),
        ({"truncation_direction": "Right"}, "off end end end"),
    ):
        asked = EmbeddingsRequest.read({"model": "a", "input": "b", **more})
        assert [asked.cut(default) for default in ("off", "start", "end", "windows")] == ends.split()
        pictured = ClassifyRequest.read({"input": "an image", **more})
        if more.get("truncate") in (True, "START"):
            with pytest.raises(ApiError, match=r"^truncate: is of texts, and this model takes images; leave it out$"):
                pictured.cut("end", of_texts=False)
        else:
            assert pictured.cut("end", of_texts=False) == "off"
    for more, words in (
        ({"truncate": "MIDDLE"}, '^truncate: should be true, false, "NONE", "START", "END" or "WINDOWS"$'),
        ({"truncation_direction": "up"}, "^truncation_direction: should be 'LEFT' or 'RIGHT'$"),
        ({"truncate": "START", "truncation_direction": "Right"}, "^truncation_direction: does not go with truncate: S"),
        (
            {"truncate_prompt_tokens": 8},
            r"^truncate_prompt_tokens: .*; texts are cut to the model's length \(truncate: ",
        ),
    ):
        with pytest.raises(ApiError, match=words):
            EmbeddingsRequest.read({"model": "a", "input": "b", **more}).cut("off")


def test_a_long_text_is_asked_in_windows_and_its_tokens_are_counted_as_read(client, tiny_encoder):
    loaded, words = load(tiny_encoder), "how is my password , " + "not good " * 20
    asked = {"input": [words, "good"], "extra_body": {"truncate": "WINDOWS"}}
    reply = client.embeddings.create(model="sentences", **asked)
    tokens = [loaded.task.tokens(window.item) for window in loaded.task.windows(words, 16)]
    assert reply.usage.prompt_tokens == sum(tokens) + loaded.task.tokens("good")
    assert "truncated" not in reply.blindformer
    assert len(reply.data[0].embedding) == len(reply.data[1].embedding)


LONG = "x" * 100
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
RESULT = {"role": "tool", "tool_call_id": "a", "content": "3"}
CALL = {"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": TOOL["function"]}]}


@pytest.mark.parametrize(
    ("what", "more", "param", "code"),
    [
        ("chat", {"n": 2}, "n", "unsupported_parameter"),
        ("chat", {"tools": [TOOL]}, "tools", "unsupported_parameter"),
        ("chat", {"response_format": {"type": "json_object"}}, "response_format",
         "unsupported_parameter"),
        ("chat", {"messages": [HI, CALL, HI]}, "messages", "unsupported_parameter"),
        ("chat", {"messages": [HI, RESULT]}, "messages", "unsupported_parameter"),
        ("chat", {"stop": list("abcde")}, "stop", None),
        ("chat", {"stop": ""}, "stop", "invalid_value"),
        ("text", {"best_of": 2}, "best_of", "unsupported_parameter"),
        ("chat", {"top_logprobs": 2}, "top_logprobs", None),
        ("chat", {"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ("text", {"prompt": [[3, 999]]}, "prompt", "refused_by_model"),
        ("text", {"prompt": ["a", "b"], "stream": True}, "stream", "unsupported_parameter"),
        ("chat", {"extra_body": {"colour": 1}}, "colour", "unknown_parameter"),
        ("chat", {"extra_body": {"truncate": True}}, "truncate", "unsupported_parameter"),
        ("chat", {"temperature": 3}, "temperature", "invalid_value"),
        ("chat", {"model": "gpt-5"}, "model", "model_not_found"),
        ("chat", {"model": "sentences"}, "model", None),
        ("chat", {"messages": [{"role": "user", "content": " "}]}, "messages", None),
        ("chat", {"messages": [{"role": "user", "content": LONG}], "stream": True}, "messages",
         "context_length_exceeded"),
        ("embeddings", {"input": "good " * 30}, "input", "context_length_exceeded"),
        ("embeddings", {"input": ""}, "input", "refused_by_model"),
        ("embeddings", {"model": "tiny"}, "model", None),
    ],
)  # fmt: skip
def test_what_is_refused_is_that_apis_error(client, what, more, param, code):
    asks = {
        "chat": (client.chat.completions.create, {"model": "tiny", "messages": [HI]}),
        "text": (client.completions.create, {"model": "tiny", "prompt": "abc"}),
        "embeddings": (client.embeddings.create, {"model": "sentences", "input": "good"}),
    }
    ask, asked = asks[what]
    with pytest.raises(openai.NotFoundError if code == "model_not_found" else openai.BadRequestError) as refused:
        ask(**{**asked, **more})
    assert (refused.value.param, refused.value.code) == (param, code)
    assert refused.value.body["type"] == "invalid_request_error"
    assert LONG not in str(refused.value)


def test_neutral_values_of_what_is_not_supported_are_taken(client):
    neutral = {"n": 1, "logprobs": False, "presence_penalty": 0, "user": "me", "response_format": {"type": "text"}}
    neutral |= {"tools": [], "tool_choice": "none", "parallel_tool_calls": True, "logit_bias": {}, "stop": []}
    message = client.chat.completions.create(model="tiny", messages=[HI], max_tokens=6, **neutral).choices[0].message
    more = [HI, message.model_dump(), HI]  # with tool_calls and others that are null
    assert client.chat.completions.create(model="tiny", messages=more, max_tokens=1, functions=[]).choices


def test_who_stops_reading_ends_the_answer_and_frees_the_place(client, gateway):
    queue = gateway.server._gateway.models["tiny"].queue
    with client.chat.completions.create(model="tiny", messages=[HI], stream=True) as stream:
        next(iter(stream))
        assert queue.running == 1
    eventually(lambda: queue.running == 0, "the place is free")
    rows = gateway.server._gateway.models["tiny"]._slots[0].conversation.rows
    assert len(rows.ids) < rows.prefix + rows.slots - 5


def test_python_of_the_gateways_page_runs(gateway, capsys, tmp_path):
    (tmp_path / "key").write_text(gateway.key)
    key = {"~/.config/blindformer/gateway.key": str(tmp_path / "key"), "http://127.0.0.1:8080": gateway.url}
    execute("gateway", {**key, "smollm2": "tiny", "minilm": "sentences"})
    assert capsys.readouterr().out.endswith("32\n")


def test_many_at_once_are_all_answered(client):
    completions, asked = [], {"model": "tiny", "messages": [HI], "max_tokens": 1}
    threads = [
        threading.Thread(target=lambda: completions.append(client.chat.completions.create(**asked))) for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(completions) == 16
    assert len({reply.choices[0].message.content for reply in completions}) == 1


def test_models_are_listed_and_what_happens_is_measured(client, gateway):
    assert [(model.id, model.blindformer["task"]) for model in client.models.list()] == [
        ("tiny", "chat"),
        ("sentences", "sentence-embedding"),
        ("pictures", "image-classification"),
    ]
    assert client.models.retrieve("tiny").id == "tiny"
    text = gateway.http.get("/metrics").text
    assert "blindformer_queries_total" in text
    assert 'blindformer_bytes_total{direction="sent"}' in text
