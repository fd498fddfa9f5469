"""Sentinels: where they are among real queries, what they find and how surely, and what a server sees of them."""

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
from blindformer.parties.bulk import askers
from blindformer.parties.bulk.askers import RowClient, ask_all
from blindformer.parties.client.base import BaseClient
from blindformer.parties.client.client import LocalClient
from blindformer.parties.client.known_answers import make_known, write_known
from blindformer.parties.client.local import ClearSession, find_local
from blindformer.parties.client.sentinels import KnownAnswer, SentinelError, SentinelReport, Sentinels
from blindformer.parties.session.compute_slots import SlotsBusy
from blindformer.parties.transport.frames import MESSAGE
from blindformer.protocols.errors import PeerGone, PeerRefused
from blindformer.tests.shared.threads import ThreadParties

REAL = ["how is my password ?", "not good , bad !", "the password is lost ."]
KNOWN = ["what a good red !", "bad blue"]
LONG = "how good is my red password ? not bad !"  # 11 tokens with the special ones
LIE = 1 << 10


class Server(ClearSession):
    """A server's answers: it adds to its share of the result of those queries that `lies` chooses, by number. What it
    has computed once it computes no more."""

    def __init__(self, folder: Any, *, lies: Callable[[int], bool], answered: Counter[str], **options: Any) -> None:
        super().__init__(folder, **options)
        self.lies, self.answered = lies, answered
        self.computed: dict[str, Any] = {}

    def _ask(self, inputs, more):
        name = str(inputs["input_ids"].tolist())
        if name not in self.computed:
            self.computed[name] = super()._ask(inputs, more)
        reply, number = self.computed[name], self.answered.total()
        self.answered[name] += 1
        shift = LIE if self.lies(number) else 0
        return self._reply(replace(reply.answer, outputs={n: x + shift for n, x in reply.answer.outputs.items()}))


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

    def make(lies: Callable[[int], bool] = lambda number: False, length: int | None = 8) -> Any:
        local, answered = find_local("clear"), Counter[str]()
        entry = replace(local.entry, local=partial(Server, lies=lies, answered=answered))
        clients.append(LocalClient(replace(local, entry=entry), compiled, length=length))
        return clients[-1], answered

    yield make
    for client in clients:
        client.close()


# --- where they are --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("rate", "real", "count"), [(0.2, 48, 12), (0.2, 1, 1), (0.5, 7, 7), (0.01, 60, 1), (0.9, 2, 18)]
)
def test_at_least_the_rate_of_all_queries_are_sentinels(known, rate, real, count):
    sentinels = Sentinels(known, rate, {})
    assert sentinels.count(real) == count
    assert count / (count + real) >= rate


def test_every_place_is_as_likely_to_hold_one(known, connect):
    client, _ = connect(length=None)
    client.use_sentinels(known, 0.4)
    client.sentinels.shuffle = Random(5).shuffle
    part, places = client.part, Counter[int]()
    questions = {number: part.encode(text) for number, text in enumerate([*REAL, LONG])}
    for _ in range(1000):
        mix = client.sentinels.mixed(part, questions, len(questions))
        order = list(mix.questions)
        assert [mix.questions[number].length for number in order] == [8] * 5 + [16] * 2, "each length has its own"
        places.update(place for place, number in enumerate(order) if number in mix.known)
    for place in range(7):
        share = 2 / 5 if place < 5 else 1 / 2
        assert abs(places[place] - 1000 * share) < 5 * math.sqrt(1000 * share * (1 - share))


def test_all_known_answers_come_before_one_comes_again(known, connect):
    client, answered = connect()
    client.use_sentinels(known, 0.5)
    client.query_many(["good", "good", "bad", "bad"])
    assert sorted(answered.values()) == [2, 2, 2, 2]


def test_no_answer_is_read_before_all_were_asked(known, connect):
    """So what becomes of an answer, which takes time, is not between two queries."""
    client, answered = connect()
    client.use_sentinels(known, 0.25)
    results = [(number, answered.total()) for number, _ in client.stream(REAL)]
    assert sorted(results) == [(0, 4), (1, 4), (2, 4)]
    assert [result.item for result in client.query_many(REAL)] == REAL


@pytest.mark.parametrize("text", ["two\u2028lines", "two\u0085lines", "two\r\nlines", ("a\x1c", "b\x0c")])
def test_known_answers_are_read_as_they_were_written_whatever_is_in_a_text(known, connect, tmp_path, text):
    client, _ = connect()
    row = KnownAnswer.of_row(json.loads(known.read_text().splitlines()[0]), "")
    write_known(file := tmp_path / "k.jsonl", [row, replace(row, item=text)])
    client.use_sentinels(file, 0.2)
    assert [answer.item for answer in client.sentinels.known[row.length]] == [row.item, text]


