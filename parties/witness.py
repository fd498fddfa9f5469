"""A channel that counts the bytes which come in, and whether those counts look uniform (Pearson's chi-square test).

For demonstrations and tests: what a party sees of the other's data should be indistinguishable from noise. A sum of
counts is kept, never the bytes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..protocols.channel import Buffer, Channel, Meter


class Witness:
    """Passes everything on to `channel`; counts the values of received bytes. Messages, being JSON, do not count."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._waiting: list[bytearray] = []
        self._counts = np.zeros(256, dtype=np.int64)
        self.peer = channel.peer
        self.meter: Meter = channel.meter

    @property
    def timeout(self) -> float:
        return self._channel.timeout

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        self._channel.timeout = seconds

    def send(self, data: Buffer) -> None:
        self._channel.send(data)

    def recv(self, size: int) -> bytearray:
        return self._keep(self._channel.recv(size))

    def exchange(self, data: Buffer, size: int) -> bytearray:
        return self._keep(self._channel.exchange(data, size))

    def send_message(self, message: dict) -> None:
        self._channel.send_message(message)

    def recv_message(self, limit: int = 65536) -> dict:
        return self._channel.recv_message(limit)

    def interrupt(self) -> None:
        self._channel.interrupt()

    def close(self) -> None:
        self._channel.close()

    def counts(self) -> list[int]:
        """How often each byte value has come in so far. Counting waits until here, outside of what is timed."""
        for frame in self._waiting:
            self._counts += np.bincount(np.frombuffer(frame, np.uint8), minlength=256)
        self._waiting.clear()
        return self._counts.tolist()

    def _keep(self, frame: bytearray) -> bytearray:
        self._waiting.append(frame)
        return frame


def uniformity(counts: list[int]) -> dict[str, Any]:
    """`bytes`, `chi_square` over the byte values, and its `p_value`: how often uniform bytes look at least as uneven.

    The p-value by the approximation of Wilson and Hilferty (1931).
    """
    total, cells = sum(counts), len(counts)
    expected = total / cells
    if not expected:
        return {"bytes": 0, "chi_square": 0.0, "p_value": 1.0}
    chi = sum((count - expected) ** 2 for count in counts) / expected
    freedom = cells - 1
    spread = 2 / (9 * freedom)
    z = ((chi / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)
    return {"bytes": total, "chi_square": chi, "p_value": 0.5 * math.erfc(z / math.sqrt(2))}
