"""Single operations on shares that CrypTen's tensors hold: short chains of our primitives, dealt one at a time.

linear    x @ W, then / 2^bits     W known to one party and masked at the others, once (private.py): one message to the
                                   owner, and the exact rescale's opening
rescale   x / 2^bits               exact, where CrypTen truncates shares: |x| < 2^62
Each ends in a fresh sharing of zero (reveal.py): CrypTen may open what it is given back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..beaver.values import OfflineValue, Share, Tape
from ..operations import OWNER
from ..ring import Ring
from ..rounds import Step
from ..wire import elements
from .context import NPartyOffline, NPartyOnline, Owned
from .primitives import primitives
from .source import NPartyCount, NPartySource
from .tuples import Request, make_tuple, tuple_layout

CHAINS = {"linear": ("linear", "rescale", "reveal"), "rescale": ("rescale", "reveal")}


def prepare_call(source: NPartySource, request: Request, weight: Tensor | None = None) -> Tape:
    """A party's correlations of one call; at the dealer, its corrections. `weight`: B at the dealer, D at a party."""
    tape = Tape()
    offline, known = NPartyOffline(source, tape, Ring()), primitives()
    value = OfflineValue("x", request.sizes[0])
    for op in CHAINS[request.kind]:
        shape = value.shape
        more: list[Owned] = []
        if op == "linear":
            shape = (*shape[:-1], request.sizes[1][-1])
            knows = offline.role in ("dealer", "count")
            more = [_owned(request, mask=weight if knows else None, masked=None if knows else weight)]
        value = known[op].correlate(offline, op, shape, 64, value, *more, **_attributes(op, request))
    return tape


def run_call(online: NPartyOnline, request: Request, share: Tensor, weight: Tensor | None = None) -> Step:
    """This party's share of the result. `weight`: W at its owner."""
    known, value = primitives(), Share("x", share, 64)
    for op in CHAINS[request.kind]:
        more = [_owned(request, tensor=weight)] if op == "linear" else []
        value = yield from known[op].run(online, op, 64, value, *more, **_attributes(op, request))
    return value


def answer(request: Request, number: int, source_of: Callable[[int], NPartySource]) -> None:
    """The dealer's side of any request. `source_of`: of a request by its number."""
    if request.kind not in CHAINS:
        make_tuple(source_of(number), request, f"tuple {number}")
        return
    mask = None
    if request.kind == "linear":
        mask = weight_mask(source_of(request.weight), request, request.weight)
    prepare_call(source_of(number), request, mask)


def weight_mask(source: NPartySource, request: Request, number: int) -> Tensor:
    """B of the weight that request `number` set up, at its owner and the dealer."""
    sized = Request(kind="weight", sizes=(request.sizes[-1],), owner=request.owner)
    return make_tuple(source, sized, f"tuple {number}")[0]


def layout(request: Request) -> tuple[int, ...]:
    """Bytes of the dealer's corrections for any request. Errors: of any kind, for sizes that do not fit."""
    if request.kind not in CHAINS:
        return tuple_layout(request)
    count = NPartyCount()
    mask = count.uniform("", request.sizes[1]) if request.kind == "linear" else None
    prepare_call(count, request, mask)
    return tuple(count.layout)


def largest(request: Request) -> int:
    """Bytes of the largest value, which a dealer bounds before it makes any."""
    return max([8 * elements(size) for size in request.sizes] + list(layout(request)))


def _owned(
    request: Request, tensor: Tensor | None = None, masked: Tensor | None = None, mask: Tensor | None = None
) -> Owned:
    """The weight: masked ahead, whoever owns it, so it has the model owner's seat."""
    return Owned("w", "server", request.sizes[1], 64, tensor, masked, mask, rank=request.owner)


def _attributes(op: str, request: Request) -> dict[str, Any]:
    return {"rescale": {"bits": request.bits}, "reveal": {"to": OWNER}}.get(op, {})