@pytest.mark.parametrize("value", [3.14159e-7, -2.71828e-12, 0.1, 16777217.0, 1.1754944e-38])
def test_known_answers_are_read_to_the_last_bit(value):
    answer = KnownAnswer("", 8, {"y": torch.tensor([[value, -value]])}, {"y": 2.0**-60}, "", "")
    written = json.dumps(answer.row())
    assert torch.equal(KnownAnswer.of_row(json.loads(written), "").outputs["y"], answer.outputs["y"])
    assert "0.10000000" not in written, "in no more digits than that takes"


# --- what they find --------------------------------------------------------------------------------------------------
def test_an_honest_server_is_not_accused_and_the_report_says_what_would_have_been_found(known, connect):
    client, _ = connect()
    client.use_sentinels(known, 0.2)
    assert all(result.distrusted == "" for result in client.query_many(["good"] * 48))
    report = client.sentinels.report
    counts = {"asked": 60, "sentinels": 12, "requests": 12, "unanswered": 0, "unlike": ()}
    assert report.facts() == {**counts, "detection_one_in_ten": pytest.approx(0.7176, abs=1e-4)}
    assert str(report) == (
        "12 sentinels among 60 queries: all as known; a server that falsifies one query in ten would have been found "
        "with probability 72 %"
    )
    assert SentinelReport(60, 60, 60).detection(0.1) > 0.995
    assert "more than 99 %" in str(SentinelReport(60, 60, 60))


def test_a_server_that_lies_in_some_queries_is_found_as_often_as_the_formula_says(known, connect):
    chance, trials, caught = Random(11), 300, 0
    client, _ = connect(lambda number: chance.random() < 0.1)
    for _ in range(trials):
        client.use_sentinels(known, 0.5)
        client.sentinels.shuffle = chance.shuffle
        list(client.stream(["good"] * 6))
        caught += bool(client.sentinels.report.unlike)
    wanted = 1 - 0.9**6
    assert wanted == client.sentinels.report.detection(0.1)
    assert abs(caught / trials - wanted) < 3 * math.sqrt(wanted * (1 - wanted) / trials)


@pytest.mark.parametrize("falsified", [{0}, {7}, {0, 1}, {1, 4, 6}])
def test_whichever_queries_a_server_falsifies_it_escapes_no_more_often_than_the_bound(known, connect, falsified):
    """It knows all but the places: the texts, how many sentinels there are, and when the first and last query come."""
    trials, chance, caught = 250, Random(3), 0
    client, answered = connect(lambda number: number % 8 in falsified)
    for _ in range(trials):
        client.use_sentinels(known, 0.25)
        client.sentinels.shuffle = chance.shuffle
        list(client.stream(["good"] * 6))
        caught += bool(client.sentinels.report.unlike)
    assert answered.total() == 8 * trials
    escapes = math.comb(8 - len(falsified), 2) / math.comb(8, 2)
    assert escapes <= 0.75 ** len(falsified)
    assert abs(caught / trials - (1 - escapes)) < 3 * math.sqrt(escapes * (1 - escapes) / trials)


def test_answers_that_were_asked_with_a_failed_sentinel_are_kept_and_marked(known, connect):
    client, _ = connect(lambda number: True)
    client.use_sentinels(known, 0.2)
    fault = r"known.jsonl, line \d: logits is off by 0.002, more than 3.8e-06"
    with pytest.raises(
        SentinelError, match=rf"1 sentinel among 4 queries: 1 not as known \({fault}\); do not trust these answers"
    ) as caught:
        client.query_many(REAL)
    assert [result.item for result in caught.value.results] == REAL
    assert all(result.value and result.distrusted for result in caught.value.results)
    with pytest.raises(SentinelError, match="1 sentinel among 2 queries: 1 not as known"):
        client(REAL[0])
    assert len(client.sentinels.report.unlike) == 2


def test_a_server_that_ruins_an_answer_is_found_like_one_that_changes_it(known, connect):
    client, _ = connect()
    client.use_sentinels(known, 0.5)
    narrow = [replace(item, bound=1e-9) for item in client.sessions.get(client.part.for_length(8)).program.instructions]
    session = client.sessions.get(client.part.for_length(8))
    session.program = session.program.model_copy(update={"instructions": tuple(narrow)})
    ((_, result),) = client.stream(["good"])
    assert "far outside the calibrated range" in result.distrusted
    none = KnownAnswer("", 8, {"y": torch.zeros(1, 3)}, {"y": 0.1}, "", "")
    answers = (torch.zeros(1, 3), torch.full((1, 3), math.nan), torch.zeros(1, 1))
    assert [none.fault({"y": y}, {}) != "" for y in answers] == [False, True, True]


