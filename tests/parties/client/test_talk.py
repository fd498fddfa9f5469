"""Conversations through `bf.Client`: kept between turns, in pieces, ended and gone on with."""

from __future__ import annotations

import os
import signal

import blindformer as bf
import pytest
from blindformer.models.building import compile_folder
from blindformer.parties.client.client import ClientError
from blindformer.tests.shared.tiny import clear_conversation, tiny_llama

HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def client(chat_folder):
    with bf.Client("local", folder=chat_folder) as client:
        yield client


def test_chat_keeps_what_was_read(client, chat_folder):
    first = client.chat(HI, max_new_tokens=4)
    with clear_conversation(chat_folder) as talk:
        assert talk.say("Hi", max_new_tokens=4).tokens == first.tokens
    rows = client.kept_conversation().rows
    read, passes = list(rows.ids), rows.passes
    messages = [*HI, {"role": "assistant", "content": first.text}, {"role": "user", "content": "Ho"}]
    pieces = list(client.chat(messages, stream=True, max_new_tokens=4))
    assert rows.ids[:5] == read[:5]
    assert rows.passes - passes == 4
    assert "".join(pieces) == client.kept_conversation().messages[-1]["content"]
    again = client.chat(HI, max_new_tokens=4)  # nothing of its prompt is read anew, but its last token
    assert (again.tokens, again.passes) == (first.tokens, 4)


def test_conversations_of_one_client_keep_apart(client, chat_folder):
    one, other = client.conversation(), client.conversation()
    with clear_conversation(chat_folder) as here:
        wanted = [here.complete("abcdefghij", max_new_tokens=3).tokens, here.complete("klm", max_new_tokens=3).tokens]
    first = one.complete("abcdefghij", max_new_tokens=2)
    assert other.complete("klm", max_new_tokens=3).tokens == wanted[1]
    after = one.answer([*one.chat.text("abcdefghij"), *first.tokens], max_new_tokens=1)
    assert [*first.tokens, *after.tokens] == wanted[0]
    assert after.passes == 1


def test_who_stops_reading_ends_the_answer(client):
    pieces = client.chat(HI, stream=True, max_new_tokens=30)
    next(pieces)
    pieces.close()
    assert len(client.kept_conversation().rows.ids) < 30
    assert len(client.chat(HI, max_new_tokens=3).tokens) == 3


def test_stop_ends_an_answer_and_the_session_goes_on(client):
    talk = client.conversation(lambda part, answer: talk.stop())
    reply = talk.complete("one two", max_new_tokens=30)
    assert (reply.finish, len(reply.tokens)) == ("interrupted", 1)
    assert talk.say("Hi", max_new_tokens=3).finish == "interrupted"


def test_what_is_prepared_while_somebody_types_changes_no_token_and_of_a_lost_session_nothing_is_prepared(chat_folder):
    """A client of its own: a conversation holds a session until its client is closed."""
    with bf.Client("local", folder=chat_folder) as fresh, clear_conversation(chat_folder) as here:
        talk = fresh.conversation()
        here.prepare()
        for text in ("Hi", "Ho ho ho ho", "Ha", "Hu"):
            if text == "Hu":
                os.kill(fresh.parties.services.processes["server"], signal.SIGKILL)
            talk.prepare()
            assert talk.say(text, max_new_tokens=3).tokens == here.say(text, max_new_tokens=3).tokens


@pytest.mark.parametrize("messages", [[], [{"role": "assistant", "content": "Hi"}], [{"content": "Hi"}]])
def test_the_last_message_is_the_users(client, messages):
    with pytest.raises(ClientError, match="the last one must be the user's"):
        client.chat(messages)
    with pytest.raises(ClientError, match="the last one must be the user's"):
        list(client.chat(messages, stream=True))


def test_each_kind_of_folder_says_what_it_is_for(client, tmp_path_factory):
    with pytest.raises(ClientError, match="is compiled for conversations"):
        client.query("Hi")
    model = tiny_llama(tmp_path_factory.mktemp("plain"))
    whole = compile_folder(model, tmp_path_factory.mktemp("whole"), lengths=[8])
    with bf.Client("local", folder=whole) as other, pytest.raises(ClientError, match="compile the model with --chat"):
        other.chat(HI)
