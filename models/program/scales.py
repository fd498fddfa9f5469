"""Places scales: from a graph on real numbers to a Program on fixed point, with as few rescales as the ring allows.

A product adds scales, a power of two moves the scale, a sum aligns scales by a free left shift. The ring holds 62
bits of magnitude; `headroom` of them are kept free, since inputs may pass what calibration saw. A rescale is placed
where the next operation would not fit otherwise; where a value is opened elementwise anyway, because there it is
free: the rescale's opening serves the products, powers and comparisons that follow; and after a product of matrices
that is larger than its factors, if all its readers take fewer bits.

`fraction`: the fractional bits that a rescaled value keeps. Values that are small, or bounded away from zero because
they are about to be divided by, keep that many significant bits instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from itertools import permutations
from typing import Any

from torch import Tensor

from ...protocols.operations import operations
from ...protocols.operations.operation import Operation
from ...protocols.scanning import FunctionRegistry
from ..graph.graph import EVENS, Node, order
from ..graph.ranges import Range
from .encoding import answer_bits, weight_scale
from .program import Instruction
from .widths import is_opened, near_width, place_widths

_ROUNDINGS = 17 / 16  # times what a value cannot pass: so much more it may be by its roundings
PLACE_BITS = 12  # of a place in a table's cell: of rows that change by a tenth or less from cell to cell
COARSE_BITS = 21  # a comparison this wide needs one round less
_OPEN = {"weight": "constant", "client": "known"}  # what an operation's source is if all parties have it
LEAST_BITS, WIDE_BITS = 8, 40  # fractional bits that it leaves at least; else a comparison is as wide as that
scale_rule: FunctionRegistry[Callable[[Scaler, Node], None]] = FunctionRegistry(f"{__package__}.scaling")


@dataclass(frozen=True)
class Precision:
    """How many bits go where. `weights`: bits of linear weights, sign included."""

    fraction: int = 16
    weights: int = 16
    headroom: int = 2
    constants: int = 18

    @property
    def room(self) -> int:
        return 61 - self.headroom


@dataclass
class Scaled:
    """The result: instructions, and the sources' real values with the scale they are encoded at, by name."""

    instructions: list[Instruction] = field(default_factory=list)
    weights: dict[str, tuple[Tensor, int]] = field(default_factory=dict)
    constants: dict[str, tuple[Tensor, int]] = field(default_factory=dict)
    clients: dict[str, tuple[Node, int]] = field(default_factory=dict)
    known: dict[str, tuple[Node, int]] = field(default_factory=dict)
    outputs: dict[str, int] = field(default_factory=dict)
    states: dict[str, int] = field(default_factory=dict)  # fractional bits of what runs keep, by name
    placed: dict[int, tuple[int, int]] = field(default_factory=dict)  # id of a node -> its instruction and scale
    near: dict[str, float] = field(default_factory=dict)  # modules, with how often their values fit what holds them
    costly: set[int] = field(default_factory=set)  # ids of nodes that are shortened, and take a message for it

    @property
    def sources(self) -> dict[str, dict[str, Any]]:
        """The tables of sources, by kind."""
        return {"weight": self.weights, "constant": self.constants, "client": self.clients, "known": self.known}


def place_scales(
    outputs: list[Node],
    names: list[str],
    ranges: dict[int, Range],
    precision: Precision,
    states: Mapping[str, int] | None = None,
) -> Scaled:
    """What a weight reads is as narrow as it may be without a message: fewer bytes of it travel. Which values take one
    shows when all widths are known; these are left wide."""
    wide: set[int] = set()
    scalers: list[Scaler] = []  # whose nodes live as long as their ids are compared
    while True:
        scalers.append(Scaler(dict(ranges), precision, states, wide))
        result = scalers[-1].run(outputs, names)
        if result.costly <= wide:
            ranges.update(scalers[-1].ranges)
            return result
        wide |= result.costly