# --- when a server hangs up, or is busy ------------------------------------------------------------------------------
class Leaving(ClearSession):
    """Answers falsely in the queries of `lies`, by number, and raises what `ends` has for a number; `asked` has the
    texts."""

    def __init__(self, folder: Any, *, lies: Collection[int], ends: dict[int, Exception], asked: list, **options: Any):
        super().__init__(folder, **options)
        self.lies, self.ends, self.asked = lies, ends, asked

    def _ask(self, inputs, more):
        number = len(self.asked)
        self.asked.append(str(inputs["input_ids"].tolist()))
        if number in self.ends:
            raise self.ends[number]
        answer = super()._ask(inputs, more).answer
        shift = LIE if number in self.lies else 0
        return self._reply(replace(answer, outputs={name: x + shift for name, x in answer.outputs.items()}))


@pytest.fixture
def leaving(compiled, known) -> Iterator[Callable[..., Any]]:
    """`leaving(lies, ends, shuffle)` is a client with sentinels of such a server, and what that was asked."""
    clients: list[BaseClient] = []

    def make(lies: Collection[int], ends: dict[int, Exception], shuffle: Any = list.reverse) -> Any:
        local, asked = find_local("clear"), list[str]()
        entry = replace(local.entry, local=partial(Leaving, lies=lies, ends=ends, asked=asked))
        clients.append(client := LocalClient(replace(local, entry=entry), compiled, length=8))
        client.use_sentinels(known, 0.5)
        client.sentinels.shuffle, client.sessions.wait = shuffle, 0.0
        return client, asked

    yield make
    for client in clients:
        client.close()


GONE, BUSY = PeerRefused("server", "hung up", "ask again"), SlotsBusy("server", 0.0)


@pytest.mark.parametrize("end", [GONE, BUSY])
def test_an_error_after_a_failed_sentinel_says_both(leaving, end):
    """Also where no real query was answered: reversed, sentinels come first."""
    doubt = r"sentinels: 1 sentinel among 1 queries, 2 more without an answer: 1 not as known \(known.jsonl"
    client, _ = leaving({0}, dict.fromkeys(range(1, 9), end))
    with pytest.raises(SentinelError, match=rf"server: .*; {doubt}") as caught:
        client.query_many(REAL)
    assert caught.value.ended is end
    client, _ = leaving({0}, dict.fromkeys(range(1, 9), end))
    with pytest.raises(SentinelError, match=doubt):
        client(REAL)


@pytest.mark.parametrize("end", [GONE, BUSY])
def test_a_sentinel_without_an_answer_accuses_nobody_and_is_counted(leaving, end):
    client, _ = leaving({}, dict.fromkeys(range(2, 9), end))
    with pytest.raises(type(end)):
        client.query_many(REAL)
    report = client.sentinels.report
    assert (report.asked, report.sentinels, report.unanswered, report.unlike) == (2, 2, 1, ())
    assert str(report).startswith("2 sentinels among 2 queries, 1 more without an answer: all as known; ")


@pytest.mark.parametrize("end", [GONE, BUSY])
@pytest.mark.parametrize("seed", range(6))
def test_rows_are_asked_on_in_the_order_drawn_with_the_sentinels_that_are_left(leaving, monkeypatch, end, seed):
    """So the number of queries after an abort does not depend on what was answered before, and shows nothing of it: 8
    in all, of which one is asked twice, also where that is a sentinel and the last."""
    monkeypatch.setattr(askers, "RETRY_DELAY_S", 0.001)
    if end is GONE:
        end = PeerGone("server", "hung up", "ask again")

    def shuffle(order: list[int]) -> None:
        chance.shuffle(order)
        drawn.append(len(order))

    for place in (3, 7):
        chance, drawn = Random(seed), list[int]()
        client, asked = leaving({}, {place: end}, shuffle)
        client.sessions.lost = lambda *lost: False  # no attempt of its own
        answers: dict[int, Any] = {}
        ask_all(RowClient(lambda client=client: client), dict(enumerate(["good"] * 4)), answers.__setitem__, 5.0)
        assert (len(asked), drawn) == (9, [2, 2, 8]), "nothing is drawn again"
        assert asked[place] == asked[8 if end is BUSY else place + 1]
        assert sorted(answers) == [0, 1, 2, 3]
        report = client.sentinels.report
        assert (report.asked, report.sentinels, report.unanswered, report.unlike) == (8, 4, 0, ())


