"""Bulk jobs through Ray Data on a cluster of this machine: answered once, resumed, and no trace left in the process."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from blindformer.parties.bulk import job as jobs
from blindformer.parties.bulk.job import BulkJob
from blindformer.parties.bulk.row_clients import BulkError, connect
from blindformer.parties.client.result import Result
from blindformer.protocols.errors import PeerRefused
from blindformer.tests.shared.processes import alone

ray = pytest.importorskip("ray", reason="a cluster needs Ray: pip install 'blindformer[scale]'")
pytestmark = pytest.mark.slow
ROWS = 30


class Numbered:
    """A client that answers with the process that asked, and refuses the text `refused`. It kills its process, once
    in all, before it answers `fatal`, which `mark` notes."""

    task, truncate, canaries = "text-classification", "off", None

    def __init__(self, refused: str = "", fatal: str = "", mark: Path | None = None) -> None:
        self.part = SimpleNamespace(lengths={8: SimpleNamespace(program=SimpleNamespace(hash=lambda: "one"))}, about={})
        self.refused, self.fatal, self.mark = refused, fatal, mark

    def stream(self, items: list[Any], top_k: int) -> Iterator[tuple[int, Result]]:
        for place, text in enumerate(items):
            if text == self.refused:
                raise PeerRefused("server", "does not know this certificate", "renew it")
            if text == self.fatal and self.mark is not None and not self.mark.exists():
                self.mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield place, Result(text, [{"label": f"of {text}", "score": float(os.getpid())}])

    def close(self) -> None:
        pass


def job_of(folder: Path, make: Callable[[], Any], **options: Any) -> BulkJob:
    return BulkJob(folder / "in.jsonl", folder / "out.jsonl", make, engine="ray", sessions=2, **options)


def answered_and_resumed(folder: Path) -> list[Any]:
    """In a process of its own: Ray leaves threads."""

    def own(*_: object) -> None: ...

    signal.signal(signal.SIGTERM, own)
    jobs.WHOLE = 4
    (folder / "in.jsonl").write_text("".join(f'{{"text": "letter {row}"}}\n' for row in range(ROWS)) + '{"text": ""}\n')
    refusal = ""
    try:
        job_of(folder, partial(Numbered, refused="letter 29")).run()
    except BulkError as error:
        refusal = str(error)
    report = job_of(folder, partial(Numbered, fatal="letter 29", mark=folder / "killed")).run()
    pairs = folder / "pairs.csv"
    pairs.write_text("question,context\nwho?,me\n")
    options: dict[str, Any] = {"fields": ("question", "context"), "engine": "ray"}
    BulkJob(pairs, folder / "pairs.jsonl", Numbered, **options).run()
    beside = signal.getsignal(signal.SIGTERM) is own
    ray.shutdown()
    left = signal.getsignal(signal.SIGTERM) is own
    return [refusal, (report.answered, report.failed, report.resumed), os.getpid(), beside, left]


def test_rows_are_answered_by_other_processes_once_and_resumed(monkeypatch, tmp_path, capfd):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    refusal, counts, driver, *own = alone(answered_and_resumed, tmp_path)
    assert refusal.startswith("server: does not know this certificate; renew it")
    assert counts[:2] == (ROWS, 1)
    assert counts[2] > 4, "all that was answered before"
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row.get("label") for row in rows] == [*(f"of letter {row}" for row in range(ROWS)), None]
    assert rows[-1] == {"line": ROWS + 1, "error": "a text is empty: write something, or leave it out"}
    assert driver not in {row.get("score") for row in rows}
    assert (tmp_path / "killed").exists(), "a process that dies is replaced"
    assert json.loads((tmp_path / "pairs.jsonl").read_text())["label"] == "of ('who?', 'me')"
    assert own == [True, True], "a command that has a cluster ends at SIGTERM as any other"
    written = capfd.readouterr().err.splitlines()
    assert all("core_worker.cc" in line for line in written), "of Ray itself, written in C++"


def test_a_cluster_that_is_not_there_is_one_line(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(ray, "init", lambda *_, **__: (_ for _ in ()).throw(ConnectionError("no\nanswer")))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(BulkError, match=r"RAY_ADDRESS 127.0.0.1:1: no Ray cluster answers there \(no answer\)"):
        connect()
