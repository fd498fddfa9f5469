"""Both ends of a session of encrypted queries (protocol ckks), on one connection, after the hello.

    server -> client   {"ready": true}
    client -> server   {"kept": name}                   -> {"kept": true | false}    whether keys of before are there
                       {"upload": true}                 -> {"name": name}; then the keys -> {"whole": name}
                       {"forget": name}
                       {"query": n, "keys": name}, then ciphertexts
    server -> client   {"queued": place}*, {"step": k}*, {"waiting": true}*
                       {"done": n, "seconds": s}, then ciphertexts
                       {"gone": n}                                                    no keys under that name

Each key and each ciphertext is {"bytes": b}, then a frame. How many there are, and to what each inflates, both know
from the circuit, whose hash is in the hello. So a length that cannot be is refused before a byte is allocated for it.

The server learns sizes and times. It computes in a process of its own (isolated.py), which alone lets SEAL read a
client's bytes. Nothing is decrypted before all of a reply is here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Literal, Protocol

from pydantic import StringConstraints

from ...protocols.channel import Channel
from ...protocols.ckks.facts import CircuitNeeds, Item
from ...protocols.ckks.isolated import Isolated, IsolatedEnded, Say, pack, unpack
from ...protocols.ckks.sealed import SealedError, check_sealed
from ...protocols.errors import PeerGone, PeerProtocolError, PeerRefused, PeerTimeout
from .messages import ComputeSlots, Message, Waiting, goodbye, out_of_place, read, receive_expected, refusing, requests
from .online import OnQuery, Timings, peak_rss_mb, rss_mb
from .preprocessing_store import Number

PROTOCOL, SERVER = "ckks", "server"
NEWS_SECONDS = 10.0  # between two signs of life of a query that computes
GONE = "has no keys of this certificate under that name: never sent, or expired"

KeyName = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$", strict=True)]


class KeysGone(PeerRefused):
    """The server has no keys of this client, or no more."""


class Sealed(Message):
    """A frame of so many bytes follows."""

    bytes: Number


class Kept(Message):
    kept: KeyName


class Named(Message):
    name: KeyName


class Upload(Message):
    upload: Literal[True]


class Forget(Message):
    forget: KeyName


class Query(Message):
    query: Number
    keys: KeyName


def send_sealed(channel: Channel, sealed: Iterable[bytes]) -> None:
    for data in sealed:
        channel.send_message({"bytes": len(data)})
        channel.send(data)


def receive_sealed(channel: Channel, items: Iterable[Item], seconds: float = math.inf) -> Iterator[tuple[Item, bytes]]:
    """One after the other. Errors: PeerProtocolError; PeerTimeout if all of them take longer than `seconds`."""
    deadline = time.monotonic() + seconds
    for item in items:
        size = read(channel, Sealed, channel.recv_message()).bytes
        try:
            if size > item.most:
                raise SealedError(f"{item.what}: {size} bytes are more than one of these parameters can have")
            data = bytes(channel.recv(size))
            check_sealed(data, item.inner, item.what)
        except SealedError as error:
            raise damaged(channel, error) from None
        if time.monotonic() > deadline:
            raise PeerTimeout(channel.peer, f"did not send all in {seconds:g} seconds", "use a faster connection")
        yield item, data


def damaged(channel: Channel, why: object) -> PeerProtocolError:
    return PeerProtocolError(channel.peer, f"sent what cannot be used ({why})", "make new keys, and ask again")


class ClientKeyFiles(Protocol):
    """One client's evaluation keys on the server's disk, by name. Errors of `reserve`: SlotsBusy."""

    def reserve(self) -> tuple[str, Path]:
        """Room for new ones: their name, and the folder that is to be made for them."""
        ...

    def whole(self, name: str) -> None:
        """They have come."""
        ...

    def find(self, name: str) -> bool: ...

    def use(self, name: str) -> tuple[Path, bool] | None:
        """For a query: their folder, and whether they may stay in memory until the next one. None: they are gone."""
        ...

    def drop(self, name: str) -> None: ...


class CiphertextServer:
    """The server's end.

    facts      of the circuit; `computing`: what computes on it, with the keys in a folder (computing.py)
    alone      a block in which this process has one thread: it forks there
    seconds    that a query, or the keys, may take
    hung_up    what can be read when the client hangs up while its query computes
    count      called with the texts of each query: LimitReached refuses it

    Errors of `serve`: PeerError. Then `abort` the channels that `abandon` returns.
    """

    def __init__(
        self,
        facts: CircuitNeeds,
        computing: Callable[[Path], Callable[[bytes, Say], bytes]],
        client: Channel,
        keys: ClientKeyFiles,
        admission: ComputeSlots,
        *,
        alone: Callable[[], AbstractContextManager[None]],
        seconds: float,
        hung_up: int,
        count: Callable[[int], None] | None = None,
    ) -> None:
        self.facts, self.computing, self.client, self.keys, self.admission = facts, computing, client, keys, admission
        self.alone, self.seconds, self.hung_up, self.count = alone, seconds, hung_up, count
        self._process: Isolated | None = None
        self._loaded = ""  # the name of the keys that it has

    def serve(self, on_query: OnQuery | None = None, idle: float | None = None) -> None:
        """Answer the client's requests until its goodbye. `idle`: seconds it may be silent between them."""
        self.client.send_message({"ready": True})
        for message in requests(self.client, idle):
            if "query" in message:
                query = read(self.client, Query, message)
                timings = self._query(query, self._sealed(self.facts.request_items()))
                if timings is not None and on_query:
                    on_query(query.query, timings)
            elif "upload" in message:
                read(self.client, Upload, message)
                self._upload()
            elif "kept" in message:
                self.client.send_message({"kept": self.keys.find(read(self.client, Kept, message).kept)})
            else:
                self.keys.drop(read(self.client, Forget, message).forget)

    def close(self) -> None:
        """End the session in order, after `serve`."""
        for channel in self.abandon():
            channel.close()

    def abandon(self) -> list[Channel]:
        """End the process that computes; returns the open channels, for the caller to abort."""
        if self._process is not None:
            self._process.close()
        self._process = None
        return [self.client]

    def _sealed(self, items: Iterable[Item]) -> Iterator[tuple[Item, bytes]]:
        return receive_sealed(self.client, items, self.seconds)

    def _upload(self) -> None:
        """Keys onto the disk, held to their sizes as they come. The first query that needs them loads them."""
        with refusing(self.client):
            name, folder = self.keys.reserve()
            self.client.send_message({"name": name})
            try:
                folder.mkdir(mode=0o700)
                for item, data in self._sealed(self.facts.key_items()):
                    (folder / str(item.number)).write_bytes(data)
            except OSError:
                raise PeerGone(SERVER, "has no room for keys on its disk", "ask again later") from None
            self.keys.whole(name)
            self.client.send_message({"whole": name})

    def _query(self, query: Query, sealed: Iterator[tuple[Item, bytes]]) -> Timings | None:
        before, parts = self.client.meter.snapshot(), [data for _, data in sealed]
        with refusing(self.client), self.admission.slot(query.query, self._queued):
            used = self.keys.use(query.keys)
            if used is None:
                self.client.send_message({"gone": query.query})
                return None
            folder, stay = used
            if self.count is not None:
                self.count(self.facts.texts)
            started = time.perf_counter()
            self._compute(query, folder, parts)
            if not stay:
                self.abandon()
            traffic, seconds = self.client.meter.since(before), time.perf_counter() - started
            return Timings(online_s=seconds, rounds=1, online=traffic, peak_rss_mb=peak_rss_mb())
        return None

    def _queued(self, place: int) -> None:
        self.client.send_message({"queued": place})

    def _compute(self, query: Query, folder: Path, parts: Sequence[bytes]) -> None:
        if self._process is None or self._process.closed or self._loaded != query.keys:
            self.abandon()
            with self.alone():
                self._process = Isolated(self.computing(folder))
            self._loaded = query.keys
        deadline = time.monotonic() + self.seconds
        try:
            for message in self._process.ask(pack({}, parts), self.hung_up, NEWS_SECONDS, deadline):
                if time.monotonic() >= deadline:
                    what = f"has ended a query that took longer than {self.seconds:g} seconds"
                    raise PeerGone(SERVER, what, "ask again; it may be busy")
                head, answer = unpack(message) if message else ({"waiting": True}, [])
                if "refused" in head:
                    raise damaged(self.client, head["refused"])
                if "failed" in head:
                    raise PeerGone(SERVER, f"has failed ({head['failed']})", "ask again")
                if "seconds" not in head:
                    self.client.send_message(head)
                    continue
                self.client.send_message({"done": query.query, **head})
                send_sealed(self.client, answer)
                return
        except IsolatedEnded as error:
            raise damaged(self.client, error) from None
        self.client.recv_message()  # which says that it hung up
        raise out_of_place(self.client)


