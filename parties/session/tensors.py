"""For code that is written for CrypTen: a session among N parties in which its tensors go through Programs.

Every party runs the same code, as CrypTen's users are used to. `meet` opens the session at one party; the dealer is
`blindformer dealer`. CrypTen's own operations run on our channels (mutual TLS) and on our dealer's tuples meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from ...models.artifacts import ServerLength, load_helper, load_server
from ...models.program.program import Program
from ...models.program.two_server import with_shared_io
from ...protocols.crypten.versions import CryptenError
from ..certificates.tls_folder import client_context, server_context
from ..config import parse_address
from ..transport.tls import Listener, listen
from .n_party import Party, PartyModel
from .parties import DEALER, LEADER, Parties
from .rendezvous_n import PartyContext, join_session

FRACTION_BITS = 16  # of CrypTen's tensors


class TensorSession:
    """Made by `meet`. Call it with MPCTensors by input name: it returns those of the outputs.

    `crypten`: the package, set up among these parties until the session ends. Errors of all methods: CryptenError,
    and PeerError, which ends the session.
    """

    def __init__(self, party: Party, state: Any, names: Sequence[str]) -> None:
        from ...protocols.crypten import tensors
        from ...protocols.crypten.session import crypten

        if tensors.precision() != FRACTION_BITS:
            raise CryptenError(f"crypten: encodes {tensors.precision()} bits, a Program's inputs {FRACTION_BITS}")
        self.crypten, self.names, self.rank, self.program = crypten, list(names), party.rank, party.model.program
        self._party, self._state, self._tensors = party, state, tensors

    def linear(
        self, weight: Tensor | None, shape: tuple[int, int] | None = None, *, src: int = 0, bits: int = 16
    ) -> Any:
        """A weight-stationary linear layer x @ weight, the weight [K, N] known to party `src`; see StationaryLinear."""
        return self._tensors.StationaryLinear(self._state, weight, shape, src=src, bits=bits)

    def truncate(self, x: Any, bits: int) -> Any:
        """x / 2^bits, exact whatever the number of parties."""
        return self._tensors.truncate(self._state, x, bits)

    def __call__(self, **inputs: Any) -> dict[str, Any]:
        party, program = self._party, self.program
        if not program.outputs:
            raise CryptenError("session: was opened without a compiled model; give meet(..., folder=...)")
        shares = {}
        for name, shape in program.inputs.items():
            if name not in inputs:
                raise CryptenError(f"input {name}: is missing; the program takes {', '.join(program.inputs)}")
            shares[name] = self._tensors.share_of(inputs[name], f"input {name}")
            if tuple(shares[name].shape) != tuple(shape):
                raise CryptenError(
                    f"input {name}: has shape {list(shares[name].shape)}, the program takes {list(shape)}"
                )
        device = next(iter(shares.values())).device
        values = {name: share.cpu() for name, share in shares.items()}
        answer = party.ask(values) if party.asks else party.follow(None, lambda number: values)
        if answer is None:
            raise CryptenError(f"{party.parties.names[party.parties.asker]}: has left the session")
        return {name: self._tensors.tensor_of(share, device) for name, share in answer.outputs.items()}


@contextmanager
def meet(
    name: str,
    addresses: Mapping[str, str],
    certificates: str | Path,
    folder: str | Path | None = None,
    *,
    length: int | None = None,
    timeout: float = 60,
    wait: float = 60,
    listener: Listener | None = None,
) -> Iterator[TensorSession]:
    """A session at party `name`, for a `with` block; `wait`: seconds for the others to connect.

    addresses     HOST:PORT by party, in order of rank, and the dealer's; the same at every party
    certificates  a folder with ca.pem and this party's, from `blindformer certs`
    folder        a compiled model's: party 0 needs the server's part, the others the helper's, which holds no secret

    Errors: PeerError, CertificateError, ArtifactError, ProgramError, CryptenError.
    """
    parties, places = _parties(addresses)
    rank = parties.rank(name)
    if listener is None and rank < parties.size - 1:
        listener = listen(*places[name], server_context(certificates, name), timeout=timeout)
    context = PartyContext(parties, rank, client_context(certificates, name), wait, timeout)
    earlier = {parties.rank(other): address for other, address in places.items() if other != DEALER}
    with join_session(context, _model(folder, rank, length), earlier, listener, places[DEALER]) as (party, state):
        yield TensorSession(party, state, parties.names)
        if party.asks:
            party.goodbye()


def _parties(addresses: Mapping[str, str]) -> tuple[Parties, dict[str, tuple[str, int]]]:
    if DEALER not in addresses:
        raise CryptenError(f"addresses: name the {DEALER}'s, beside the parties'")
    places = {}
    for name, text in addresses.items():
        try:
            address = parse_address(text)
        except ValueError as error:
            raise CryptenError(f"addresses: {name}: {error}") from None
        places[name] = (address.host, address.port)
    return Parties(tuple(name for name in addresses if name != DEALER)), places


def _model(folder: str | Path | None, rank: int, length: int | None) -> PartyModel:
    if folder is None:
        return PartyModel(Program(), {})
    part = (load_server if rank == LEADER else load_helper)(folder).for_length(length)
    weights = part.weights if isinstance(part, ServerLength) else {}
    return PartyModel(with_shared_io(part.program, FRACTION_BITS), part.constants, weights)


__all__ = ["TensorSession", "meet"]
