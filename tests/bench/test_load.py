"""A service under load, and a gateway: figures that agree with each other."""

from __future__ import annotations

import threading
import time

import pytest
from blindformer.bench import gateway, load
from blindformer.models.building import compile_folder
from blindformer.tests.shared import clients


@pytest.mark.slow
def test_a_few_seconds_of_load(measured):
    report = measured(load, "--clients", 3, "--seconds", 5, "--single-seconds", 3, "--length", 8)
    single, many = (report[name] for name in ("single", "many"))
    assert (single["clients"], many["clients"]) == (1, 3)
    for phase in (single, many):
        assert phase["wrong"] == 0
        assert phase["queries"] > 0
        assert phase["per_second"] == pytest.approx(phase["queries"] / phase["seconds"])
        assert phase["latency_p50_s"] <= phase["latency_p95_s"] <= phase["latency_max_s"]
        assert phase["fewest"] <= phase["queries"] / phase["clients"] <= phase["most"]
        assert phase["memory_max_mb"] == pytest.approx(max(phase["memory_mb"]), abs=0.1)


def test_the_table_of_a_load_sets_many_beside_one_and_wrong_answers_are_broken():
    figures = ("seconds", "queries", "per_second", "fewest", "most", "latency_p50_s", "latency_p95_s", "wrong", "busy")
    more = ("cpu_cores", "memory_idle_mb", "memory_max_mb", "memory_slope_mb_per_minute")
    phase = dict.fromkeys((*figures, *more), 2)
    report = {"model": "small", "length": 8, "plan": "faithful", "workers": 2, "ratio": 1.5}
    report |= {"single": {**phase, "clients": 1}, "many": {**phase, "clients": 3}}
    table, summary = load.show(report)
    assert [str(cell) for cell in table.columns[2].cells][2] == "2.00"
    assert summary == "3 clients reach 1.50 of what one reaches"
    assert load.broken(report) == "4 wrong answers"


def test_slope_is_of_the_second_half():
    rising = [(float(second), 10.0 * max(0, second - 10)) for second in range(20)]
    assert load._slope(rising) == pytest.approx(600)
    assert load._slope([(float(s), 0.0 if s < 10 else 5.0) for s in range(20)]) == pytest.approx(0)


def test_both_ways_to_a_gateway_are_measured(measured, tiny_encoder, tmp_path):
    compiled = compile_folder(tiny_encoder, tmp_path, lengths=[8], calibration=["how good my login is ."])
    report = measured(gateway, "--model", compiled, "--count", 2, "--pause", 0)
    assert report["direct_s"] > 0
    assert report["added_s"] == report["gateway_s"] - report["direct_s"]


class Heard:
    """A client whose other end is here."""

    listen = clients.ClientProcess.listen

    def __init__(self) -> None:
        self._pipe, self.its = clients.PROCESSES.Pipe()
        self.events: list[dict] = []

    def send(self, times: int) -> None:
        for _ in range(times):
            self.its.send({"event": "answered", "seconds": 0.1})
        self.its.close()


def test_a_client_that_sends_more_than_its_pipe_holds_is_heard():
    client = Heard()
    thread = threading.Thread(target=client.send, args=(3000,), daemon=True)
    thread.start()
    clients.hear([client], time.monotonic() + 1.0)
    assert len(client.events) == 3000
    thread.join()
