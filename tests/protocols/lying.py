"""A client that lies: it runs the protocol, but what it sends is shifted by numbers of its choice.

In topology `dealer` a client adds what it likes to its share of any value, before it is masked and sent. The server
cannot tell; it computes with the shifted value. `copy_network` reads all weights of two linear layers with a ReLU
between from it, as the integers that the server holds:

  the last layer    All hidden units are shifted below zero, so the ReLU gives zeros. A zero shifted by 2^n feeds the
                    layer a number of the client's choice in one unit: the answer is a row of weights, 2^n times.
  the first layer   Input i alone is 2^n. Of the hidden units a group of as many as there are answers is shifted above
                    zero and the others below, so these answers are as many equations in the weights from i to the
                    group. An answer has few bits, so what is known of a weight is subtracted, by shifts, and the rest
                    read again at a larger n: in the bits above the one that the ReLU reads, beside a new weight below.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from blindformer.models.program.interpreter import interpret
from blindformer.models.program.program import Program
from blindformer.models.program.two_server import input_layout
from blindformer.parties.session.audits import AuditedClient
from blindformer.parties.session.helper_topology import OwnerParty
from blindformer.parties.session.online import Timings
from blindformer.parties.session.two_party_client import ClientParty
from blindformer.protocols.beaver.engine import OnlineEngine
from blindformer.protocols.beaver.owner import pack_shares, split
from blindformer.protocols.beaver.values import Share
from blindformer.protocols.ring import Ring
from blindformer.protocols.rounds import over_channel
from blindformer.protocols.streams import new_seed
from torch import Tensor

Lies = dict[int, Tensor]  # what to add to the client's share, by instruction


class LyingEngine(OnlineEngine):
    """The online phase of a party that adds `lies` to its shares before it uses them."""

    def __init__(self, *args: Any, lies: Lies) -> None:
        super().__init__(*args)
        self.lies = lies

    def execute(self, key, op, shape, width, args, attributes):
        result = yield from super().execute(key, op, shape, width, args, attributes)
        lie = self.lies.get(int(key))
        if lie is not None:
            assert isinstance(result, Share)
            result.tensor = result.tensor + lie
        return result


class LyingClient(ClientParty):
    """A client with an engine of its own. What it does besides is what every client does."""

    asked = 0

    def ask(self, sources: dict[str, Tensor], lies: Lies) -> dict[str, Tensor]:
        """The outputs of a query, in ring integers; of an audit there are none."""
        agreed = self.agree()
        values = self._enter(agreed, sources)
        engine = LyingEngine("client", agreed.tape, Ring(self.program.ring), values, self.constants, lies=lies)
        outputs = interpret(self.program, engine, over_channel(self.server)).outputs
        outputs = self._leave(outputs, self._expect("done"), Timings())
        self.asked += 1
        return outputs


class LyingAuditedClient(LyingClient, AuditedClient):
    """The same where the server audits."""


class LyingOwner(OwnerParty):
    """An owner of topology `helper` that adds `lies`, by input, to what the server gets. It sends nothing else that the
    servers compute with, but a seed."""

    lies: dict[str, Tensor]

    def _send_shares(self, sources, shares):
        seed, inputs = new_seed(), input_layout(self.program.part(shares.part))
        given = split(sources, seed, inputs)
        self.server.send_message(shares.message())
        self.server.send(pack_shares({name: x + self.lies[name] for name, x in given.items()}, inputs))
        self.helper.send_message({"seed": seed.hex()})


def queries_to_copy(program: Program, weights: Mapping[str, Tensor]) -> int:
    """By counting: as many queries as it takes until the bits of all answers are those of all matrices of weights. Less
    is impossible, whatever a client does, if the weights are any integers of their size."""
    items = program.instructions
    matrices = {items[item.args[1]].attributes["name"] for item in items if item.op == "linear"}
    wanted = sum(weights[name].numel() * (int(weights[name].abs().max()).bit_length() + 1) for name in matrices)
    return math.ceil(wanted / sum(math.prod(items[n].shape) * items[n].width for n in program.outputs.values()))


@dataclass(frozen=True)
class Network:
    """Where the parts of `linear, relu, linear` are in its Program, by instruction, and their fixed point.

    `before`: what is rescaled by `dropped` bits, for a ReLU that reads `read` bits of it. `hidden`: what the last layer
    multiplies. `rounded`: bits that an answer drops.
    """

    source: str
    first: str
    last: str
    before: int
    hidden: int
    dropped: int
    read: int
    rounded: int

    @classmethod
    def of(cls, program: Program) -> Network:
        items = program.instructions
        first, last = (item for item in items if item.op == "linear")
        (rescale,) = (item for item in items if item.op == "rescale")
        (less,) = (item for item in items if item.op == "less")
        (reveal,) = (item for item in items if item.op == "reveal")
        return cls(
            items[first.args[0]].attributes["name"],
            *(items[layer.args[1]].attributes["name"] for layer in (first, last)),
            rescale.args[0],
            last.args[0],
            rescale.attributes["bits"],
            less.attributes["bits"],
            reveal.attributes.get("bits", 0),
        )


@dataclass
class Row:
    """One row of a query. `group`: the hidden units that stay, of which an input is `read`, times a factor.
    `fed`: the unit that the last layer is fed alone."""

    group: int | None = None
    read: tuple[int, int] | None = None  # (input, factor)
    fed: int | None = None


FEED = 4  # bits at which the last layer's weights are read above an answer's own precision
WEIGHT = 16  # bits of a weight, sign included
REST = 5  # bits of what is left of a weight after its first reading, sign included


class Copy:
    """The attack. `ask`: inputs and lies to answers [rows, N]; the layers are [K, H] and [H, N], N dividing H."""

    def __init__(self, program: Program, ask: Callable[[dict[str, Tensor], Lies], Tensor]) -> None:
        self.net, self.ask = Network.of(program), ask
        shapes = program.weight_shapes()
        (self.ins, self.units), (_, self.outs) = shapes[self.net.first], shapes[self.net.last]
        self.rows = program.instructions[self.net.hidden].shape[0]
        self.first = torch.zeros(self.ins, self.units, dtype=torch.int64)
        self.last = torch.zeros(self.units, self.outs, dtype=torch.int64)
        self.groups: list[Tensor] = []

    def run(self) -> dict[str, Tensor]:
        self.read_last()
        self.read_first()
        return {self.net.first: self.first, self.net.last: self.last}

    def read_last(self) -> None:
        """The last layer; and what answers are without any input: of no unit, and of each group."""
        parts = [range(at, min(at + self.rows, self.units)) for at in range(0, self.units, self.rows)]
        fed = torch.cat([self.query([Row(fed=unit) for unit in part]) for part in parts])
        self.groups = well_conditioned(fed - fed.mean(0), self.outs)
        kinds = [Row(), *(Row(group) for group in range(len(self.groups)))]
        rows = self.query([kinds[number % len(kinds)] for number in range(self.rows)])
        base, *self.bases = (rows[number :: len(kinds)].mean(0) for number in range(len(kinds)))
        self.last = ((fed - base) / (1 << FEED)).round().long()

    def read_first(self) -> None:
        """Every input into every group, twice: all of the weights, then what is left of each."""
        # Room for a bias: 31 / 32 of what the bit that the ReLU reads leaves for a value of either sign.
        factors = 31 << self.net.read - 6 - WEIGHT, 1 << self.net.read - 1 - REST
        left = [Row(g, (i, factor)) for factor in factors for i in range(self.ins) for g in range(len(self.groups))]
        while left:
            rows, left = left[: self.rows], left[self.rows :]
            for row, answer in zip(rows, self.query(rows), strict=True):
                self.solve(row, answer)

    def solve(self, row: Row, answer: Tensor) -> None:
        """What a row tells of the weights from its input to its group."""
        assert row.group is not None
        assert row.read is not None
        (i, factor), units = row.read, self.groups[row.group]
        change = (answer - self.bases[row.group]) * 2.0**self.net.rounded
        solution = torch.linalg.solve(self.last[units].double().T, change)
        self.first[i, units] += (solution / factor).round().long()

    def query(self, rows: list[Row]) -> Tensor:
        """Answers [rows, N] of a query of these rows, as real numbers; rows that are missing are asked for nothing."""
        net, shape = self.net, (self.rows, self.units)
        x, fed = torch.zeros(self.rows, self.ins, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
        shift = torch.full(shape, 3 << net.read - 2)  # the bit that the ReLU takes for a sign, and room for either
        for number, row in enumerate(rows):
            if row.group is not None:
                shift[number, self.groups[row.group]] = 1 << net.read - 2
            if row.read is not None:
                i, factor = row.read
                x[number, i] = factor << net.dropped
                shift[number] -= self.first[i] * factor
            if row.fed is not None:
                fed[number, row.fed] = 1 << net.rounded + FEED
        return self.ask({net.source: x}, {net.before: shift << net.dropped, net.hidden: fed})[: len(rows)].double()


def well_conditioned(weights: Tensor, size: int) -> list[Tensor]:
    """The units in groups of `size`, such that the weights [size, size] of each can be solved for its units with
    little error: the worst of all groups is bettered by swaps."""
    generator = torch.Generator().manual_seed(0)
    groups = torch.randperm(len(weights), generator=generator).view(-1, size)
    error = lambda chosen: torch.linalg.inv(weights[chosen]).norm(dim=-2).amax(-1)  # noqa: E731
    errors = error(groups)
    for _ in range(2000):
        worst = int(errors.argmax())
        other, *places = (int(torch.randint(n, (), generator=generator)) for n in (len(groups), size, size))
        if other != worst:
            pair = groups[[worst, other]].clone()
            pair[0, places[0]], pair[1, places[1]] = groups[other, places[1]], groups[worst, places[0]]
            candidate = error(pair)
            if candidate.max() < errors[worst]:
                groups[[worst, other]], errors[[worst, other]] = pair, candidate
    return list(groups)
