"""Ours and CrypTen's tensors are shares modulo 2^64 alike: into a Program and out of it, and single calls between.

CrypTen holds reals at 16 fractional bits (its configuration may say otherwise), and so do these functions; a Program's
own scales are the matter of models/program/two_server.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ring import Ring
from ..rounds import ALONE, run_rounds
from .calls import prepare_call, run_call, weight_mask
from .context import NPartyOnline
from .session import CryptenSession, crypten
from .tuples import Request
from .versions import CryptenError
from .wire import over_communicator

from crypten.mpc.mpc import MPCTensor  # isort: skip - after the import by session.py


def precision() -> int:
    """Fractional bits of CrypTen's tensors, as it is configured."""
    return int(crypten.cfg.encoder.precision_bits)


def share_of(tensor: Any, name: str = "tensor") -> Tensor:
    """This party's share of an arithmetic MPCTensor, as ring integers at `precision()` bits.

    Errors: CryptenError for anything else: a plain tensor, shares of bits, another precision.
    """
    if not isinstance(tensor, MPCTensor):
        raise CryptenError(
            f"{name}: is a {type(tensor).__name__}; share it first with crypten.cryptensor(..., src=...)"
        )
    if tensor.ptype != crypten.mpc.arithmetic:
        raise CryptenError(f"{name}: holds shares of bits; bring it to crypten.mpc.arithmetic with .to(...)")
    if tensor.encoder.scale != 1 << precision():
        if tensor.encoder.scale != 1:
            raise CryptenError(f"{name}: has scale {tensor.encoder.scale}, not CrypTen's own 2^{precision()}")
        return _plain(tensor.share) << precision()  # whole numbers, such as the result of a comparison
    return _plain(tensor.share)


def tensor_of(share: Tensor, device: Any = None) -> Any:
    """The MPCTensor that holds this share, at `precision()` bits."""
    return MPCTensor.from_shares(share if device is None else share.to(device), precision=precision())


class StationaryLinear:
    """x @ W for an MPCTensor x, W known to party `src` alone: masked at the others once, then one message a call.

    weight   [K, N] real numbers at `src`; None at the others, which give `shape`
    bits     fractional bits of W

    The result is exact to one unit in the last place, whatever the number of parties; |x W| < 2^(62 - bits - 16).
    All parties make it, and call it, in the same order. Errors: CryptenError, RangeError, PeerError.
    """

    def __init__(
        self,
        session: CryptenSession,
        weight: Tensor | None,
        shape: tuple[int, int] | None = None,
        *,
        src: int = 0,
        bits: int = 16,
    ) -> None:
        self.session, self.bits, self.src = session, bits, src
        mine = session.mesh.rank == src
        dimensions = shape if weight is None else weight.shape
        if mine == (weight is None) or dimensions is None:
            raise CryptenError(f"weight: party {src} gives the weight, the others its shape [K, N]")
        self.shape = tuple(dimensions)
        if len(self.shape) != 2:
            raise CryptenError(f"weight: has shape {list(self.shape)}, not [K, N]; of an nn.Linear give weight.t()")
        request = Request(kind="weight", sizes=(self.shape,), owner=src)
        source, self.number = session.provider.ask(request)
        self._weight = None if weight is None else Ring().encode(weight.detach().cpu(), bits, "weight").contiguous()
        masked = torch.zeros(self.shape, dtype=torch.int64)
        if self._weight is not None:
            masked = self._weight - weight_mask(source, request, self.number)
        masked = session.communicator.broadcast(masked, src)
        self._masked = None if mine else masked

    def __call__(self, x: Any) -> Any:
        if x.dim() < 1 or x.size(-1) != self.shape[0]:
            raise CryptenError(f"x: has shape {list(x.size())}; this weight takes [..., {self.shape[0]}]")
        sizes = (tuple(x.size()), self.shape)
        request = Request(kind="linear", sizes=sizes, bits=self.bits, owner=self.src, weight=self.number)
        return _call(self.session, request, x, self._weight, self._masked)


def truncate(session: CryptenSession, x: Any, bits: int) -> Any:
    """x / 2^bits, exact to one unit in the last place: what CrypTen's own division of shares is only mostly."""
    return _call(session, Request(kind="rescale", sizes=(tuple(x.size()),), bits=bits), x)


def _call(
    session: CryptenSession, request: Request, x: Any, weight: Tensor | None = None, masked: Tensor | None = None
) -> Any:
    """One call on an MPCTensor: its correlations from the dealer, then its rounds. `weight`: W, `masked`: W - B."""
    share = share_of(x, "x")
    source, _ = session.provider.ask(request)
    online = NPartyOnline(session.mesh.rank, 0, prepare_call(source, request, masked), Ring())
    results: list[Tensor] = []
    start = lambda _: run_call(online, request, share.cpu(), weight)  # noqa: E731
    run_rounds(ALONE, start, lambda _, result: results.append(result), over_communicator(session.communicator))
    return tensor_of(results[0], share.device)


def _plain(share: Any) -> Tensor:
    """CrypTen's CUDA tensors wrap torch's."""
    return share if type(share) is Tensor else share._tensor
