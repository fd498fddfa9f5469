"""Values that a session keeps: opened once, when they are kept, and read by all later runs on that opening.

`keep` opens x under a mask a, as a matrix product would: X = x - a is public from then on, and each party keeps its
share of a beside it. A later run's `state` is these rows: it is open already, so a product q K opens q alone,

    q K = Q K' + Q a_K + a_q K' + [a_q a_K],   Q = q - a_q and K' = K - a_K public,

and the dealer, who keeps a_K, shares the products of masks anew.

Who learns what, run after run under one a_K: each party has K', uniform because a_K is, and sent once. Every q is
opened under a fresh a_q, so its Q is uniform whatever K' and all earlier Q are. Of a_K a party has its share, and
shares of [a_q a_K] that are made of fresh key stream each time: without the other parties' streams, these are uniform
and independent of a_K. So all it sees of any number of runs is uniform, as if all readers stood in one run, where a
value is opened once for all its readers, too. What would tell is another value opened under a_K: its difference from K.
There is none: the mask is taken off the tape of the run that keeps the row (values.py), and later rows have masks of
later runs. The dealer sees masks alone, those of earlier runs among them.

Rows that nobody has filled are public zeros under the mask 0. How many are filled is public. A run that takes the last
rows reads a part of the same openings, chosen by that number: it opens nothing more, and a row that is dropped is gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import CorrelationError
from ..operations.operation import Attributes, Operation
from ..rounds import Step
from .context import Offline, Online
from .primitive import Cost, Opening, Primitive, opening_cost, plain_openings
from .values import OfflineValue, Shape, Share


class KeepRows(Primitive):
    """x itself, open; its rows are for later runs."""

    op = "keep"

    def correlate(
        self, offline: Offline, key: str, shape: Shape, width: int, x: OfflineValue, name: str, whole: bool = False
    ) -> OfflineValue:
        mask = offline.plain(x)
        if whole:
            offline.keep(key, RowsBefore(offline.states.rows(name), number=offline.states.number(name) + 1))
        if offline.runs == 1:
            offline.states.keep(name, mask, whole=whole)
        else:
            offline.states.keep(name, *(one.reshape(offline.keeps[name].of_each) for one in mask))
        return OfflineValue(key, shape, width, plain=mask, opens_at_creation=True)

    def run(self, online: Online, key: str, width: int, x: Share, name: str, whole: bool = False) -> Step:
        public, mask = yield from online.plain(x)
        number = online.tape.take(key, RowsBefore).number if whole else 0
        online.states.keep(name, torch.stack([public, mask]), whole=whole, number=number)
        return Share(key, x.tensor, width, plain=(public, mask), opens_at_creation=True)

    def cost(self, shape: Shape, width: int, x: OfflineValue, name: str, whole: bool = False) -> Cost:
        return Cost(opening_cost(x, plain=True))

    def opens(self, x: OfflineValue, name: str, whole: bool = False) -> list[Opening]:
        return plain_openings(x)


@dataclass(frozen=True)
class RowsBefore:
    """How many rows a state has before a run, and how many each run adds. `number`: of one kept whole."""

    count: int
    each: int = 0
    number: int = 0


def offline_state(offline: Offline, key: str, shape: Shape, width: int, name: str, **how: bool) -> OfflineValue:
    """The rows that earlier runs kept: their masks. `how`: as of `RunStates.read`."""
    before = RowsBefore(offline.states.rows(name), number=offline.states.number(name))
    if offline.runs == 1:
        offline.keep(key, before)
        return OfflineValue(key, shape, width, plain=offline.states.read(name, shape, **how), opens_at_creation=True)
    if how.get("whole"):  # several runs at once read the same rows
        offline.keep(key, before)
        rows = offline.states.read(name, shape[1:], **how)
        return OfflineValue(key, shape, width, plain=rows.expand(shape), opens_at_creation=True)
    # Several runs at once, one after the other: each finds the rows of those before it, too.
    value, of_all, of_each = offline.keeps[name]
    new = offline.drawn(f"{value}/open", of_all)
    offline.keep(key, replace(before, each=of_each[-2]))
    rows = []
    for run in range(offline.runs):
        rows.append(offline.states.read(name, (*of_each[:-2], *shape[-2:]), **how))
        offline.states.extend(name, new[run].reshape(of_each))
    return OfflineValue(key, shape, width, plain=torch.stack(rows).reshape(shape), opens_at_creation=True)


def state_share(online: Online, key: str, shape: Shape, width: int, name: str, **how: bool) -> Share:
    """The same rows, online."""
    before, states = online.tape.take(key, RowsBefore), online.states
    # Where one differs, a run was prepared and never made, or one was lost.
    if before.count != states.rows(name):
        raise CorrelationError(f"state {name}: these correlations are for another number of rows; start a new session")
    if before.number != states.number(name):
        raise CorrelationError(f"state {name}: these correlations are for another source; start a new session")
    public, mask = online.states.read(name, (2, *shape), **how)
    return Share(key, mask + public if online.leader else mask, width, plain=(public, mask), opens_at_creation=True)


def offline_rearranged(
    operation: Operation, key: str, shape: Shape, width: int, args: Sequence[object], attributes: Attributes
) -> OfflineValue | None:
    """A rearrangement of values that are born open is one, too.

    Of others it is not: online, an argument may be open before or after another instruction rearranges it.
    """
    masks = [x.plain for x in args if isinstance(x, OfflineValue) and x.opens_at_creation and x.plain is not None]
    if len(masks) < len(args):
        return None
    return OfflineValue(key, shape, width, plain=operation.compute(*masks, **attributes), opens_at_creation=True)


def rearranged_share(
    operation: Operation, key: str, tensor: Tensor, width: int, args: Sequence[object], attributes: Attributes
) -> Share | None:
    """The same, online. `tensor`: the share of the result."""
    plain = [x.plain for x in args if isinstance(x, Share) and x.opens_at_creation and x.plain is not None]
    if len(plain) < len(args):
        return None
    public, mask = (operation.compute(*parts, **attributes) for parts in zip(*plain, strict=True))
    return Share(key, tensor, width, plain=(public, mask), opens_at_creation=True)