class EncryptingClient:
    """The client's end. `waiting` gets the server's signs of life while others go first. Errors of all methods:
    PeerError, SlotsBusy, LimitReached. Of `set_up`, and of all but the last two, the connection is spoilt."""

    def __init__(self, channel: Channel, facts: CircuitNeeds, waiting: Waiting | None = None) -> None:
        self.channel, self.facts, self.waiting = channel, facts, waiting
        self._number = 0

    def set_up(self) -> None:
        """The server has a place for this session."""
        receive_expected(self.channel, ("ready",))

    def has(self, name: str) -> bool:
        """Whether the server has these keys still."""
        self.channel.send_message({"kept": name})
        return receive_expected(self.channel, ("kept",))["kept"] is True

    def upload(self, sealed: Iterable[bytes]) -> str:
        """The name under which the server keeps these keys."""
        self.channel.send_message({"upload": True})
        name = read(self.channel, Named, receive_expected(self.channel, ("name",))).name
        send_sealed(self.channel, sealed)
        receive_expected(self.channel, ("whole",))
        return name

    def forget(self, name: str) -> None:
        self.channel.send_message({"forget": name})

    def ask(self, name: str, sealed: Iterable[bytes], step: Callable[[int], None]) -> tuple[dict[int, bytes], Timings]:
        """The answer's ciphertexts, by number. `step`: called with how many steps are done. Errors: KeysGone, too."""
        number, channel, started = self._number, self.channel, time.perf_counter()
        self._number, before = number + 1, channel.meter.snapshot()
        channel.send_message({"query": number, "keys": name})
        send_sealed(channel, sealed)
        while "done" not in (message := receive_expected(channel, ("step", "done", "gone"), self.waiting)):
            if "gone" in message:
                raise KeysGone(SERVER, GONE, "send keys again")
            if isinstance(done := message["step"], int) and 0 < done <= len(self.facts.steps):
                step(done)
        if message["done"] != number:
            raise out_of_place(channel)
        items = receive_sealed(channel, self.facts.reply_items())
        answer = {item.number: data for item, data in items}
        seconds, traffic = time.perf_counter() - started, channel.meter.since(before)
        return answer, Timings(online_s=seconds, rounds=1, online=traffic, peak_rss_mb=rss_mb())

    def close(self) -> None:
        goodbye(self.channel)
        self.channel.close()
