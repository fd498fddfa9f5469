"""A small campaign: each party killed a few times, and every promise kept. And the audit: it can fail, too."""

import pytest

pytest.importorskip("transformers")

from blindformer.bench import faults
from blindformer.bench.ledgers import audit, watched_spool
from blindformer.parties.session.spool import Spool
from sqlalchemy import text


@pytest.mark.slow
@pytest.mark.parametrize(("life", "instants"), [("queries", 1), ("conversations", 1)])
def test_a_small_campaign_keeps_every_promise(measured, monkeypatch, life: str, instants: int) -> None:
    monkeypatch.setattr(faults, "REHEARSALS", 1)  # how long parts take need not be exact
    report = measured(faults, "--life", life, "--instants", instants, "--timeout", 30)
    assert report["broken"] == []
    assert [tally["victim"] for tally in report["tallies"]] == list(faults.VICTIMS)
    for tally in report["tallies"]:
        assert (tally["tried"], tally["survived"], tally["wrong"], tally["orphans"]) == (instants, instants, 0, 0)
        assert tally["asked"] > tally["lost"] >= 0
        assert tally["slowest_s"] < report["timeout_s"] + 1
    assert report["reused"] == 0
    assert report["used"] > 0
    assert sum(report["parts"].values()) == 5 * instants


def test_parts_of_a_life_are_hit_equally_often() -> None:
    generator, life = faults.random.Random(0), faults.LIVES["queries"]
    assert sorted(faults._parts(life, "client", 20, generator)) == sorted(2 * life.parts)
    assert "spooled" not in faults._parts(life, "dealer's session", 20, generator)


def test_conversations_end_whoever_is_killed_once_they_have_begun() -> None:
    life = faults.LIVES["conversations"]
    assert [part for part in life.parts if not life.must_end(part)] == ["handshake", "set-up"]
    assert not any(map(faults.LIVES["queries"].must_end, faults.LIVES["queries"].parts))


@pytest.fixture
def spools(tmp_path):
    """Two parties that made three queries' correlations ahead and used the first."""
    server, client = Spool(tmp_path / "server"), watched_spool(tmp_path / "client")
    for spool in (server, client):
        spool.begin("a" * 32, "p", "w")
        for number in range(3):
            spool.add("a" * 32, number, bytes([number + 1]) * 32, [b"corrections"] if spool is server else None)
        entry = spool.ledger.take("a" * 32, 0)
        assert entry is not None
        spool.fetch(entry)
    return server, client


def test_the_audit_finds_nothing_where_nothing_is(spools) -> None:
    server, client = spools
    audited = audit(server.folder, client.folder, answered=1)
    assert (audited.used, audited.reused, audited.damaged) == (1, [], [])


def test_the_audit_finds_more_answers_than_correlations(spools) -> None:
    server, client = spools
    assert audit(server.folder, client.folder, answered=2).reused


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE queries SET state = 'ready' WHERE number = 0",
        "DELETE FROM audit",
    ],
)
def test_the_audit_finds_what_could_be_used_again(spools, change: str) -> None:
    server, client = spools
    client.ledger.keys.write(1, bytes([1]) * 32)  # as an old copy of the folder would have it: the key is back, too
    with client.ledger.database.write() as db:
        db.execute(text(change))
    audited = audit(server.folder, client.folder, answered=0)
    assert audited.reused or audited.damaged


def test_the_audit_finds_a_key_under_two_numbers(spools) -> None:
    server, client = spools
    client.ledger.keys.write(2, bytes([1]) * 32)
    assert audit(server.folder, client.folder, answered=0).reused


def test_the_audit_finds_a_second_use(spools) -> None:
    """A ledger that was put back and used: the diary and the other party's ledger know."""
    server, client = spools
    with client.ledger.database.write() as db:
        db.execute(text("UPDATE queries SET state = 'ready' WHERE number = 0"))
        db.execute(text("DELETE FROM audit"))
    client.ledger.keys.write(1, bytes([1]) * 32)
    client.ledger.take("a" * 32, 0)
    assert len(audit(server.folder, client.folder, answered=1).reused) == 2  # the key, and the number


def test_the_audit_finds_files_that_are_not_right(spools) -> None:
    server, client = spools
    first, second = sorted(server.folder.glob("*/*"))
    first.write_bytes(b"damaged")
    second.unlink()
    (first.parent / "99").write_bytes(b"nobody's")
    damaged = audit(server.folder, client.folder, answered=1).damaged
    assert len(damaged) == 2, damaged  # what belongs to nothing is swept