def test_a_fault_before_an_abort_marks_the_rows_that_are_answered_after_it(leaving, monkeypatch):
    monkeypatch.setattr(askers, "RETRY_DELAY_S", 0.001)
    client, asked = leaving({0}, {1: PeerGone("server", "hung up", "ask again")})
    client.sessions.lost = lambda *lost: False
    answers: dict[int, Any] = {}
    ask_all(RowClient(lambda: client), dict(enumerate(REAL)), answers.__setitem__, 5.0)
    assert (len(asked), len(answers)) == (7, 3)
    assert all("1 not as known" in answer["distrusted"] for answer in answers.values())


@pytest.mark.parametrize(("real", "lies"), [(1, 1), (2, 1), (2, 3)])
def test_a_server_that_hangs_up_first_escapes_no_more_often_than_the_bound(known, compiled, real, lies):
    """It gives one answer as it should, hangs up, and lies when the client comes back. That always comes: if it came
    for the sake of real questions alone, the only one that is left of two would be known to be real."""
    part, chance, trials, escaped = load_client(compiled), Random(5), 4000, 0
    sentinels = Sentinels(known, 0.5, {8: [KnownAnswer("good", 8, {}, {}, "", "")]}, shuffle=chance.shuffle)
    sentinels.resume_same_mix = True
    questions = {number: part.encode("good", 8) for number in range(real)}
    for _ in range(trials):
        mix = sentinels.mixed(part, questions, real)
        first, *others = mix.questions
        sentinels.judge(mix, {first: ""} if first in mix.known else {}, [[first]])
        left = {number: question for number, question in questions.items() if number in others}
        rest = sentinels.mixed(part, left, real)
        assert len(rest.questions) == 2 * real - 1
        escaped += rest.known.keys().isdisjoint(list(rest.questions)[-lies:])
        sentinels.judge(rest, dict.fromkeys(rest.known, ""), [list(rest.questions)])
        assert sentinels.left is None
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
            client.use_sentinels(file, rate)
        return client, opened

    yield make
    for client in clients:
        client.close()


def test_every_party_sees_a_session_of_as_many_real_queries(recorded):
    """Message by message, in kind, size and order."""
    (plain, first), (mixed, second) = recorded(None), recorded(0.5)
    plain.query_many(["good"] * 6)
    mixed.query_many(["good"] * 3)
    assert mixed.sentinels.report.sentinels == 3
    assert first[0].lines == second[0].lines
    assert sum(line.startswith("query") for line in first[0].lines["client -> server"]) == 6


@pytest.mark.parametrize(("frame", "size"), [("an answer", 9), ("an opened value", 384)])
def test_what_a_server_falsifies_in_the_protocol_is_found_if_it_is_in_a_sentinel(recorded, frame, size):
    for falsified, fails in (({1, 2, 5}, 2), ({3, 5}, 0)):
        client, _ = recorded(0.5, falsified=falsified, size=size)
        client.sentinels.shuffle = list.reverse  # so that those asked first are sentinels
        list(client.stream(["good"] * 3))
        assert len(client.sentinels.report.unlike) == fails


# --- what is refused -------------------------------------------------------------------------------------------------
def test_known_answers_that_are_of_no_use_are_said_before_anything_is_asked(
    known, connect, compiled, chat_folder, tmp_path
):
    client, answered = connect(length=None)
    rows = [json.loads(line) for line in known.read_text().splitlines()]

    file = tmp_path / "k.jsonl"
    with pytest.raises(
        SentinelError, match=r"k.jsonl: cannot be read .*; make the file with `blindformer query --write-known`"
    ):
        client.use_sentinels(file, 0.2)
    for changed, words in (
        ([{"text": "good"}], ": holds something else than known answers"),
        ([{**rows[0], "program": "other"}], ", line 1: is of another program; make the file with"),
        ([{**rows[0], "outputs": {}}], ", line 1: has no output logits, which would not be checked"),
        ([rows[0], {**rows[0], "protocol": "ckks"}], r", line 2: is of another protocol \(ckks\)"),
        ([row for row in rows if row["length"] == 8], ""),
    ):
        file.write_text("\n".join(map(json.dumps, changed)))
        with pytest.raises(SentinelError, match=f"k.jsonl{words}") if words else nullcontext():
            client.use_sentinels(file, 0.2)
    with pytest.raises(SentinelError, match="a rate of 1 is not between 0 and 1"):
        client.use_sentinels(known, 1)
    with pytest.raises(SentinelError, match=r"k.jsonl: has answers for 8, not for 16 tokens; make them with"):
        client.query_many([REAL[0], LONG])
    assert answered == {}
    with LocalClient(find_local("clear"), chat_folder) as talking:
        for refused in (lambda: talking.use_sentinels(known, 0.2), lambda: make_known(talking, KNOWN)):
            with pytest.raises(SentinelError, match="answers token by token, and sentinels check whole answers only"):
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
