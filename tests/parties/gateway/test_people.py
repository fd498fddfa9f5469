"""Persons with keys of their own: kept as hashes, limited one by one, taken back while the gateway runs."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import httpx
import pytest
from blindformer.parties.config import load_settings
from blindformer.parties.gateway.access import OWNER, People, add_key, read_keys, remove_key
from blindformer.parties.gateway.model_pool import ConversationSlot
from blindformer.parties.gateway.problems import ApiError, GatewayError
from blindformer.tests.parties.gateway.conftest import running
from blindformer.tests.shared.deployment import eventually


@pytest.fixture
def people(tmp_path):
    """`people(...)`: settings of [gateway]; `keys`, by name; `clock.now`: seconds, for requests a minute."""
    keys = {name: add_key(tmp_path / "keys", name) for name in ("alice", "bob")}
    clock = SimpleNamespace(now=0.0)

    def make(**settings):
        given = {"keys": tmp_path / "keys", "state": tmp_path / "state", **settings}
        mine = load_settings(None, **{f"gateway.{name}": value for name, value in given.items()}).gateway
        return People(mine, "the owner's key", lambda: clock.now)

    make.keys, make.clock, make.file = keys, clock, tmp_path / "keys"  # type: ignore[attr-defined]
    return make


def test_keys_that_are_made_at_the_same_time_are_all_kept(tmp_path):
    names = [f"person{number}" for number in range(16)]
    with ThreadPoolExecutor(len(names)) as pool:
        keys = dict(zip(names, pool.map(partial(add_key, tmp_path / "keys"), names), strict=True))
        assert len(read_keys(tmp_path / "keys")) == len(keys) == len(names)
        list(pool.map(partial(remove_key, tmp_path / "keys"), names[1:]))
    assert list(read_keys(tmp_path / "keys")) == names[:1]


def refusal(ask):
    with pytest.raises(ApiError) as refused:
        ask()
    return refused.value.status, refused.value.retry_after, str(refused.value)


def test_a_key_is_shown_once_and_only_its_hash_is_kept(people):
    assert read_keys(people.file).keys() == {"alice", "bob"}
    assert not any(key in people.file.read_text() for key in people.keys.values())
    who = people()
    assert [who.find(key) for key in (*people.keys.values(), "the owner's key")] == ["alice", "bob", OWNER]
    assert {who.find(key) for key in ("", "bf-", people.keys["alice"][:-1], read_keys(people.file)["alice"])} == {""}


@pytest.mark.parametrize("name", ["", OWNER, "alice", "a b", "a\nlevel=error", "\x1b[2J", "a" * 65, "-x", "é"])
def test_a_name_that_could_forge_a_line_or_is_taken_is_refused(people, name):
    before = people.file.read_text()
    with pytest.raises(GatewayError) as refused:
        add_key(people.file, name)
    assert "\n" not in str(refused.value)
    assert people.file.read_text() == before


def test_a_file_of_something_else_is_refused(people, tmp_path):
    for content in ("{", "[]", '{"a": "b"}', json.dumps({"a b": "0" * 64})):
        people.file.write_text(content)
        with pytest.raises(GatewayError):
            people()
    assert read_keys(tmp_path / "none") == {}


def test_requests_a_minute_are_each_persons_own(people):
    who = people(requests_per_minute=2, people={"bob": {"requests_per_minute": 3}})
    for now in (0.0, 30.0):
        people.clock.now = now
        who.admit("alice")
    status, wait, text = refusal(lambda: who.admit("alice"))
    assert (status, wait) == (429, 30.0)
    assert text == "limit: your key may ask 2 requests in a minute; ask again in 30 seconds"
    for _ in range(3):
        who.admit("bob")
    assert refusal(lambda: who.admit("bob"))[1] == 60.0
    for _ in range(9):
        who.admit(OWNER)
    people.clock.now = 60.5
    who.admit("alice")


def test_tokens_a_day_are_counted_over_restarts_and_beyond_the_limit(people):
    settings = {"tokens_per_day": 100, "people": {"bob": {"tokens_per_day": 500}}}
    who = people(**settings)
    for name in ("alice", "bob", OWNER):
        who.admit(name)
        who.count(name, 400)
    again = people(**settings)
    status, wait, text = refusal(lambda: again.admit("alice"))
    assert status == 429
    assert wait > 80_000
    assert text.startswith("limit: your key may ask 100 tokens in a day; ask again in")
    again.admit("bob")
    again.admit(OWNER)


def test_what_one_has_said_is_not_read_for_another():
    """How many tokens an answer found cached would tell who guesses another's words."""
    slot = ConversationSlot()
    slot.conversation = SimpleNamespace(rows=SimpleNamespace(ids=[1, 2, 3]))  # type: ignore[assignment]
    slot.caller = "alice"
    assert (slot.common([1, 2, 4], "alice"), slot.common([1, 2, 4], "bob")) == (2, 0)


