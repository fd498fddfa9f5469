"""How many texts one name may ask: never more in any period, over restarts and from many processes."""

from __future__ import annotations

import os
import re
import time

import pytest
from blindformer.parties.config import ServerSection
from blindformer.parties.service import quota as quota_module
from blindformer.parties.service.quota import FILE, SLOTS, Quota, QuotaError, quota_of
from blindformer.parties.session.messages import LimitReached
from blindformer.protocols.forks import fork
from blindformer.tests.parties.service.clock import Clock
from blindformer.tests.shared.processes import alone
from hypothesis import given, settings
from hypothesis import strategies as st

DAY = 86400.0


@pytest.fixture
def clock():
    return Clock(1_790_000_000.0)


@pytest.fixture(params=["SQLite", "Postgres"])
def where(request, tmp_path):
    return request.getfixturevalue("postgres").new() if request.param == "Postgres" else tmp_path / "state"


@pytest.fixture
def make(where, clock):
    return lambda each=10, period=DAY: Quota(where, each, period, lambda db: clock())


def granted(quota: Quota, name: str, texts: int = 1) -> bool:
    try:
        quota.spend(name, texts)
    except LimitReached:
        return False
    return True


def test_each_name_has_its_own_count_which_outlasts_a_restart(make, clock):
    quota = make()
    assert [granted(quota, "alice", texts) for texts in (4, 4, 4, 2, 1)] == [True, True, False, True, False]
    assert granted(quota, "bob", 10)
    again = make()
    with pytest.raises(LimitReached) as caught:
        again.spend("alice", 1)
    error = caught.value
    assert (error.each, error.period) == (10, DAY)
    assert DAY < error.retry_after <= DAY + DAY / SLOTS
    assert re.fullmatch(
        r"server: has answered the 10 texts that one certificate may ask in 1 day; "
        r"ask again in 1(\.\d+)? days?, at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC",
        str(error),
    )
    clock.now += error.retry_after - 1
    assert not granted(again, "alice")
    clock.now += 1
    assert granted(again, "alice", 10), "as it was told"
    if (file := make().database.file) is not None:
        assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)


@settings(max_examples=10)
@given(steps=st.lists(st.tuples(st.floats(0, 40), st.integers(1, 4)), min_size=10, max_size=25))
def test_no_period_holds_more_than_the_limit(tmp_path_factory, steps):
    clock = Clock(1000.0)
    quota, given_out = Quota(tmp_path_factory.mktemp("q"), 6, 60.0, lambda db: clock()), []
    for pause, texts in steps:
        clock.now += pause
        if granted(quota, "alice", texts):
            given_out.append((clock.now, texts))
    for end, _ in given_out:
        assert sum(texts for at, texts in given_out if end - 60.0 < at <= end) <= 6


def test_a_clock_that_is_set_back_frees_nothing(make, clock):
    quota = make()
    quota.spend("alice", 10)
    clock.now -= 30 * DAY
    assert not granted(quota, "alice")
    assert not granted(make(each=5, period=60.0), "alice"), "nor does another limit, until its own period is over"
    clock.now += 32 * DAY
    assert granted(quota, "alice")


def test_a_clock_that_is_ahead_for_a_moment_frees_nothing(tmp_path, monkeypatch):
    """A name's whole limit would be free in that moment, and again when the clock is right."""
    now, up = Clock(1_790_000_000.0), Clock(5_000.0)
    boot = "first"
    monkeypatch.setattr(quota_module.time, "time", now)
    monkeypatch.setattr(quota_module, "uptime", lambda: (boot, up.now))
    quota = Quota(tmp_path, 10, DAY)
    quota.spend("alice", 10)
    now.now += 30 * DAY
    assert not granted(quota, "alice")
    assert not granted(Quota(tmp_path, 10, DAY), "alice"), "nor in a process that starts then"
    now.now -= 60 * DAY
    up.now += DAY - 1
    assert not granted(quota, "alice")
    up.now += 1 + DAY / SLOTS
    assert granted(quota, "alice", 10), "what has passed counts, whatever the clock says"
    boot, up.now = "second", 1.0
    again = Quota(tmp_path, 10, DAY)
    assert not granted(again, "alice"), "of a machine that was started anew no earlier time is believed"
    up.now += DAY + DAY / SLOTS
    assert granted(again, "alice")


def test_replicas_ask_the_clock_of_their_database(postgres, monkeypatch):
    where = postgres.new()
    Quota(where, 10, DAY).spend("alice", 10)
    ahead = time.time() + 30 * DAY
    monkeypatch.setattr(quota_module.time, "time", lambda: ahead)
    assert not granted(Quota(where, 10, DAY), "alice")
    assert granted(Quota(where, 10, DAY), "bob", 10)


@pytest.mark.slow
def test_processes_share_one_count_that_was_open_before_the_fork(where, make, clock):
    assert alone(spend_in_children, where, clock.now) == 49
    assert not granted(make(each=50), "alice")


def spend_in_children(where, now: float) -> int:
    """What four processes spend of 50 that are there, once this one has spent one."""
    quota = Quota(where, 50, DAY, lambda db: now)
    quota.spend("alice", 1)
    counts, out = os.pipe()
    for _ in range(4):
        if not fork():
            try:
                os.write(out, bytes([sum(granted(quota, "alice") for _ in range(20))]))
            finally:
                os._exit(0)
    return sum(os.read(counts, 1)[0] for _ in range(4))


def test_what_cannot_be_counted_is_one_line(tmp_path):
    with pytest.raises(QuotaError, match=r"no folder for that is given; set server.state, or say --state"):
        quota_of(ServerSection(queries_each=5), 1)
    with pytest.raises(QuotaError, match=r"server.queries_each = 5: one request carries 8 texts or images; raise it"):
        quota_of(ServerSection(queries_each=5, state=tmp_path), 8)
    assert quota_of(ServerSection(state=tmp_path), 1) is None
    (tmp_path / "file").write_text("")
    with pytest.raises(QuotaError, match=r"file/queries.sqlite: cannot be used \(File exists\); see whether"):
        Quota(tmp_path / "file", 5, DAY)
    quota = Quota(tmp_path / "state", 5, DAY)
    (tmp_path / "state" / FILE).write_text("nonsense " * 1000)
    for use in (lambda: Quota(tmp_path / "state", 5, DAY), lambda: quota.spend("alice", 1)):
        with pytest.raises(QuotaError, match=r"is damaged; move it away .*; without it no query is answered"):
            use()
