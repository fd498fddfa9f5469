"""The two parties of oblivious transfers, in threads, on a channel in memory."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from blindformer.protocols.channel import Channel
from blindformer.protocols.oblivious.silent import RandomTransfers, TransferReceiver, TransferSender
from blindformer.tests.patience import PATIENCE
from blindformer.tests.shared.memory import MemoryChannel, memory_pair

SESSION, DIRECTION = b"a session", "server to client"
Ends = tuple[MemoryChannel, MemoryChannel]


def ends(record: dict[str, list[bytes]] | None = None) -> Ends:
    """The sender's end of a channel, whose peer is the receiver, and the receiver's."""
    return memory_pair("sender", "receiver", PATIENCE, record)


def both(sender: Callable[[], Any], receiver: Callable[[], Any]) -> tuple[Any, Any]:
    """What both parties' work gives. Raises the sender's failure first."""
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.submit(sender), pool.submit(receiver)
        return first.result(PATIENCE), second.result(PATIENCE)


def failing(channels: Ends, sender: Callable[[Channel], Any], receiver: Callable[[Channel], Any]) -> None:
    """As `both`, of parties one of whom fails: its end is closed, so the other does not wait."""

    def closing(work: Callable[[Channel], Any], channel: MemoryChannel) -> Any:
        try:
            return work(channel)
        except BaseException:
            channel.interrupt()
            raise

    both(lambda: closing(sender, channels[0]), lambda: closing(receiver, channels[1]))


def set_up(channels: Ends | None = None) -> tuple[TransferSender, TransferReceiver]:
    to_receiver, to_sender = channels or ends()
    return both(
        lambda: RandomTransfers.sender(to_receiver, SESSION, DIRECTION),
        lambda: RandomTransfers.receiver(to_sender, SESSION, DIRECTION),
    )


class Changing(MemoryChannel):
    """A channel that changes one bit of the first message of a size, in the byte `at`."""

    size: int
    at: int

    def send(self, data) -> None:
        changed = bytearray(data)
        if len(changed) == self.size:
            changed[self.at] ^= 2
            self.size = -1
        super().send(changed)
