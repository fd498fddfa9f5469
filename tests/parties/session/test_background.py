"""Work in the background: it ends with its session, and never while a process is being taken down."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest
from blindformer.models.program.correlations import LARGE
from blindformer.parties.session.preprocessed import BackgroundTask, Pace, SessionOver, TaskQueue
from blindformer.protocols.beaver.values import Tape
from blindformer.tests.patience import PATIENCE
from blindformer.tests.shared.memory import memory_pair

IN_TORCH = """
import threading, torch
from blindformer.parties.session.preprocessed import TaskQueue
torch.set_num_threads(1)
begun, background = threading.Event(), TaskQueue()
left = right = torch.ones({size}, {size}, dtype=torch.int64)
def make():
    begun.set()
    left @ right
    while {again}:
        background.step()
        left @ right
background.begin(make, "test")
begun.wait()
"""


@pytest.fixture
def peer():
    return memory_pair("here", "there", PATIENCE)[0]


def end_of(program: str, size: int, again: bool) -> tuple[int, str]:
    """The exit code, and what is said on stderr, of a process in whose background torch multiplies matrices."""
    code = IN_TORCH.format(size=size, again=again) + program
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=PATIENCE)
    return ended.returncode, ended.stderr


@pytest.mark.slow
def test_a_process_waits_for_an_operation_that_takes_long():
    """A thread that comes out of C++ when the interpreter is gone would take the process down with it (exit 134)."""
    assert end_of("", 1500, again=False) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize(("ending", "code"), [("raise SystemExit(3)", 3), ("raise KeyboardInterrupt", -2)])
def test_a_process_ends_while_work_goes_on_in_the_background(ending, code):
    ended, words = end_of(f"try: {ending}\nfinally: background.stop()", 400, again=True)
    assert ended == code
    assert "terminate" not in words


def test_stopped_work_ends_between_two_steps_and_what_waits_behind_it_never_begins(peer):
    background, begun, steps, later = TaskQueue(), threading.Event(), [], []

    def make() -> None:
        while True:
            background.step()
            steps.append(1)
            begun.set()

    work = background.begin(make, "first")
    behind = background.begin(lambda: later.append(1), "second")
    assert begun.wait(PATIENCE)
    background.stop()
    assert background.join(PATIENCE)
    assert later == []
    for ended in (work, behind):
        with pytest.raises(SessionOver):
            ended.result([peer], "test")


def test_work_goes_one_after_the_other():
    background, order = TaskQueue(), []
    works = [background.begin(lambda number=number: order.append(number), "test") for number in range(20)]
    assert background.join(PATIENCE)
    assert order == list(range(20))
    assert all(work.join(0) for work in works)


def test_an_error_is_raised_where_the_result_is_asked_for(peer):
    def make() -> None:
        raise ValueError("bug")

    work = BackgroundTask(make, "test")
    assert work.join(PATIENCE)
    with pytest.raises(ValueError, match="bug"):
        work.result([peer], "test")


def tape_of(entries: int) -> Tape:
    tape = Tape()
    for number in range(entries):
        tape.put(str(number), number)
    return tape


def test_the_next_correlations_grow_as_the_present_ones_are_used():
    """Together there are never more than one run has, nor does the next run wait for the end of the present one."""
    background, present, made, used = TaskQueue(), tape_of(10), threading.Semaphore(0), []
    pace = Pace(background)
    pace.made(present)

    def make() -> None:
        for ahead in range(1, 11):
            pace.wait(ahead, 10, LARGE + 1)
            used.append(10 - len(present))
            made.release()

    work = background.begin(make, "next")
    for number in range(10):
        assert not made.acquire(blocking=False)
        present.take(str(number), int)
        assert made.acquire(timeout=PATIENCE)
    assert work.join(PATIENCE)
    assert used == list(range(1, 11))


def test_what_a_party_waits_for_room_is_no_time_that_correlations_take():
    pace, present = Pace(TaskQueue()), tape_of(10)
    pace.made(present)
    threading.Timer(0.2, lambda: [present.take(str(number), int) for number in range(10)]).start()
    since = time.monotonic()
    pace.wait(10, 10, LARGE + 1)
    assert 0.1 < pace.waited <= time.monotonic() - since


def test_small_correlations_wait_for_nothing_nor_do_any_once_the_present_ones_are_gone():
    pace, present = Pace(TaskQueue()), tape_of(10)
    pace.made(present)
    pace.wait(10, 10, LARGE)
    del present
    pace.wait(10, 10, LARGE + 1)


def test_a_run_that_never_comes_keeps_nobody_waiting():
    """Its tape goes with its task, though the next task was begun before that one ended."""
    background = TaskQueue()
    pace, begin = Pace(background), threading.Event()

    def first() -> Tape:
        begin.wait(PATIENCE)
        return pace.made(tape_of(10))

    background.begin(first, "never used")
    behind = background.begin(lambda: pace.wait(10, 10, LARGE + 1), "next")
    begin.set()
    assert behind.join(PATIENCE)


def test_who_waits_for_room_says_so_to_its_peer_and_stops_with_its_session():
    here, there = memory_pair("here", "there", PATIENCE)
    here.timeout = 0.0
    background, present = TaskQueue(), tape_of(10)
    pace = Pace(background)
    pace.made(present)
    work = background.begin(lambda: pace.wait(1, 10, LARGE + 1, here), "next")
    assert there.recv_message() == {"waiting": "room"}
    background.stop()
    with pytest.raises(SessionOver):
        work.result([there], "test")