def test_a_gateway_of_many_people(chat_folder, sentence_folder, tmp_path, capsys):
    """Two models, three keys: limits, names in the log, metrics without a key, sessions side by side."""
    keys = {name: add_key(tmp_path / "keys", name) for name in ("alice", "bob")}
    sections = {
        name: {"folder": str(folder), "server": "local"}
        for name, folder in {"tiny": chat_folder, "sentences": sentence_folder}.items()
    }
    flags = {"keys": tmp_path / "keys", "state": tmp_path / "state", "conversations": 2, "log_format": "json"}
    flags |= {"metrics": "127.0.0.1:0", "people": {"alice": {"requests_per_minute": 3, "tokens_per_day": 10_000}}}
    with running(tmp_path / "key", sections, **{f"gateway.{name}": value for name, value in flags.items()}) as gateway:
        eventually(lambda: gateway.http.get("/health").status_code == 200, "all parties have met")

        def ask(name: str, route: str = "embeddings", **more) -> httpx.Response:
            body = {"model": "sentences", "input": "good", **more}
            return gateway.http.post(f"/v1/{route}", json=body, headers={"authorization": f"Bearer {keys[name]}"})

        def talk(name: str, text: str) -> int:
            body = {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 2}
            headers = {"authorization": f"Bearer {keys[name]}"}
            reply = gateway.http.post("/v1/chat/completions", json=body, headers=headers).json()
            return reply["usage"]["prompt_tokens_details"]["cached_tokens"]

        first = talk("bob", "the password is lost . what a good red !")
        assert talk("bob", "the password is lost . what a good red !") > first
        gateway.server._gateway.models["tiny"]._free[:] = gateway.server._gateway.models["tiny"]._free[-1:]
        assert talk("alice", "the password is lost . what a good red !") == first, "bob's words are not read for alice"
        assert [ask("alice").status_code for _ in range(3)] == [200, 200, 429]
        refused = ask("alice")
        assert refused.json()["error"]["code"] == "limit_reached"
        assert int(refused.headers["retry-after"]) <= 60
        assert ask("bob").status_code == 200
        logged = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
        ready = next(line for line in logged if line["event"] == "ready")
        metrics = httpx.get(f"http://{ready['metrics']}/metrics").text
        eventually(
            lambda: "blindformer_limited_total 2" in httpx.get(f"http://{ready['metrics']}/metrics").text, "limited"
        )
        assert httpx.get(f"http://{ready['metrics']}/readyz").status_code == 200
        assert not any(word in metrics for word in ("alice", "password", *keys.values()))
        limited = [line for line in logged if line["event"] == "limited"]
        assert [line["person"] for line in limited] == ["alice", "alice"]
        answered = [(line["person"], line["model"]) for line in logged if line["event"] == "answered"]
        assert answered.count(("bob", "tiny")) == 2
        assert ("alice", "sentences") in answered
        assert not any(word in json.dumps(logged) for word in ("password", *keys.values()))
        remove_key(tmp_path / "keys", "bob")
        eventually(lambda: ask("bob").status_code == 401, "bob's key is refused")
