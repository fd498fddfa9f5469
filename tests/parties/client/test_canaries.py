"""Canary queries: their places among real ones, what they find and how surely, and what a server sees of them."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any

import pytest
import torch
from blindformer.models.artifacts import load_client, load_server
from blindformer.models.artifacts.server import compiled_of
from blindformer.parties.client.base import BaseClient
from blindformer.parties.client.canaries import (
    Canaries,
    CanaryError,
    CanaryReport,
    KnownAnswer,
    make_known,
    write_known,
)
from blindformer.parties.client.client import LocalClient
from blindformer.parties.client.local import ClearSession, find_local
from blindformer.parties.session.messages import SlotsBusy
from blindformer.parties.transport.frames import MESSAGE
from blindformer.protocols.errors import PeerRefused
from blindformer.tests.shared.threads import ThreadParties

REAL = ["how is my password ?", "not good , bad !", "the password is lost ."]
KNOWN = ["what a good red !", "bad blue"]
LONG = "how good is my red password ? not bad !"  # 11 tokens with the special ones
LIE = 1 << 10


class Server(ClearSession):
    """It adds to its share of the result of those queries that `lies` chooses, by number, and raises what `ends` has
    for one. `asked` has the texts."""

    def __init__(self, folder: Any, *, lies: Callable[[int], bool], ends: dict, asked: list[str], **options: Any):
        super().__init__(folder, **options)
        self.lies, self.ends, self.asked = lies, ends, asked
        self.computed: dict[str, Any] = {}  # once

    def _ask(self, inputs, more):
        name, number = str(inputs["input_ids"].tolist()), len(self.asked)
        self.asked.append(name)
        if number in self.ends:
            raise self.ends[number]
        if name not in self.computed:
            self.computed[name] = super()._ask(inputs, more)
        answer, shift = self.computed[name].answer, LIE if self.lies(number) else 0
        return self._reply(replace(answer, outputs={name: x + shift for name, x in answer.outputs.items()}))


@pytest.fixture(scope="module")
def known(compiled, tmp_path_factory):
    """The file of known answers, and the client that made it."""
    file = tmp_path_factory.mktemp("known") / "known.jsonl"
    with LocalClient(find_local("clear"), compiled) as client:
        write_known(file, make_known(client, KNOWN))
    return file


@pytest.fixture
def connect(compiled) -> Iterator[Callable[..., Any]]:
    """`connect(lies)` is a client of such a server, and the texts that it was asked."""
    clients: list[BaseClient] = []

    def make(lies: Callable[[int], bool] = lambda number: False, length: int | None = 8, ends: Any = ()) -> Any:
        local, asked = find_local("clear"), list[str]()
        entry = replace(local.entry, local=partial(Server, lies=lies, ends=dict(ends), asked=asked))
        clients.append(LocalClient(replace(local, entry=entry), compiled, length=length))
        return clients[-1], asked

    yield make
    for client in clients:
        client.close()


# --- where they are --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("rate", "real", "count"), [(0.2, 48, 12), (0.2, 1, 1), (0.5, 7, 7), (0.01, 60, 1), (0.9, 2, 18)]
)
def test_at_least_the_rate_of_all_queries_are_canaries(known, rate, real, count):
    assert Canaries(known, rate, {}).count(real) == count
    assert count / (count + real) >= rate


def test_every_place_is_as_likely_to_hold_one(known, connect):
    client, _ = connect(length=None)
    client.use_canaries(known, 0.4)
    client.canaries.shuffle = Random(5).shuffle
    part, places = client.part, Counter[int]()
    questions = {number: part.encode(text) for number, text in enumerate([*REAL, LONG])}
    for _ in range(1000):
        mix, canaries = client.canaries.mixed(part, questions, len(questions))
        order = list(mix)
        assert [mix[number].length for number in order] == [8] * 5 + [16] * 2, "each length has its own"
        places.update(place for place, number in enumerate(order) if number in canaries)
    for place in range(7):
        share = 2 / 5 if place < 5 else 1 / 2
        assert abs(places[place] - 1000 * share) < 5 * math.sqrt(1000 * share * (1 - share))


def test_all_known_answers_come_before_one_comes_again(known, connect):
    client, asked = connect()
    client.use_canaries(known, 0.5)
    client.query_many(["good", "good", "bad", "bad"])
    assert sorted(Counter(asked).values()) == [2, 2, 2, 2]


def test_no_answer_is_read_before_all_were_asked(known, connect):
    """So what becomes of an answer, which takes time, is not between two queries."""
    client, asked = connect()
    client.use_canaries(known, 0.25)
    results = [(number, len(asked)) for number, _ in client.stream(REAL)]
    assert sorted(results) == [(0, 4), (1, 4), (2, 4)]
    assert [result.item for result in client.query_many(REAL)] == REAL


@pytest.mark.parametrize("text", ["two\u2028lines\u0085here", "two\r\nlines", ("a\x1c", "b\x0c")])
def test_known_answers_are_read_to_the_last_bit_whatever_is_in_a_text(known, tmp_path, compiled, text):
    row = KnownAnswer.of_row(json.loads(known.read_text().splitlines()[0]), "")
    outputs = {"logits": torch.tensor([[3.14159e-7, -2.71828e-12, 0.1, 16777217.0, 1.1754944e-38]])}
    write_known(file := tmp_path / "k.jsonl", [row, replace(row, item=text, outputs=outputs)])
    _, read = Canaries.read(file, 0.2, load_client(compiled), "clear").known[row.length]
    assert (read.item, torch.equal(read.outputs["logits"], outputs["logits"])) == (text, True)


# --- what they find --------------------------------------------------------------------------------------------------
def test_an_honest_server_is_not_accused_and_the_report_says_what_would_have_been_found(known, connect):
    client, _ = connect()
    client.use_canaries(known, 0.2)
    assert all(result.distrusted == "" for result in client.query_many(["good"] * 48))
    report = client.canaries.report
    counts = {"asked": 60, "canaries": 12, "requests": 12, "unanswered": 0, "unlike": ()}
    assert report.facts() == {**counts, "detection_one_in_ten": pytest.approx(0.7176, abs=1e-4)}
    assert str(report) == (
        "12 canary queries among 60 queries: all as known; a server that falsifies one query in ten would have been "
        "found with probability 72 %"
    )
    assert CanaryReport(60, 60, 60).detection(0.1) > 0.995
    assert "more than 99 %" in str(CanaryReport(60, 60, 60))


@pytest.mark.parametrize("falsified", [{0}, {7}, {0, 1}, {1, 4, 6}])
def test_whichever_queries_a_server_falsifies_it_escapes_no_more_often_than_the_bound(known, connect, falsified):
    """It knows all but the places: the texts, the known answers, how many there are, and when each query comes."""
    trials, chance, caught = 250, Random(3), 0
    client, asked = connect(lambda number: number % 8 in falsified)
    for _ in range(trials):
        client.use_canaries(known, 0.25)
        client.canaries.shuffle = chance.shuffle
        list(client.stream(["good"] * 6))
        caught += bool(client.canaries.report.unlike)
    assert len(asked) == 8 * trials
    escapes = math.comb(8 - len(falsified), 2) / math.comb(8, 2)
    assert escapes <= 0.75 ** len(falsified)
    assert abs(caught / trials - (1 - escapes)) < 3 * math.sqrt(escapes * (1 - escapes) / trials)


def test_answers_that_were_asked_with_a_failed_canary_are_kept_and_marked(known, connect):
    client, _ = connect(lambda number: True)
    client.use_canaries(known, 0.2)
    fault = r"known.jsonl, line \d: logits is off by 0.002, more than 3.8e-06"
    with pytest.raises(
        CanaryError, match=rf"1 canary query among 4 queries: 1 not as known \({fault}\); do not trust these answers"
    ) as caught:
        client.query_many(REAL)
    assert [result.item for result in caught.value.results] == REAL
    assert all(result.value and result.distrusted for result in caught.value.results)
    with pytest.raises(CanaryError, match="1 canary query among 2 queries: 1 not as known"):
        client(REAL[0])
    assert len(client.canaries.report.unlike) == 2
    client.use_canaries(known, 0.2)
    client.query_many(REAL[:0])
    assert client.canaries.report == CanaryReport(), "nothing is asked for their own sake"


def test_a_server_that_ruins_an_answer_is_found_like_one_that_changes_it(known, connect):
    client, _ = connect()
    client.use_canaries(known, 0.5)
    narrow = [replace(item, bound=1e-9) for item in client.sessions.get(client.part.for_length(8)).program.instructions]
    session = client.sessions.get(client.part.for_length(8))
    session.program = session.program.model_copy(update={"instructions": tuple(narrow)})
    ((_, result),) = client.stream(["good"])
    assert "far outside the calibrated range" in result.distrusted
    none = KnownAnswer("", 8, {"y": torch.zeros(1, 3)}, {"y": 0.1}, "", "")
    answers = (torch.zeros(1, 3), torch.full((1, 3), math.nan), torch.zeros(1, 1))
    assert [none.fault({"y": y}, {}) != "" for y in answers] == [False, True, True]


# --- when a server hangs up, or is busy ------------------------------------------------------------------------------
GONE, BUSY = PeerRefused("server", "hung up", "ask again"), SlotsBusy("server", 0.0)


@pytest.mark.parametrize("end", [GONE, BUSY])
def test_an_error_after_a_failed_canary_says_both(known, connect, end):
    """Also where no real query was answered: reversed, canary queries come first."""
    doubt = r"canaries: 1 canary query among 1 queries, 2 more without an answer: 1 not as known \(known.jsonl"
    for ask, before in ((lambda client: client.query_many(REAL), "server: .*; "), (lambda client: client(REAL), "")):
        client, _ = connect(lambda number: number == 0, ends=dict.fromkeys(range(1, 9), end))
        client.use_canaries(known, 0.5)
        client.canaries.shuffle, client.sessions.wait = list.reverse, 0.0
        with pytest.raises(CanaryError, match=before + doubt) as caught:
            ask(client)
        assert caught.value.ended is (end if before or end is GONE else None)


@pytest.mark.parametrize("end", [GONE, BUSY])
def test_a_canary_without_an_answer_accuses_nobody_and_is_counted(known, connect, end):
    client, _ = connect(ends=dict.fromkeys(range(2, 9), end))
    client.use_canaries(known, 0.5)
    client.canaries.shuffle, client.sessions.wait = list.reverse, 0.0
    with pytest.raises(type(end)):
        client.query_many(REAL)
    report = client.canaries.report
    assert (report.asked, report.canaries, report.unanswered, report.unlike) == (2, 2, 1, ())
    assert str(report).startswith("2 canary queries among 2 queries, 1 more without an answer: all as known; ")


@pytest.mark.parametrize(("real", "lies"), [(1, 1), (2, 1), (2, 2), (2, 3)])
def test_a_server_that_hangs_up_first_escapes_no_more_often_than_the_bound(known, compiled, real, lies):
    """It gives one answer as it should, hangs up, and lies in the first queries that come then, if so many do: it sees
    how many they are, and so whether its answer was to a canary query."""
    part, chance, trials, escaped = load_client(compiled), Random(5), 4000, 0
    canaries = Canaries(known, 0.5, {8: [KnownAnswer("good", 8, {}, {}, "", "")]}, shuffle=chance.shuffle)
    questions = {number: part.encode("good", 8) for number in range(real)}
    for _ in range(trials):
        first = next(iter(canaries.mixed(part, questions, real)[0]))
        left = {number: question for number, question in questions.items() if number != first}
        mix, known_ones = canaries.mixed(part, left, real)
        assert len(mix) == 2 * len(left), "drawn anew"
        escaped += len(mix) >= lies and known_ones.keys().isdisjoint(list(mix)[:lies])
    bound = 0.5**lies
    assert escaped / trials < bound + 4 * math.sqrt(bound * (1 - bound) / trials)


# --- what a server sees and sends ------------------------------------------------------------------------------------
class Recorded(ThreadParties):
    """`lines`: by direction, the kind and size of what was sent. Signs of life are left out: they come by chance.
    In the queries `falsified` the server adds to its share in what it sends in frames of this `size`."""

    def __init__(self, *given: Any, falsified: Collection[int] = (), size: int = 0, **options: Any) -> None:
        self.lines: dict[str, list[str]] = {}
        self.falsified, self.size = falsified, size
        super().__init__(*given, **options)

    def connect(self, a: str, b: str) -> Any:
        pair = super().connect(a, b)
        for end, direction in zip(pair, (f"{a} -> {b}", f"{b} -> {a}"), strict=True):
            lines = self.lines.setdefault(direction, [])
            lies = direction == "server -> client"
            end._move = partial(self.note, lines, end._move, lies)  # type: ignore[attr-defined]
        return pair

    def note(self, lines: list[str], move: Callable, lies: bool, kind: int, data: Any, incoming: Any) -> None:
        if data is not None and kind == MESSAGE:
            if not {"waiting", "queued"} & set(message := json.loads(bytes(data))):
                lines.append(" ".join(message))
        elif data is not None:
            lines.append(f"{len(data)} bytes")
            query = sum(line.startswith("ready") for line in lines) - 1
            if lies and query in self.falsified and len(data) == self.size:
                data = memoryview(bytes([data[0], data[1] ^ 8, *data[2:]]))
        move(kind, data, incoming)


@pytest.fixture
def recorded(compiled, known, tmp_path) -> Iterator[Callable[..., Any]]:
    """`recorded(rate, **options)` is a client of such parties, and the list of them, which they enter when opened."""
    changed = {"protocol": "beaver", "tolerance": {"logits": 5e-4}}
    rows = [json.dumps({**json.loads(row), **changed}) for row in known.read_text().splitlines()]
    (file := tmp_path / "known.jsonl").write_text("\n".join(rows))
    clients: list[BaseClient] = []

    def make(rate: float | None, **lies: Any) -> tuple[BaseClient, list[Recorded]]:
        opened: list[Recorded] = []

        def open_here(folder: Any, length: int, **options: Any) -> Recorded:
            server = load_server(folder)
            mine, theirs = (part.for_length(length) for part in (load_client(folder), server))
            opened.append(Recorded(compiled_of(mine, theirs, server.plan), **lies, **options))
            return opened[-1]

        local = find_local("beaver")
        local = replace(local, entry=replace(local.entry, local=open_here))
        clients.append(client := LocalClient(local, compiled, length=8))
        if rate is not None:
            client.use_canaries(file, rate)
        return client, opened

    yield make
    for client in clients:
        client.close()


def test_every_party_sees_a_session_of_as_many_real_queries(recorded):
    """Message by message, in kind, size and order."""
    (plain, first), (mixed, second) = recorded(None), recorded(0.5)
    plain.query_many(["good"] * 6)
    mixed.query_many(["good"] * 3)
    assert mixed.canaries.report.canaries == 3
    assert first[0].lines == second[0].lines
    assert sum(line.startswith("query") for line in first[0].lines["client -> server"]) == 6


@pytest.mark.parametrize(("frame", "size"), [("an answer", 9), ("an opened value", 384)])
def test_what_a_server_falsifies_in_the_protocol_is_found_if_it_is_in_a_canary(recorded, frame, size):
    for falsified, fails in (({1, 2, 5}, 2), ({3, 5}, 0)):
        client, _ = recorded(0.5, falsified=falsified, size=size)
        client.canaries.shuffle = list.reverse  # so that those asked first are canary queries
        list(client.stream(["good"] * 3))
        assert len(client.canaries.report.unlike) == fails


# --- what is refused -------------------------------------------------------------------------------------------------
def test_known_answers_that_are_of_no_use_are_said_before_anything_is_asked(
    known, connect, compiled, chat_folder, tmp_path
):
    client, asked = connect(length=None)
    rows, file = [json.loads(line) for line in known.read_text().splitlines()], tmp_path / "k.jsonl"
    with pytest.raises(CanaryError, match=r"k.jsonl: cannot be read .*; make the file with `blindformer query --write"):
        client.use_canaries(file, 0.2)
    for changed, words in (
        ([{"text": "good"}], ": holds something else than known answers"),
        ([{**rows[0], "program": "other"}], ", line 1: is of another program; make the file with"),
        ([{**rows[0], "outputs": {}}], ", line 1: has no output logits, which would not be checked"),
        ([rows[0], {**rows[0], "protocol": "ckks"}], r", line 2: is of another protocol \(ckks\)"),
        ([row for row in rows if row["length"] == 8], ""),
    ):
        file.write_text("\n".join(map(json.dumps, changed)))
        with pytest.raises(CanaryError, match=f"k.jsonl{words}") if words else nullcontext():
            client.use_canaries(file, 0.2)
    with pytest.raises(CanaryError, match="a rate of 1 is not between 0 and 1"):
        client.use_canaries(known, 1)
    with pytest.raises(CanaryError, match=r"k.jsonl: has answers for 8, not for 16 tokens; make them with"):
        client.query_many([REAL[0], LONG])
    assert asked == []
    with LocalClient(find_local("clear"), chat_folder) as talking:
        for refused in (lambda: talking.use_canaries(known, 0.2), lambda: make_known(talking, KNOWN)):
            with pytest.raises(CanaryError, match="answers token by token, and canary queries check whole answers"):
                refused()


def test_known_answers_are_made_for_each_length_that_a_text_fits(compiled):
    with LocalClient(find_local("clear"), compiled) as client:
        known = make_known(client, ["good", LONG])
        assert [(answer.item, answer.length) for answer in known] == [("good", 8), ("good", 16), (LONG, 16)]
        scale = client.part.lengths[8].program.instructions[client.part.lengths[8].program.outputs["logits"]].scale
        assert known[0].tolerance == {"logits": 2 * 2.0**-scale}, "the reference leaves nothing to chance"
        with pytest.raises(Exception, match="input 2 of 2: text has 22 tokens"):
            make_known(client, ["good", "good " * 20])
        assert client.length is None
