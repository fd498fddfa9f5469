"""The server's side of an owner who takes no part: where its shares come in and its answer shares go out."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ....models.program.program import Program
from ....models.program.two_server import answer_layout, input_layout, is_for_two_servers
from ....protocols.beaver.owner import layout_bytes, pack_shares, unpack_shares
from ....protocols.channel import Channel
from ....protocols.errors import PeerProtocolError, PeerRefused
from ....protocols.operations.reveal import RevealedRows
from ...transport.frames import say_why
from ..messages import Shares, read


class OwnerShares:
    """Where `ServerParty` gets its shares of inputs, and leaves its shares of results (`outside`).

    `owner`: the owner's own channel, or one to the process that holds it (`relay`). Shares are sent once for every
    query that both servers were ready for, so this side counts for itself.
    """

    def __init__(self, owner: Channel, program: Program) -> None:
        self.owner, self.program = owner, program
        self._count = 0

    def shares(self, part: str = "", revealed: RevealedRows | None = None) -> Mapping[str, Tensor]:
        """This party's shares of the inputs of a query, by name. `part`, `revealed`: as the helper says of it.

        Errors: those of the channel; `PeerProtocolError`.
        """
        message, layout = self.owner.recv_message(), input_layout(self.program.part(part))
        if read(self.owner, Shares, message) != Shares(query=self._count, part=part, revealed=revealed):
            raise PeerProtocolError(self.owner.peer, "sent no shares for this query", "open a new session")
        return unpack_shares(self.owner.recv(layout_bytes(layout)), layout)

    def answer(self, shares: Mapping[str, Tensor], part: str = "", revealed: RevealedRows | None = None) -> None:
        """Give the owner this party's shares of the results, by output name."""
        self.owner.send_message({"answer": self._count})
        self.owner.send(pack_shares(shares, answer_layout(self.program.part(part), revealed)))
        self._count += 1


def part_of(channel: Channel, program: Program) -> str:
    """What a peer that asked for `program` does at the server: "party" (computes, as P1) or "owner" (sends shares).

    Errors: `PeerRefused` if its role does not fit the program; it has been told.
    """
    if is_for_two_servers(program):
        return "party" if channel.peer == "helper" else "owner"
    if channel.peer == "client":
        return "party"
    what = f"is a {channel.peer}, and this program's data owner takes part itself"
    error = PeerRefused(channel.peer, what, "choose the same topology for all parties")
    say_why(channel, error)
    raise error
