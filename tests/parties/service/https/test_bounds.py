"""What bounds the service, one by one and without a network: bodies, keys on disk, admission."""

from __future__ import annotations

import asyncio
import io
from types import SimpleNamespace

import pytest
from blindformer.parties.service.admission import ServiceLimits
from blindformer.parties.service.https.app import OnlyClients, RequestService
from blindformer.parties.service.https.bodies import Bodies, Refusal
from blindformer.parties.service.https.queries import KeyStore, RequestAdmission
from blindformer.parties.service.logs import Log
from blindformer.parties.session.compute_slots import SlotsBusy
from blindformer.protocols.ckks.facts import CircuitNeeds
from blindformer.protocols.ckks.frames import most
from blindformer.protocols.ckks.parameters import insecure_parameters

FACTS = CircuitNeeds("ab" * 32, insecure_parameters(1024, 3), 1, (3,), {0: 0}, {1: 3})
SIZE = most(FACTS.key_items())


# Bodies.


def body(*pieces, length=None, pause=0.0):
    """A request whose body comes in these pieces."""
    left = list(pieces)

    async def receive():
        await asyncio.sleep(pause)
        return left.pop(0)

    headers = {} if length is None else {"content-length": str(length)}
    return SimpleNamespace(headers=headers, receive=receive, state=SimpleNamespace())


def piece(data, more=True):
    return {"type": "http.request", "body": data, "more_body": more}


def read(request, limit=10, silence=1.0, whole=5.0):
    return asyncio.run(Bodies(silence, whole).all(request, limit))


def test_a_body_is_read_whole():
    assert read(body(piece(b"abc"), piece(b"defg"), piece(b"", more=False))) == b"abcdefg"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (body(length=11), 413),
        (body(piece(b"x" * 8), piece(b"x" * 8, more=False)), 413),
        (body(piece(b"x"), {"type": "http.disconnect"}), 400),
        (body(piece(b"x"), pause=3.0), 408),
    ],
    ids=["declared too long", "too long", "ended", "silent"],
)
def test_bodies_that_are_too_long_or_too_slow_are_refused(request_, status):
    with pytest.raises(Refusal) as caught:
        read(request_, silence=0.05 if status == 408 else 1.0)
    assert caught.value.status == status


def test_a_body_that_trickles_is_refused_in_the_end():
    with pytest.raises(Refusal, match="did not come in time"):
        read(body(*[piece(b"")] * 1000, pause=0.01), whole=0.2)


# Keys on disk.


class NoModel(RequestService):
    """With these keys, and nothing to answer a query."""

    def __init__(self, store, uploads=1, revoked=lambda serial: False):
        self.log, self.identity = Log("server", stream=io.StringIO()), SimpleNamespace(revoked=revoked)
        self.store, self.bodies, self.key_bodies = store, Bodies(1.0, 5.0), asyncio.Semaphore(uploads)


@pytest.fixture
def now():
    return SimpleNamespace(time=0.0)


@pytest.fixture
def store(tmp_path, now):
    gone = []
    key_store = KeyStore(tmp_path, most_bytes=3 * SIZE, most_sets=10, each=2, seconds=60, forgotten=gone.append,
                    clock=lambda: now.time)  # fmt: skip
    key_store.gone = gone
    return key_store


def whole(store, owner):
    item = store.reserve(owner, FACTS)
    item.whole = True
    return item


def test_keys_that_nobody_uses_expire(store, now):
    item = whole(store, "a")
    now.time = 50
    assert store.find("a", item.name) is item
    now.time = 100
    store.find("a", item.name)
    now.time = 161
    with pytest.raises(Refusal, match="send keys again") as caught:
        store.find("a", item.name)
    assert caught.value.status == 410
    assert store.gone == [item.name]
    assert not item.folder.exists()


def test_what_was_used_least_lately_makes_room(store, now):
    items = []
    for owner in "abc":
        now.time += 1
        items.append(whole(store, owner))
    now.time += 1
    store.find("a", items[0].name)
    whole(store, "d")
    assert store.gone == [items[1].name]
    assert store.bytes <= 3 * SIZE


def test_one_certificate_displaces_its_own_keys(store, now):
    items = []
    for _ in range(3):
        now.time += 1
        items.append(whole(store, "a"))
    assert store.gone == [items[0].name]


def test_keys_in_use_stay_and_the_next_is_told_to_wait(store):
    items = [whole(store, owner) for owner in "abc"]
    for item in items:
        item.users = 1
    with pytest.raises(SlotsBusy) as caught:
        store.reserve("d", FACTS)
    assert (caught.value.retry_after > 0, store.gone) == (True, [])


def test_keys_are_found_by_their_owner_alone_and_when_they_are_whole(store):
    item = store.reserve("a", FACTS)
    for owner, status in (("b", 410), ("a", 409)):
        with pytest.raises(Refusal) as caught:
            store.find(owner, item.name)
        assert caught.value.status == status


def test_keys_whose_upload_is_cut_leave_nothing(store):
    service = NoModel(store)
    item = store.reserve("a", FACTS)
    with pytest.raises(Refusal) as caught:
        asyncio.run(service.take(item, body(piece(b"BF"), {"type": "http.disconnect"})))
    assert (caught.value.status, item.folder.exists(), store.bytes) == (400, False, 0)
    assert not service.key_bodies.locked()


def test_more_uploads_than_there_is_room_for_wait(store):
    service = NoModel(store, uploads=0)
    with pytest.raises(SlotsBusy, match="others are sending keys") as caught:
        asyncio.run(service.take(store.reserve("a", FACTS), body()))
    assert caught.value.retry_after == 10


def test_who_was_revoked_since_the_handshake_is_refused():
    async def ask(serial):
        sent = []

        async def app(scope, receive, send):
            await send({"type": "http.response.start", "status": 200})

        async def send(message):
            sent.append(message)

        state = {"role": "client", "peer": "ab", "serial": serial, "take_place": lambda: None}
        scope = {"type": "http", "state": state}
        await OnlyClients(app, NoModel(None, revoked=lambda serial: serial == "BAD"))(scope, None, send)
        return sent

    assert asyncio.run(ask("A"))[0]["status"] == 200
    start, body = asyncio.run(ask("BAD"))
    assert start["status"] == 403
    assert b"this certificate was revoked; ask whoever runs the CA for a new one" in body["body"]


# Admission.


def test_queries_take_turns_and_whoever_leaves_gives_its_own_up():
    """Bounds are those of admission (service/test_admission.py)."""

    async def run():
        admission, order = RequestAdmission(ServiceLimits(sessions=9, workers=1, queue=2, share=1.0)), []

        async def query(connection):
            await admission.wait(connection)
            order.append(connection)

        for connection in range(4):
            assert admission.open(connection, "a") is None
        tasks = [asyncio.create_task(query(connection)) for connection in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(SlotsBusy, match="the queue is full") as caught:
            await query(3)
        assert (caught.value.retry_after > 0, admission.gauges) == (True, {"running": 1, "queued": 2})
        admission.leave(1)
        admission.leave(0)  # but for its query, which ends later, and holds its place until then
        await asyncio.sleep(0)
        assert (order, admission.gauges) == ([0], {"running": 1, "queued": 1})
        admission.release(0)
        await asyncio.wait(tasks)
        assert tasks[1].cancelled()
        assert admission.gauges == {"running": 1, "queued": 0}
        with pytest.raises(Refusal, match="the connection has ended"):
            admission.check(1)
        return order

    assert asyncio.run(run()) == [0, 2]
