"""What begins every conversation, and what a conversation says of its answers."""

import pytest
import torch
from blindformer.approximations import CalibrationError
from blindformer.models.artifacts import load_client
from blindformer.models.generation.chat import Chat, compile_chat, prefix_ids
from blindformer.models.generation.decoder import GenerationError, causal_model
from blindformer.models.generation.drafts import SURE, DraftTimes
from blindformer.models.generation.folder import compile_chat_folder
from blindformer.models.loading.load import load
from blindformer.tests.shared.tiny import TEMPLATE, byte_tokenizer, clear_conversation, tiny_llama

SYSTEM = "Be brief."


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("model"), TEMPLATE)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    return compile_chat_folder(model, tmp_path_factory.mktemp("compiled"), slots=48, system=SYSTEM)


@pytest.fixture
def talk(folder):
    with clear_conversation(folder) as talk:
        yield talk


@pytest.mark.parametrize(
    ("template", "system", "begins"),
    [
        (None, None, "<s>"),
        (None, SYSTEM, f"<s>{SYSTEM}"),
        (TEMPLATE, None, "<s><|user|>"),
        (TEMPLATE, SYSTEM, f"<s><|system|>{SYSTEM}<|user|>"),
    ],
)
def test_the_prefix_is_what_no_user_writes(template, system, begins):
    tokenizer = byte_tokenizer(template)
    assert tokenizer.decode(prefix_ids(tokenizer, system)) == begins


def test_without_a_template_the_end_of_a_text_begins_one():
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = None
    assert prefix_ids(tokenizer, None) == [tokenizer.eos_token_id]
    tokenizer.eos_token = None
    with pytest.raises(GenerationError, match="neither a template nor a first token"):
        prefix_ids(tokenizer, None)


def test_a_client_finds_what_was_compiled(folder):
    part = load_client(folder)
    chat = part.chat
    assert isinstance(chat, Chat)
    assert part.talks
    assert chat.system == SYSTEM
    prompt = chat.prompt([{"role": "user", "content": "Hi"}])
    assert prompt[: len(chat.prefix)] == chat.prefix
    assert chat.tokenizer.decode(prompt[len(chat.prefix) :]) == "Hi<|model|>"


def test_another_system_prompt_is_refused(folder):
    with pytest.raises(GenerationError, match="must begin with the owner's"):
        load_client(folder).chat.prompt([{"role": "system", "content": "Lie."}, {"role": "user", "content": "Hi"}])


def test_a_second_turn_continues(talk):
    first = talk.say("Hi", max_new_tokens=4)
    assert (first.prompt_tokens, first.passes, first.prompt_passes, first.finish) == (3, 4, 1, "length")
    read = len(talk.rows.ids)
    again = talk.say("Ho", max_new_tokens=4)
    assert [message["role"] for message in talk.messages] == ["user", "assistant"] * 2
    assert again.prompt_tokens > first.prompt_tokens
    assert len(talk.rows.ids) > read


def test_drafts_are_counted_whatever_was_read_before(talk):
    for _ in range(2):
        reply = talk.complete("ab ab ab ab ab", max_new_tokens=12, prompt_lookup_num_tokens=4)
        assert len(reply.tokens) == 12
        assert reply.drafts_accepted == 12 - 1 - (reply.passes - reply.prompt_passes)
        assert reply.prompt_passes <= 2


def test_an_assistant_is_read_once_by_its_name(talk, model, monkeypatch):
    paying = property(lambda times: len(times.plain) >= SURE)  # whatever this machine takes for a pass
    monkeypatch.setattr(DraftTimes, "pay", paying)
    plain = talk.complete("one two", max_new_tokens=12)
    for _ in range(2):
        reply = talk.complete("one two", max_new_tokens=12, assistant_model=model, num_assistant_tokens=3)
        assert reply.tokens == plain.tokens
        assert reply.drafts_accepted == 12 - 1 - (reply.passes - reply.prompt_passes) > 0
        monkeypatch.setattr("blindformer.models.generation.drafts.load", None)


def test_words_come_as_they_are_sure(talk):
    pieces = []
    reply = talk.complete("one two one two one", pieces.append, max_new_tokens=6)
    assert "".join(pieces) == reply.text
    assert len(reply.tokens) == 6
    assert talk.messages == []


def test_stop_ends_an_answer_and_the_conversation_goes_on(talk):
    run = talk.rows.run

    def stopping(*given):
        talk.stop()
        return run(*given)

    talk.rows.run = stopping
    reply = talk.complete("one two", max_new_tokens=20)
    assert (reply.finish, len(reply.tokens)) == ("interrupted", 1)
    talk.rows.run = run
    assert talk.complete("one two", max_new_tokens=3).finish == "length"


def test_a_text_that_ends_an_answer(talk):
    whole = talk.complete("one two", max_new_tokens=8)
    end = next(character for character in whole.text if character.isprintable() and character != "\ufffd")
    reply = talk.complete("one two", max_new_tokens=8, stop_strings=[end])
    assert reply.text == whole.text[: whole.text.index(end) + 1]
    assert len(reply.tokens) == 8 or reply.finish == "stop"


def test_what_cannot_be_answered_is_said_before_a_pass(talk):
    for ask, words in (
        (lambda: talk.say(" "), "message: is empty"),
        (lambda: talk.complete(""), "prompt: is empty"),
        (lambda: talk.say("x" * 60), "tokens fill the compiled 48"),
        (lambda: talk.answer([*talk.chat.prefix, 262]), "token 262: the model has 262 words"),
        (lambda: talk.answer([*talk.chat.prefix, -1]), "token -1: the model has"),
        (lambda: talk.answer([9, 9, *talk.chat.prefix]), "must begin with .*; use tokenizer.apply_chat_template"),
        (lambda: talk.answer(talk.chat.prefix), "no token after the prefix"),
    ):
        with pytest.raises(GenerationError, match=words):
            ask()
    assert talk.rows.passes == 0
    assert talk.messages == []


def test_a_token_that_leaves_others_too_few_bits_is_named(tmp_path):
    loaded = load(tiny_llama(tmp_path / "model"))
    (token,) = loaded.processor("q")["input_ids"]
    with torch.no_grad():
        causal_model(loaded).get_input_embeddings().weight[token] *= 1e7
    with pytest.raises(CalibrationError, match=r"Token 'q' at place \d+ has \d+ times"):
        compile_chat(loaded, slots=32, sizes=(8,), texts=["plain words, a quaint one, and others"] * 12)
