"""Every row is answered once, whatever ends or interrupts the job, and in whatever table it comes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pytest
from blindformer.parties.bulk import job as jobs
from blindformer.parties.bulk import row_clients
from blindformer.parties.bulk.job import BulkJob
from blindformer.parties.bulk.row_clients import WRITTEN, BatchAnswers, BulkError, RowClient
from blindformer.parties.client.canaries import Canaries, CanaryReport
from blindformer.parties.client.result import Result
from blindformer.parties.session.messages import SlotsBusy
from blindformer.protocols.errors import BlindformerError, PeerGone, PeerRefused
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

TEXTS = [f"letter {number}" for number in range(75)]
GONE = PeerGone("server", "closed the connection", "ask again")


class Killed(BaseException):
    """The process ends here."""


class Fake:
    """A client that answers with the length of a text, and raises what `breaks` holds for its n-th question. Of
    busy rows it returns SlotsBusy."""

    task, truncate, canaries = "text-classification", "off", None

    def __init__(self, breaks: dict[int, BaseException] | None = None, program: str = "one") -> None:
        self.part = SimpleNamespace(
            lengths={8: SimpleNamespace(program=SimpleNamespace(hash=lambda: program))}, about={}
        )
        self.breaks, self.asked = breaks or {}, Counter[str]()

    def stream(self, items: list[str], top_k: int) -> Iterator[tuple[int, Result]]:
        for place in sorted(range(len(items)), key=lambda place: items[place]):  # in an order of its own
            number, text = self.asked.total(), items[place]
            self.asked[text] += 1
            error = self.breaks.get(number)
            if isinstance(error, SlotsBusy):
                yield place, Result(text, error=error)
            elif error is not None:
                raise error
            else:
                yield place, Result(text, [{"label": f"of {text}", "score": float(len(text))}])

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(row_clients, "RETRY_DELAY_S", 0.001)
    monkeypatch.setattr(jobs, "WHOLE", 4)


def table_of(folder: Path, kind: str = ".parquet", rows: list | None = None) -> Path:
    file, texts = folder / f"in{kind}", TEXTS if rows is None else rows
    table = pa.table({"id": list(range(len(texts))), "text": pa.array(texts, pa.string())})
    if kind == ".parquet":
        parquet.write_table(table, file, row_group_size=10)
    elif kind == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    elif kind == ".txt":
        file.write_text("".join(f"{text}\n" for text in texts))
    else:
        options = pyarrow.csv.WriteOptions(delimiter="," if kind == ".csv" else "\t")
        pyarrow.csv.write_csv(table, file, options)
    return file


def answers(out: Path) -> list[dict]:
    if out.suffix == ".parquet":
        return parquet.read_table(out).to_pylist()
    if out.suffix == ".jsonl":
        return [json.loads(line) for line in out.read_text().splitlines()]
    parse = pyarrow.csv.ParseOptions(delimiter="," if out.suffix == ".csv" else "\t")
    return pyarrow.csv.read_csv(out, parse_options=parse).to_pylist()


def assert_each_once(out: Path, texts: list[str] = TEXTS) -> None:
    rows = answers(out)
    assert [row["id"] for row in rows] == list(range(len(texts)))
    assert [row["label"] for row in rows] == [f"of {text}" for text in texts]
    assert not list(out.parent.glob("*.progress"))


@pytest.mark.parametrize(("kind", "first"), [(".parquet", 1), (".csv", 2), (".tsv", 2), (".jsonl", 1), (".txt", 1)])
def test_rows_of_every_kind_are_answered_and_named_by_their_line(tmp_path, kind, first):
    out = tmp_path / "out.jsonl"
    BulkJob(table_of(tmp_path, kind), out, Fake).run()
    rows = answers(out)
    assert [row["label"] for row in rows] == [f"of {text}" for text in TEXTS]
    assert [row["line"] for row in rows] == list(range(first, first + len(TEXTS)))
    assert ("id" in rows[0]) == (kind != ".txt")


@pytest.mark.parametrize("kind", WRITTEN)
def test_answers_are_written_in_the_order_of_the_rows(tmp_path, kind):
    out, client = tmp_path / f"out{kind}", Fake()
    report = BulkJob(table_of(tmp_path), out, lambda: client).run()
    assert (report.rows, report.answered, report.failed, report.resumed) == (75, 75, 0, 0)
    assert_each_once(out)


def test_pairs_of_texts_are_rows_of_two_columns(tmp_path):
    file = tmp_path / "in.csv"
    file.write_text('question,context\nwho?,"me, and you"\nwhere?,\n')
    BulkJob(file, tmp_path / "out.csv", Fake, fields=("question", "context")).run()
    rows = answers(tmp_path / "out.csv")
    assert [row["label"] for row in rows] == ["of ('who?', 'me, and you')", ""]
    assert rows[1]["error"].startswith("a text is empty")


def test_a_row_that_cannot_be_asked_has_its_error_and_the_others_their_answers(tmp_path):
    out = tmp_path / "out.jsonl"
    report = BulkJob(table_of(tmp_path, rows=["a", "", None, "b"]), out, Fake).run()
    assert (report.answered, report.failed) == (2, 2)
    empty = "a text is empty: write something, or leave it out"
    assert [row.get("error", row.get("label")) for row in answers(out)] == ["of a", empty, empty, "of b"]
    file = tmp_path / "mixed.jsonl"
    file.write_text('{"text": "a", "id": 7}\nno\n\n{"id": "x"}\n')
    assert BulkJob(file, tmp_path / "mixed.parquet", Fake).run().failed == 2
    rows = answers(tmp_path / "mixed.parquet")
    assert [(row["line"], row["id"], row["label"]) for row in rows] == [
        (1, "7", "of a"),
        (2, None, None),
        (4, "x", None),
    ]
    assert [row["error"] and row["error"][:11] for row in rows] == [None, "is not JSON", "has no text"]


def test_what_others_have_asked_before_a_kill_is_not_asked_again(tmp_path):
    source, out, first, second = table_of(tmp_path), tmp_path / "out.csv", Fake({50: Killed()}), Fake()
    with pytest.raises(Killed):
        BulkJob(source, out, lambda: first).run()
    journal = out.with_name("out.csv.progress")
    broken = next(iter(journal.glob("*.jsonl")))
    broken.write_bytes(broken.read_bytes() + b'\0\0\0\n{"row": 74, "lab')  # as a crash may leave it
    report = BulkJob(source, out, lambda: second).run()
    assert report.resumed == 50
    assert second.asked.total() == 25
    assert (first.asked & second.asked).total() == 1, "the one that was being asked"
    assert_each_once(out)


@given(breaks=st.dictionaries(st.integers(0, 120), st.sampled_from(["gone", "busy", "killed"]), max_size=8),
       sessions=st.integers(1, 3))  # fmt: skip
def test_each_row_is_answered_once_however_often_it_is_broken_off(tmp_path_factory, breaks, sessions):
    folder = tmp_path_factory.mktemp("job")
    source, out = table_of(folder), folder / "out.parquet"
    kinds = {"gone": GONE, "busy": SlotsBusy("server", 0.0), "killed": Killed()}
    client = Fake({number: kinds[kind] for number, kind in breaks.items()})
    while not out.exists():
        try:
            BulkJob(source, out, lambda: client, sessions=sessions).run()
        except Killed:
            continue
    assert_each_once(out)


def test_a_job_that_cannot_go_on_keeps_what_it_has(tmp_path):
    source, out = table_of(tmp_path), tmp_path / "out.parquet"
    refused = Fake({30: PeerRefused("server", "does not know this certificate", "renew it")})
    with pytest.raises(BulkError, match="does not know this certificate"):
        BulkJob(source, out, lambda: refused).run()
    with pytest.raises(BulkError, match=r"closed the .*; what was answered is kept: the same command goes on"):
        BulkJob(source, out, lambda: Fake(dict.fromkeys(range(100), GONE)), patience=0.0).run()
    client = Fake()
    assert BulkJob(source, out, lambda: client).run().resumed == 30
    assert_each_once(out)


def test_a_journal_removes_only_what_it_wrote(tmp_path):
    source, out = table_of(tmp_path), tmp_path / "out.csv"
    with pytest.raises(Killed):
        BulkJob(source, out, lambda: Fake({50: Killed()})).run()
    journal = out.with_name("out.csv.progress")
    others = [journal / name for name in ("notes.txt", "000000.txt", "999999.done", "kept.json")]
    for path in others:
        path.write_text("somebody's")
    (journal / "job.json.0123456789abcdef.part").write_text("of a crash")
    BulkJob(source, out, Fake).run()
    assert [row["line"] for row in answers(out)] == list(range(1, len(TEXTS) + 1))
    assert sorted(journal.iterdir()) == sorted(others)


def test_a_folder_that_is_no_jobs_is_left_alone(tmp_path):
    source, out = table_of(tmp_path), tmp_path / "out.csv"
    others = out.with_name("out.csv.progress")
    others.mkdir()
    (others / "000000.done").write_text('{"row": 0, "label": "of somebody"}\n')
    with pytest.raises(BulkError, match=r"out.csv.progress: is no job's; give another --out, or remove that folder"):
        BulkJob(source, out, Fake).run()
    assert [path.name for path in others.iterdir()] == ["000000.done"]


def test_a_journal_belongs_to_one_job_and_one_process(tmp_path):
    source, out = table_of(tmp_path), tmp_path / "out.parquet"
    with pytest.raises(Killed):
        BulkJob(source, out, lambda: Fake({5: Killed()})).run()
    with pytest.raises(BulkError, match=r"is of another job \(another programs\); give another --out, or remove"):
        BulkJob(source, out, lambda: Fake(program="two")).run()

    class Nosy(Fake):
        def stream(self, items, top_k):
            with pytest.raises(BulkError, match="another process is at this job; wait for it"):
                BulkJob(source, out, Fake).run()
            return super().stream(items, top_k)

    BulkJob(source, out, Nosy).run()
    assert_each_once(out)
    with pytest.raises(BulkError, match="is there already; give another name"):
        BulkJob(source, out, Fake)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("in.csv", "id,text\n1,\n2,\n", "in.csv: no row can be asked; line 2: a text is empty"),
        ("in.parquet", "hi", "in.parquet: cannot be read .*; give a Parquet file"),
        ("in.txt", "", "holds no texts; there is nothing to ask"),
    ],
)
def test_what_is_no_table_is_said_in_one_line(tmp_path, name, content, problem):
    (tmp_path / name).write_text(content)
    with pytest.raises(BlindformerError, match=problem):
        BulkJob(tmp_path / name, tmp_path / "out.csv", Fake).run()
    assert not (tmp_path / "out.csv").exists()


def test_what_cannot_be_written_or_is_not_known_is_said_before_anything_is_asked(tmp_path):
    with pytest.raises(BulkError, match=r"--out .*out.xlsx: is of no kind that is written; end it in .parquet"):
        BulkJob(table_of(tmp_path), tmp_path / "out.xlsx", Fake)
    with pytest.raises(BulkError, match="--engine spark: is not known; choose one of local, ray"):
        BulkJob(table_of(tmp_path), tmp_path / "out.csv", Fake, engine="spark")


def test_embeddings_and_other_answers_have_a_column_of_their_own(tmp_path):
    class Encoder(Fake):
        task = "sentence-embedding"

        def stream(self, items, top_k):
            return ((place, Result(text, [0.5, -0.25])) for place, text in enumerate(items))

    class Finder(Encoder):
        task = "question-answering"

    for client, column, value in ((Encoder, "embedding", [0.5, -0.25]), (Finder, "answer", "[0.5, -0.25]")):
        out = tmp_path / f"{column}.parquet"
        BulkJob(table_of(tmp_path, rows=["hi"]), out, client).run()
        assert answers(out) == [{"line": 1, "id": 0, column: value, "error": None}]
    assert list(RowClient(Encoder).ask([None])) == [(0, {"error": "the row has no text"})]


def test_a_client_that_cuts_has_a_column_of_what_it_left_out_and_a_job_of_its_own(tmp_path):
    class Cutter(Fake):
        truncate = "end"

        def stream(self, items, top_k):
            for place, result in super().stream(items, top_k):
                result.truncated = max(0, len(items[place]) - 2)
                yield place, result

    source = table_of(tmp_path, rows=["letter", "a", None])
    for kind in WRITTEN:
        BulkJob(source, tmp_path / f"cut{kind}", Cutter).run()
        counts = [row.get("truncated") for row in answers(tmp_path / f"cut{kind}")]
        assert counts == [4, 0, None] if kind in (".parquet", ".jsonl") else counts[:2] == [4, 0]
    assert BatchAnswers(Cutter)({"text": ["letter", "a", ""]})["truncated"] == [4, 0, None]
    begun = tmp_path / "out.parquet"
    with pytest.raises(Killed):
        BulkJob(source, begun, lambda: Cutter({1: Killed()})).run()
    with pytest.raises(BulkError, match=r"of another job \(another truncate\)"):
        BulkJob(source, begun, Fake).run()


def test_rows_that_must_not_be_trusted_are_marked_and_counted_also_by_the_run_that_resumes(tmp_path):
    class Doubtful(Fake):
        def __init__(self, rate: float, *breaks: Any) -> None:
            super().__init__(*breaks)
            self.canaries = Canaries(Path("known"), rate, {})

        def stream(self, items, top_k):
            for place, result in super().stream(items, top_k):
                result.distrusted = "1 not as known" * (items[place] == "b")
                self.canaries.report += CanaryReport(2, 1, 1)
                yield place, result

    source, out = table_of(tmp_path, rows=["a", "b", "c", None]), tmp_path / "out.jsonl"
    with pytest.raises(Killed):
        BulkJob(source, out, lambda: Doubtful(0.2, {2: Killed()})).run()
    for other in (partial(Doubtful, 0.1), Fake):  # which would know nothing of the mark
        with pytest.raises(BulkError, match=r"of another job \(another canaries\)"):
            BulkJob(source, out, other).run()
    report = BulkJob(source, out, partial(Doubtful, 0.2)).run()
    assert (report.resumed, report.distrusted, report.canaries) == (3, 1, CanaryReport(2, 1, 1))
    assert [row.get("distrusted") for row in answers(out)] == [None, "1 not as known", None, None]


def test_a_fault_that_was_found_before_any_row_was_answered_is_reported_whatever_comes_then(tmp_path):
    """The server falsifies a canary query and hangs up; then it answers as it should, or refuses."""

    class Accused(Fake):
        def __init__(self, *breaks: Any) -> None:
            super().__init__(*breaks)
            self.canaries = Canaries(Path("known"), 0.2, {})

        def stream(self, items, top_k):
            if not self.canaries.report.asked:
                self.canaries.report += CanaryReport(1, 1, 1, 0, ("known, line 1: off",))
                raise GONE
            yield from super().stream(items, top_k)

    source, out = table_of(tmp_path, rows=["a", "b", None]), tmp_path / "out.jsonl"
    doubt = r"1 canary query among 1 queries: 1 not as known \(known, line 1: off\); do not trust these answers"
    with pytest.raises(BulkError, match=rf"refuses; go away; .* the same command goes on; canaries: {doubt}"):
        BulkJob(source, out, lambda: Accused({1: PeerRefused("server", "refuses", "go away")})).run()
    report = BulkJob(source, out, Accused).run()
    assert (report.resumed, report.canaries.unlike) == (2, ("known, line 1: off",))


def test_batches_of_ray_data_get_columns_of_answers():
    client = Fake({1: GONE, 3: SlotsBusy("server", 0.0)})
    columns = BatchAnswers(lambda: client, "letter")({"letter": ["b", "", "a", None, "c"], "id": [3, 4, 5, 6, 7]})
    assert columns["id"] == [3, 4, 5, 6, 7]
    assert columns["label"] == ["of b", None, "of a", None, "of c"]
    assert columns["error"] == [None, "the row has no text", None, "the row has no text", None]
    with pytest.raises(BulkError, match="field text: the batch has no such column; it has letter"):
        BatchAnswers(lambda: client)({"letter": ["b"]})
    with pytest.raises(BulkError, match="closed the connection"):
        BatchAnswers(lambda: Fake(dict.fromkeys(range(9), GONE)), patience=0.0)({"text": ["b"]})
    with pytest.raises(BulkError, match="the server stays busy"):
        BatchAnswers(lambda: Fake(dict.fromkeys(range(9), SlotsBusy("server", 0.0))), patience=0.0)({"text": ["b"]})
