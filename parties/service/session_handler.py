"""What server, dealer and helper do alike: prove who is who, hear the first message, say why a session ends."""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...protocols.channel import Channel
from ...protocols.errors import PeerError, PeerGone
from ..config import Role, ServerSection, Settings
from ..session.compute_slots import LimitReached, SlotsBusy
from ..session.online import Timings
from ..session.rendezvous_two import abort, knock
from ..session.spool import Spool
from ..transport.handshake import Hello, answer_probe, is_probe, my_facts
from ..transport.tls import TlsChannel, welcome
from .child import Control, Stopping
from .control import Answered, Limited
from .local_options import LocalOptions
from .quota import Quota
from .supervisor import Supervisor
from .watch import PartyWatch

DAY = 86400.0  # seconds
FIRST_SECONDS = 10.0  # for the handshake, and of silence before the first message
FIRST_LIMIT = 16384  # bytes of the first message: a hello, or a probe that names programs


class SessionHandler(Supervisor):
    """What the children of server, dealer and helper do with their connections."""

    roles: Collection[str] = ("client",)
    """Whose certificates are welcome."""
    spool: Spool | None = None
    quota: Quota | None = None
    dealer: PartyWatch | None = None
    """Of a server whose sessions need one."""

    def __init__(self, settings: Settings, scratch: Path, local: LocalOptions) -> None:
        torch.set_num_threads(1)  # a pool of threads does not survive a fork
        super().__init__(settings, scratch, local)
        self.config = settings.shared_hash()

    def work(self, sock: socket.socket, control: Control) -> None:
        """To a peer with a good certificate of one of `roles`; a probe (transport/handshake.py) is answered here."""
        control.party, control.keepalive = self.role, self.timeout / 3
        torch.set_num_threads(self.local.threads)
        accepting = self.identity.accepting
        channel = welcome(sock, accepting, self.roles, timeout=FIRST_SECONDS, handshake_seconds=FIRST_SECONDS)
        with self.aborting(channel):
            first = channel.recv_message(FIRST_LIMIT)
            if is_probe(first):
                control.probing(channel.peer, channel.certificate.fingerprint)
                answer_probe(channel, first, my_facts(self.role, self.config, self.programs))
                channel.close()
                return
        self.serve(channel, first, control)

    def serve(self, channel: TlsChannel, first: dict[str, Any], control: Control) -> None:
        """In the child. `first`: the peer's first message, a hello."""
        raise NotImplementedError

    def introduce(self, channel: TlsChannel, hello: Hello, control: Control) -> None:
        shown = channel.certificate
        control.introduce(channel.peer, shown.fingerprint, shown.serial, hello.session, hello.program)

    def open_spool(self, mine: ServerSection) -> None:
        if mine.spool is not None:
            keep, room = mine.spool_days * DAY, int(1e9 * mine.spool_gb)
            self.spool = Spool(mine.spool, room, self.limits.share, keep_seconds=keep, database=mine.database)
        if self.spool is not None and mine.database is not None:
            self.spool.left()  # a store that cannot be reached is said now, where somebody reads it

    def watch_dealer(self) -> None:
        """From now on. A launcher of this machine watches over its processes itself."""
        if not self.local.scratch:
            self.dealer = PartyWatch("dealer", partial(self._knock, "dealer"))

    @property
    def able(self) -> bool:
        """Without the dealer as long as the spool holds correlations."""
        return self.dealer is None or not self.dealer.gone or bool(self.left())

    def on_turn(self) -> None:
        super().on_turn()
        if self.dealer is not None and self._stop_by is None:
            self.dealer.turn(self.fork_child, self.log)

    def let_go(self) -> None:
        super().let_go()
        if self.dealer is not None:
            self.dealer.let_go()

    def end_all(self) -> None:
        super().end_all()
        if self.dealer is not None:
            self.dealer.end()

    def _knock(self, role: Role) -> None:
        knock(self.settings.address(role), self.identity.dialling, role, my_facts(self.role, self.config))

    def counting(self, channel: TlsChannel, control: Control) -> Callable[[int], None] | None:
        """Counts the texts of a query of this peer, or the tokens that it reveals; None if nobody counts."""
        quota = self.quota
        if quota is None:
            return None

        def count(texts: int) -> None:
            try:
                quota.spend(channel.certificate.name, texts)
            except LimitReached as limit:
                control.send(Limited(what=str(limit)))
                raise

        return count

    def aborting(self, *channels: Channel) -> AbstractContextManager[None]:
        return abort_on_error(self.role, lambda: channels)

    def left(self) -> int | None:
        """Preprocessed correlations that are left."""
        return None if self.spool is None else self.spool.left()


def answered(number: int, timings: Timings) -> Answered:
    return Answered(
        number=number,
        offline_s=timings.offline_s,
        online_s=timings.online_s,
        offline_bytes=float(timings.offline_bytes),
        sent=float(timings.online.sent),
        received=float(timings.online.received),
        audits=timings.audits,
    )


@contextmanager
def abort_on_error(role: str, channels: Callable[[], Sequence[Channel]]) -> Iterator[None]:
    """Whatever ends the session early: the peers of `channels` are told, as far as it is their business."""
    try:
        yield
    except Stopping as stopping:
        abort(channels(), stopping.why or PeerGone(role, "is stopping", "ask again when it is back"))
        raise
    except SlotsBusy as busy:
        for channel in channels():
            channel.timeout = min(channel.timeout, 1.0)
            if channel.peer != busy.party:
                with suppress(PeerError):
                    channel.send_message({"busy": busy.retry_after, "why": busy.why})
            channel.close()
        raise
    except PeerError as error:
        abort(channels(), error)
        raise
    except Exception:
        abort(channels(), PeerGone(role, "has failed", "see its log, then open a new session"))
        raise
