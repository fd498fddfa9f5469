"""Admission: sessions, workers, the queue, and who comes next."""

from __future__ import annotations

import pytest
from blindformer.parties.service.admission import RETRY_LEAST, RETRY_MOST, Admission, Busy, Go, Queued, ServiceLimits
from blindformer.tests.parties.service.clock import Clock
from hypothesis import given
from hypothesis import strategies as st


def make(owners: dict[int, str], clock=None, **limits) -> Admission:
    """With a session open for each child of `owners`."""
    admission = Admission(
        ServiceLimits(**{"sessions": 50, "workers": 1, "queue": 10, "share": 1.0, **limits}), clock or Clock()
    )
    for child, owner in owners.items():
        assert admission.open(child, owner) == Go()
    return admission


@pytest.mark.parametrize(
    ("owners", "limits", "owner", "why"),
    [
        ("ab", {"sessions": 2}, "c", "all sessions are taken"),
        ("aa", {"sessions": 4, "share": 0.5}, "a", "this certificate holds all the sessions that one may"),
    ],
)
def test_sessions_are_bounded_for_all_and_for_each_certificate_and_come_back(owners, limits, owner, why):
    admission = make(dict(enumerate(owners)), **limits)
    verdict = admission.open(3, owner)
    assert isinstance(verdict, Busy)
    assert RETRY_LEAST <= verdict.seconds <= RETRY_MOST
    assert why in verdict.why
    if "share" in limits:
        assert admission.open(4, "b") == Go()
    admission.leave(1)
    assert admission.open(3, owner) == Go()
    with pytest.raises(ValueError, match="a session already"):
        admission.open(3, owner)


def test_one_goes_the_others_queue_and_move_up():
    admission = make({1: "a", 2: "b", 3: "c"})
    assert [admission.want(child) for child in (1, 2, 3)] == [Go(), Queued(0), Queued(1)]
    assert admission.release(1) == [(2, Go()), (3, Queued(0))]
    assert admission.release(2) == [(3, Go())]
    assert admission.release(3) == []
    assert (admission.running, admission.queued) == (0, 0)


def test_the_queue_is_bounded_and_says_when_to_come_back():
    clock = Clock()
    admission = make(dict.fromkeys(range(5), "a"), clock, queue=2, workers=2)
    for child in (0, 1):
        assert admission.want(child) == Go()
    clock.now = 8.0
    admission.release(0)
    assert admission.want(0) == Go()
    assert [admission.want(child) for child in (2, 3)] == [Queued(0), Queued(1)]
    verdict = admission.want(4)
    assert isinstance(verdict, Busy)
    assert verdict.seconds == 8.0 * 3 / 2  # recent seconds of a query, times those before it, over the workers
    assert admission.release(1) == [(2, Go()), (3, Queued(0))]
    assert admission.want(4) == Queued(1)


def test_one_certificate_holds_its_share_of_the_queue_at_most():
    admission = make({1: "a", 2: "a", 3: "a", 4: "b", 5: "a"}, queue=4, share=0.5, sessions=9)
    assert [admission.want(child) for child in (1, 2, 3)] == [Go(), Queued(0), Queued(1)]
    verdict = admission.want(5)
    assert verdict == admission.check(5)
    assert isinstance(verdict, Busy)
    assert "this certificate" in verdict.why
    assert admission.check(4) is None
    assert isinstance(admission.want(4), Queued)


def test_a_free_worker_goes_to_whoever_has_the_fewest():
    admission = make({1: "many", 2: "many", 3: "many", 4: "one"}, workers=1)
    assert [admission.want(child) for child in (1, 2, 3)] == [Go(), Queued(0), Queued(1)]
    assert admission.want(4) == Queued(0)  # before the others: its owner computes nothing
    assert admission.release(1) == [(4, Go())]
    assert admission.want(1) == Queued(2)
    assert admission.release(4) == [(2, Go()), (3, Queued(0)), (1, Queued(1))]
    assert admission.want(4) == Queued(0)


def test_owners_take_turns():
    children = {number: "ab"[number // 4] for number in range(8)}  # a's four come first, then b's
    admission = make(children)
    for child in children:
        admission.want(child)
    order = [0]
    while admission.queued:
        ((child, _), *_) = admission.release(order[-1])
        order.append(child)
    assert "".join(children[child] for child in order) == "abababab"


def test_the_dead_give_back_what_they_held():
    admission = make({1: "a", 2: "b", 3: "c"})
    for child in (1, 2, 3):
        admission.want(child)
    assert admission.leave(2) == [(3, Queued(0))]  # it waited
    assert admission.leave(1) == [(3, Go())]  # it computed
    assert admission.leave(1) == []
    assert (admission.sessions, admission.running, admission.queued) == (1, 1, 0)


def test_what_makes_no_sense_is_refused():
    admission = make({1: "a"})
    with pytest.raises(ValueError, match="no session"):
        admission.want(2)
    with pytest.raises(ValueError, match="no query"):
        admission.release(1)
    admission.want(1)
    with pytest.raises(ValueError, match="a query already"):
        admission.want(1)


def test_a_query_that_takes_too_long_is_found():
    clock = Clock()
    admission = make({1: "a", 2: "a"}, clock, query_seconds=60, workers=2)
    admission.want(1)
    clock.now = 59
    admission.want(2)
    assert admission.overdue() == []
    clock.now = 60
    assert admission.overdue() == [1]


STEP = st.tuples(st.sampled_from(["open", "want", "release", "leave"]), st.integers(0, 9))


@given(steps=st.lists(STEP, max_size=80), workers=st.integers(1, 3), queue=st.integers(0, 4), share=st.floats(0.1, 1))
def test_whatever_happens_the_bounds_hold_and_no_worker_idles_while_one_waits(steps, workers, queue, share):
    admission = Admission(ServiceLimits(sessions=6, workers=workers, queue=queue, share=share), Clock())
    verdicts: dict[int, Go | Queued] = {}
    for what, child in steps:
        try:
            if what == "open":
                admission.open(child, "abc"[child % 3])
                news = []
            elif what == "want":
                verdict = admission.want(child)
                news = [] if isinstance(verdict, Busy) else [(child, verdict)]
            else:
                news = admission.release(child) if what == "release" else admission.leave(child)
                verdicts.pop(child, None)
        except ValueError:
            continue
        verdicts.update(dict(news))
        assert admission.sessions <= 6
        assert admission.running <= workers
        assert admission.queued <= queue
        assert not (admission.queued and admission.running < workers)
        # Everybody knows where it stands: those told to go, those told their place, each place once.
        assert sum(isinstance(verdict, Go) for verdict in verdicts.values()) == admission.running
        places = sorted(verdict.place for verdict in verdicts.values() if isinstance(verdict, Queued))
        assert len(places) == admission.queued
