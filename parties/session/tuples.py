"""CrypTen's tuples, dealt on request: the masks of each follow from the parties' seeds, as those of a query do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from ...protocols.beaver.source import Corrections
from ...protocols.channel import Channel
from ...protocols.crypten import calls
from ...protocols.crypten.source import ManyDealer
from ...protocols.crypten.tuples import Request
from ...protocols.errors import PeerProtocolError
from ...protocols.streams import Stream, derive
from .keys import masks
from .messages import SAME_VERSION, read_number


def tuple_masks(seed: bytes, number: int) -> Stream:
    """All masks of one of CrypTen's tuples at one party."""
    return masks(derive(seed, f"tuple {number}"))


class TupleDealer:
    """At the dealer. `seeds`: of all parties, by rank; `value_bytes`: the most that a tuple's largest value takes."""

    def __init__(self, leader: Channel, seeds: Sequence[bytes], value_bytes: int) -> None:
        self._leader, self._seeds, self._value_bytes = leader, seeds, value_bytes
        self._least = 0  # number of the next tuple

    def deal(self, message: Mapping[str, Any]) -> None:
        """What the leader asks for. Errors: `PeerProtocolError`."""
        number = read_number(self._leader, message, "number", self._least)
        self._least = number + 1
        try:
            request = Request.model_validate(message["tuple"])
            too_large = request.owner >= len(self._seeds) or calls.largest(request) > self._value_bytes
        except (ValidationError, RuntimeError, ValueError, TypeError):
            raise PeerProtocolError(self._leader.peer, "asked for a tuple that there is not", SAME_VERSION) from None
        if too_large:
            raise PeerProtocolError(
                self._leader.peer, "asked for a tuple that is too large for this dealer", SAME_VERSION
            )
        corrections = Corrections(self._leader, calls.layout(request))

        def source_of(number: int) -> ManyDealer:
            return ManyDealer([tuple_masks(seed, number) for seed in self._seeds], corrections)

        calls.answer(request, number, source_of)
        corrections.finish()
