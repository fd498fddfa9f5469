"""What a conversation will cost: bytes and rounds as a session meters them, seconds as a network lets them pass."""

import pytest
from blindformer.models.generation.decoder import GenerationError
from blindformer.models.generation.folder import compile_chat_folder
from blindformer.models.generation.rows import KVState
from blindformer.models.program.pricing import Network
from blindformer.parties.reports.estimate import estimate, estimate_conversation
from blindformer.parties.session.online import passes
from blindformer.protocols.errors import BlindformerError
from blindformer.tests.models.generation.conftest import PREFIX, compiled, model, some  # noqa: F401
from blindformer.tests.patience import PATIENCE
from blindformer.tests.shared.memory import MemoryChannel
from blindformer.tests.shared.threads import ThreadParties
from blindformer.tests.shared.tiny import tiny_llama

FAR = Network("far", rtt=0.1, bandwidth=1e6)
PROMPT = 16


@pytest.fixture(scope="module")
def found(compiled):  # noqa: F811
    return estimate_conversation(compiled.program, FAR, prompt=PROMPT, weights=compiled.weights)


def test_a_session_meters_what_is_estimated(found, compiled, monkeypatch):  # noqa: F811
    """The dealer's frames, too: of both passes of the prompt, and of all tokens whose correlations are made at once."""
    frames, measured, receive = [], [], MemoryChannel.recv

    def counting(channel, size):
        if channel.peer == "dealer":
            frames.append(size)
        return receive(channel, size)

    monkeypatch.setattr(MemoryChannel, "recv", counting)
    text = some(PROMPT + 1).tolist()
    with ThreadParties(compiled, timeout=PATIENCE) as session:
        rows = KVState(
            compiled.program,
            passes(session.client, compiled.parts, lambda name, answer: measured.append((name, answer.timings))),
            PREFIX,
        )
        rows.read(text[:PROMPT])
        rows.read(text[PROMPT:])
        assert session.setup_bytes == found.setup_bytes
    token = found.answer[0]
    assert [name for name, _ in measured] == [*found.prompt.parts, *token.parts]
    for expected, some_passes in ((found.prompt, measured[:-1]), (token, measured[-1:])):
        metered = [timings for _, timings in some_passes]
        assert expected.rounds == sum(timings.rounds for timings in metered)
        assert expected.online_bytes == sum(timings.online.sent + timings.online.received for timings in metered)
    for name, timings in measured:
        priced = found.by_part[name]
        assert (timings.online.sent, timings.online.received) == (priced.up, priced.down)
    dealt = [found.by_part[part].dealt_bytes for part in (*found.prompt.parts, *(8 * token.parts))]
    assert sum(frames) == sum(dealt)


def test_a_token_costs_more_behind_more_others(found):
    near, far = found.answer
    assert (near.parts, far.parts) == (["1@64"], ["1@96"])
    assert 64 <= near.behind < far.behind == found.slots == 96
    assert near.online_bytes < far.online_bytes
    assert near.offline_bytes < far.offline_bytes
    assert [(one.tokens, one.parts[0]) for one in found.passes] == [(1, "1@64"), (1, "1@96"), (8, "8@64"), (8, "8@96")]


def test_seconds_are_at_least_the_networks(found):
    for one in (*found.passes, found.prompt):
        # The first may have left before the client is ready; in each layer one side sends twice without an answer,
        # two times.
        assert one.online_s >= (one.rounds - 2 - 4) * FAR.rtt / 2
        assert one.offline_s >= 8 * one.offline_bytes / FAR.bandwidth
        assert one.tokens_per_minute == pytest.approx(60 * one.tokens / (one.online_s + one.offline_s))
    assert found.setup_s >= 8 * found.setup_bytes / FAR.bandwidth
    # Of correlations that are made at once, each run bears its part of asking for them.
    assert found.answer[0].offline_s < 2 * FAR.rtt + 8 * found.answer[0].offline_bytes / FAR.bandwidth


def test_what_is_not_priced_says_why(compiled):  # noqa: F811
    with pytest.raises(BlindformerError, match="use estimate_conversation"):
        estimate(compiled)
    with pytest.raises(BlindformerError, match="compile the model with --chat"):
        estimate_conversation(compiled.program.part("8@64"))
    with pytest.raises(GenerationError, match="97 tokens exceed its 96"):
        estimate_conversation(compiled.program, prompt=97)


# --- the command -----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def talks(folder, tmp_path_factory):
    return compile_chat_folder(folder, tmp_path_factory.mktemp("compiled"), slots=32)


def test_the_command_prices_a_folder_that_compile_wrote(call, report_of, talks):
    words = ("estimate", talks, "--tokens", 32, "--prompt", 20, "--network", "7,30")
    costs = report_of(*words)
    assert (costs["slots"], costs["plan"], costs["rtt_s"], costs["bandwidth"]) == (32, "faithful", 0.007, 3e7)
    assert [(one["tokens"], one["parts"]) for one in costs["passes"]] == [(1, ["1@32"]), (8, ["8@32"]), (32, ["32@32"])]
    assert (costs["prompt"]["tokens"], costs["prompt"]["parts"]) == (20, ["32@32"])
    assert costs["answer"][0]["tokens_per_minute"] == pytest.approx(60 / costs["answer"][0]["seconds"])
    assert costs["by_part"]["8@32"]["layers"]
    code, out, errors = call(*words)
    assert code == 0, errors
    assert "conversations of 32 tokens" in out
    assert f"{costs['prompt']['rounds']} rounds" in out
    assert "tokens a minute" in out


WRONG = {
    "another room": (("--tokens", 64), "is compiled for 32; give that number"),
    "a long prompt": (("--tokens", 32, "--prompt", 33), "33 tokens exceed its 32"),
    "reveal of a folder": (("--tokens", 32, "--reveal", "token"), "is compiled already; leave --reveal out"),
    "a protocol": (("--tokens", 32, "--protocol", "crypten"), "--protocol crypten: prices no conversations; use"),
    "no conversation": ((), "answers token by token; give --tokens"),
}


@pytest.mark.parametrize("case", WRONG)
def test_one_line_says_what_is_wrong(refused, talks, case):
    words, expected = WRONG[case]
    assert expected in refused("estimate", talks, *words)