class Scaler:
    """One walk over the graph. `number[id(node)]` and `scale[id(node)]`: its instruction and fractional bits.

    `states`: the fractional bits of states that other programs keep, or read, too; new ones get their target. `wide`:
    ids of nodes that `shortened` leaves as they are.
    """

    def __init__(
        self,
        ranges: dict[int, Range],
        precision: Precision,
        states: Mapping[str, int] | None = None,
        wide: Collection[int] = (),
    ) -> None:
        self.ranges, self.precision, self.states, self.wide = ranges, precision, states or {}, wide
        self.result = Scaled()
        self.number: dict[int, int] = {}
        self.scale: dict[int, int] = {}
        self.at: dict[tuple[int, int], int] = {}  # (instruction, bits up) -> its integers shifted (or rescaled) so
        self.sources: dict[tuple[str, int], int] = {}
        self.kept: list[Node] = []
        self.extra: dict[int, int] = {}
        self.needed: dict[int, int] = {}  # instruction -> bits of its magnitude, sign and headroom included
        self.places: dict[int, int] = {}  # nodes at which tables are read -> fractional bits that the finest cells want
        self.reach: dict[int, int] = {}  # nodes at which tables are read -> bits before the point that the widest takes
        self.most: dict[int, int] = {}  # products -> fractional bits at which a sum takes what becomes of them as it is
        self.finest: dict[int, float] = {}  # nodes -> fractional bits of the finest of their readers; inf: as they are
        self.opened: set[int] = set()  # nodes that some reader opens elementwise: a rescale of these is free
        self.bounded: set[int] = set()  # instructions that cannot pass their bound where it matters
        self.short: dict[int, int] = {}  # rescales that only shorten a value, and the ids of their nodes
        self.open = False  # whether a weight is open, so that products with it take any number of bits
        self.narrowed: set[int] = set()  # nodes that a public weight reads rescaled; a private one beside it does, too
        self.matrix: set[int] = set()  # nodes whose value reaches a matrix product by rearrangement and sums alone

    def run(self, outputs: list[Node], names: list[str]) -> Scaled:
        nodes = order(outputs)
        self.open = any(node.op == "weight" and node.owner == "public" for node in nodes)
        self._find_readers(nodes)
        for node in nodes:
            if node.op == "state":  # ahead of what is kept, whose scale it fixes
                self.state_scale(node.name, node)
        for node in nodes:
            self.place(node)
        for name, node in zip(names, outputs, strict=False):  # those after them are kept, and revealed to nobody
            source, scale = self.value(node)
            range_ = self.ranges.get(id(node))
            bits = max(0, scale - answer_bits(range_.high if range_ else 1.0))
            dropped: dict[str, Any] = {"bits": bits, "ring": 64} if bits else {}
            self.result.outputs[name] = self._instruction(
                "reveal", node, [source], scale - bits, to="client", **dropped
            )
        self._drop_unread()
        self.result.instructions = place_widths(self.result.instructions, self.needed)
        self.result.near = near_width(self.result.instructions, self.bounded)
        self.result.instructions = [replace(item, bound=_published(item)) for item in self.result.instructions]
        self.result.costly = {
            node for number, node in self.short.items() if is_opened(self.result.instructions[number])
        }
        self.result.placed = {key: (number, self.scale[key]) for key, number in self.number.items()}
        return self.result

    # --- what rules ask for ------------------------------------------------------------------------------------------
    def place(self, node: Node) -> None:
        """By the rule that its operation names. Sources that are encoded are placed by their readers."""
        if not node.is_encoded:
            scale_rule.all["ldexp" if node.op == "ldexp" else operations()[node.op].scales](self, node)

    def emit(self, node: Node, args: list[int], scale: int, bounded: bool = False, **attributes: Any) -> None:
        """The node's own instruction. `bounded`: its values cannot pass what was seen, where they matter."""
        number = self._instruction(node.op, node, args, scale, **attributes)
        self.settle(node, number, scale)
        if bounded:
            self.bounded.add(number)
            self.needed[number] = min(64, scale + self.bits(node, room=_ROUNDINGS) + 1)

    def settle(self, node: Node, number: int, scale: int) -> None:
        """The node's value is that of this instruction, at this scale."""
        self.number[id(node)], self.scale[id(node)] = number, scale

    def common(self, node: Node) -> int:
        """The largest scale of the arguments that have one; sources are encoded as it comes."""
        return max((self.scale[id(a)] for a in node.args if id(a) in self.scale), default=self.precision.fraction + 2)

    def _instruction(self, op: str, node: Node, args: list[int], scale: int, **attributes: Any) -> int:
        range_ = self.ranges.get(id(node))
        self.result.instructions.append(
            Instruction(
                op=op,
                args=tuple(args),
                attributes=attributes,
                shape=node.shape,
                scale=scale,
                bound=range_.high if range_ else 0.0,
                path=node.path,
            )
        )
        number = len(self.result.instructions) - 1
        if range_:
            self.needed[number] = min(64, scale + self.bits(node) + self.precision.headroom + 2)
        return number

    def bits(self, node: Node, room: float = 1.0) -> int:
        """Bits before the binary point that the value's magnitude needs, and `room` times as much."""
        range_ = self.ranges.get(id(node))
        bits = max(-40, math.ceil(math.log2(range_.reach * room))) if range_ and range_.high > 0 else 0
        return max(bits, self.reach.get(id(node), bits))

    def target(self, node: Node) -> int:
        """Fractional bits a rescaled value keeps."""
        range_ = self.ranges.get(id(node))
        fraction, bits = self.precision.fraction, self.bits(node)
        if range_ is None or range_.high == 0:
            return fraction
        if node.coarse:
            room = COARSE_BITS - bits - self.precision.headroom - 2
            # A mask among the values is far from all others, of which the largest is the answer.
            return max(4, min(fraction, room if room >= LEAST_BITS else WIDE_BITS - bits))
        if node.shape[-1:] == (1,) and range_.low > range_.high * 2.0**-20:
            # A variance or a denominator: what counts is its relative error, at its small end.
            wanted = fraction - math.floor(math.log2(range_.low))
        else:
            wanted = fraction - min(0, bits) - max(0, bits - 6) + self.extra.get(id(node), 0)
        wanted = max(wanted, self.places.get(id(node), 0))  # all tables on one opening: what one says, others rely on
        return max(4, min(wanted, fraction + 20, self.precision.room - bits))

    def source(self, node: Node, scale: int) -> int:
        """A source, encoded at the scale that its reader asks for."""
        key = (f"{id(node)}", scale)
        if key not in self.sources:
            kind = _OPEN.get(node.op, node.op) if node.owner == "public" else node.op
            table = self.result.sources[kind]
            # No weight's name ends in a kind, so no two values share one, in any part of a program.
            name = f"{node.name or node.op}@{scale}{'' if kind == 'weight' else f' {kind}'}"
            while name in table:
                name += "'"
            assert node.value is not None
            table[name] = (node, scale) if node.op == "client" else (node.value, scale)
            op = "constant" if kind == "known" else kind
            self.sources[key] = self._instruction(op, node, [], scale, name=name)
        return self.sources[key]

    def state_scale(self, name: str, node: Node) -> int:
        """Of a state's rows. `node`: whose target it is, if nobody has fixed it."""
        return self.result.states.setdefault(name, self.states.get(name, self.target(node)))

    def value(self, node: Node) -> tuple[int, int]:
        """A node's instruction and scale; sources at the default scale."""
        if id(node) in self.number:
            return self.number[id(node)], self.scale[id(node)]
        scale = self.precision.fraction + 2
        return self.source(node, scale), scale

    def exactly(self, node: Node, scale: int) -> int:
        """The node's value at exactly this scale: encoded so, shifted up (free), or rescaled down (one opening)."""
        if node.is_encoded:
            return self.source(node, scale)
        number, have = self.value(node)
        if have == scale:
            return number
        key = (number, scale - have)
        if key not in self.at:
            if have < scale:
                self.at[key] = self._instruction("shift", node, [number], scale, bits=scale - have)
            else:
                self.at[key] = self._instruction("rescale", node, [number], scale, bits=have - scale, ring=64)
        return self.at[key]

    def open_early(self, node: Node, number: int) -> None:
        """The node is a bit, of this instruction: it is opened as soon as it is there, ahead of the other factor of a
        product."""
        self.settle(node, self._instruction("rescale", node, [number], 0, bits=0, ring=64, early=True), 0)

    def masked(self, node: Node, number: int, scale: int, mask: Node) -> int:
        """The node's value, of this instruction, where a client's mask keeps it; 0 elsewhere."""
        product = self._instruction("mul_private", node, [number, self.source(mask, 0)], scale)
        self.bounded.add(product)  # what is masked stands where a table begins
        return product

    def lowered(self, node: Node, scale: int | None = None) -> tuple[int, int]:
        """The value at no more than its target scale: for readers that open it elementwise anyway."""
        have = self.value(node)[1]
        target = self.target(node) if scale is None else scale
        if node.is_encoded:
            return self.source(node, target), target
        if have <= target:
            return self.value(node)
        return self.exactly(node, target), target

    def shortened(self, node: Node) -> tuple[int, int]:
        """The same, if that takes no message; else as it is."""
        number, scale = self.value(node)
        if node.is_encoded or id(node) in self.wide or scale <= self.target(node) + 2:
            return number, scale
        lowered = self.lowered(node)
        self.short[lowered[0]] = id(node)
        return lowered

    def fits(self, node: Node, scale: int) -> bool:
        return scale + self.bits(node) <= self.precision.room

    def _drop_unread(self) -> None:
        """A value that was lowered twice leaves what the first time was made."""
        items, result = self.result.instructions, self.result
        read = {*result.outputs.values(), *(number for number, item in enumerate(items) if item.op == "keep")}
        for number in reversed(range(len(items))):
            if number in read:
                read.update(items[number].args)
        new = {old: number for number, old in enumerate(sorted(read))}
        result.instructions = [replace(items[old], args=tuple(new[arg] for arg in items[old].args)) for old in new]
        result.outputs = {name: new[number] for name, number in result.outputs.items()}
        self.needed = {new[number]: bits for number, bits in self.needed.items() if number in new}
        self.bounded = {new[number] for number in self.bounded if number in new}
        self.short = {new[number]: node for number, node in self.short.items() if number in new}
        self.number = {key: new[number] for key, number in self.number.items() if number in new}
        names = {item.attributes.get("name") for item in result.instructions}
        for table in result.sources.values():
            for name in table.keys() - names:
                del table[name]

    def _find_readers(self, nodes: list[Node]) -> None:
        known = operations()
        for node in nodes:
            if node.op in known and known[node.op].opened:
                self.opened.update(id(arg) for arg in node.args)
            if (whole := _whole(node)) is not None:
                x = id(node.args[0])
                self.reach[x] = max(whole, self.reach.get(x, -40))
            if node.op == "lookup" and node.args[1].shape[-1] > 1:
                wanted = PLACE_BITS - round(math.log2(node.attributes["width"]))
                self.places[x] = max(wanted, self.places.get(x, 0))
            if node.op in known and known[node.op].scales == "sum":
                self._find_summed(node)
        readers: dict[int, list[Node]] = {}
        for node in nodes:
            for arg in node.args:
                readers.setdefault(id(arg), []).append(node)
        for node in nodes:
            if node.op in known and known[node.op].scales == "product":
                self._find_amplified(node, readers.get(id(node), []))
        for node in reversed(nodes):
            operation = known.get(node.op)
            if id(node) in self.reach and node.op == "add":
                for arg in (arg for arg in node.args if arg.owner == "shared"):
                    self.reach[id(arg)] = max(self.reach[id(node)], self.reach.get(id(arg), -40))
            if operation and operation.scales == "matrix":
                self.matrix.update(id(arg) for arg in node.args)
            elif id(node) in self.matrix and operation and _only_moves(operation):
                self.matrix.update(id(arg) for arg in node.args if arg.owner == "shared")
        for node in reversed(nodes):
            self.finest[id(node)] = max((self._read_at(node, r) for r in readers.get(id(node), [])), default=math.inf)

    def _read_at(self, node: Node, reader: Node) -> float:
        """Fractional bits at which a reader takes the node; inf: all that there are."""
        operation = operations().get(reader.op)
        if operation and operation.opened:
            return self.target(node)
        return self.finest[id(reader)] if operation and (operation.rearranges or operation.signs) else math.inf

    def _find_summed(self, node: Node) -> None:
        """Products that a matrix takes to a sum, which may hold larger values than they are: a bit less of them is no
        rescale."""
        known = operations()
        for linear in node.args:
            if linear.op == "add" and linear.args[1].op == "weight":
                linear = linear.args[0]  # of which this is the bias
            if linear.op != "linear":
                continue
            x, weight = linear.args[0], linear.args[1].value
            assert weight is not None
            bits = weight_scale(weight, self.precision.weights)
            while x.op in known and (known[x.op].rearranges or evened_by(x)):
                bits += evened_by(x)
                x = x.args[0]
            if x.op in known and known[x.op].scales == "product":
                most = self.precision.room - self.bits(node) - bits
                self.most[id(x)] = min(most, self.most.get(id(x), most))

    def _find_amplified(self, node: Node, readers: list[Node]) -> None:
        """A value times a reciprocal above 1 has its rounding error multiplied: it keeps that many bits more."""
        moved = [r.attributes["exponent"] for r in readers if r.op == "ldexp"]
        exponent = max(moved) if len(moved) == len(readers) and moved else 0
        for x, factor in permutations(node.args, 2):
            if self.relative(factor) and not self.relative(x):
                extra = self.bits(factor) + exponent
                self.extra[id(x)] = max(self.extra.get(id(x), 0), min(extra, 8))

    def relative(self, node: Node) -> bool:
        """Whether a value's relative error is what counts."""
        range_ = self.ranges.get(id(node))
        return range_ is not None and node.shape[-1:] == (1,) and range_.low > range_.high * 2.0**-20


def _published(item: Instruction) -> float:
    """What all parties see of the largest magnitude: a power of two. Of inputs that they know, the largest product with
    a weight would be an equation of it, and a weight's own would be the weight, where it is a single number."""
    return power_of_two(item.bound) if item.bound and item.op != "weight" else 0.0


def power_of_two(magnitude: float) -> float:
    """The least that is no smaller."""
    return 2.0 ** math.ceil(math.log2(magnitude))


def _whole(node: Node) -> int | None:
    """Of what is read at a place: the bits before the point of all the places that there are."""
    if node.op == "fourier":
        return round(math.log2(node.attributes["whole"]))
    if "width" not in node.attributes:
        return None
    cells = node.args[1].shape[0] if node.op == "lookup" else node.attributes["cells"]
    return round(math.log2(node.attributes["width"] * cells))


def evened_by(node: Node) -> int:
    """Fractional bits of the powers of two that a value is multiplied by, to be read by a weight with rows alike; 0 of
    any other value."""
    if node.op != "mul_public" or node.args[1].name != EVENS:
        return 0
    assert node.args[1].value is not None
    return -round(math.log2(float(node.args[1].value.min())))


def _only_moves(operation: Operation) -> bool:
    """Whether its result's elements are about as large as its arguments': moved, masked, or sums of a few."""
    return operation.rearranges or bool(operation.signs) or operation.scales == "private"
