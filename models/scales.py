"""Places scales: from a graph on real numbers to a Program on fixed point, with as few rescales as the ring allows.

A product adds scales, a power of two moves the scale, a sum aligns scales by a free left shift. The ring holds 62
bits of magnitude; `headroom` of them are kept free, since inputs may pass what calibration saw. A rescale is placed
where the next operation would not fit otherwise; and where a value is opened elementwise anyway, because there it is
free: the rescale's opening serves the products, powers and comparisons that follow.

`fraction`: the fractional bits that a rescaled value keeps. Values that are small, or bounded away from zero because
they are about to be divided by, keep that many significant bits instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .encoding import constant_scale, fraction_bits, is_mask, weight_scale
from .graph import Builder, Node, order
from .program import Instruction, ProgramError
from .ranges import Range
from .reference import compute
from .revealed import answer_bits
from .widths import near_width, place_widths

GUARD = 10  # bits of a polynomial's leading coefficient
COARSE_BITS = 21  # a comparison this wide needs one round less
SHAPES = {"reshape", "permute", "expand", "slice", "index", "concat", "unfold", "neg"}


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
    outputs: dict[str, int] = field(default_factory=dict)
    placed: dict[int, tuple[int, int]] = field(default_factory=dict)  # id of a node -> its instruction and scale
    near: dict[str, float] = field(default_factory=dict)  # modules, with how often their values fit what holds them


class Scaler:
    """One walk over the graph. `number[id(node)]` and `scale[id(node)]`: its instruction and fractional bits."""

    def __init__(self, ranges: dict[int, Range], precision: Precision) -> None:
        self.ranges, self.precision = ranges, precision
        self.result = Scaled()
        self.number: dict[int, int] = {}
        self.scale: dict[int, int] = {}
        self.at: dict[tuple[int, int], int] = {}  # (instruction, bits up) -> its integers shifted (or rescaled) so
        self.sources: dict[tuple[str, int], int] = {}
        self.kept: list[Node] = []
        self.extra: dict[int, int] = {}
        self.needed: dict[int, int] = {}  # instruction -> bits of its magnitude, sign and headroom included
        self.opened: set[int] = set()  # nodes that some reader opens elementwise: a rescale of these is free
        self.bounded: set[int] = set()  # instructions that cannot pass their bound where it matters
        self.matrix: set[int] = set()  # nodes whose value reaches a matrix product by rearrangement and sums alone

    def run(self, outputs: list[Node], names: list[str]) -> Scaled:
        nodes = order(outputs)
        self._find_readers(nodes)
        for node in nodes:
            if node.op not in ("client", "weight", "constant"):
                handler: Callable[[Node], None] = getattr(self, f"_{node.op}", self._local)
                handler(node)
        for name, node in zip(names, outputs, strict=True):
            source, scale = self._value(node)
            found = self.ranges.get(id(node))
            bits = max(0, scale - answer_bits(found.high if found else 1.0))
            dropped: dict[str, Any] = {"bits": bits, "ring": 64} if bits else {}
            self.result.outputs[name] = self._emit("reveal", node, [source], scale - bits, to="client", **dropped)
        self.result.instructions = place_widths(self.result.instructions, self.needed)
        self.result.near = near_width(self.result.instructions, self.bounded)
        self.result.placed = {key: (number, self.scale[key]) for key, number in self.number.items()}
        return self.result

    # --- bookkeeping -------------------------------------------------------------------------------------------------
    def _emit(
        self, op: str, node: Node, args: list[int], scale: int, shape: tuple[int, ...] | None = None, **attributes
    ) -> int:
        found = self.ranges.get(id(node))
        self.result.instructions.append(
            Instruction(
                op=op,
                args=tuple(args),
                attributes=attributes,
                shape=node.shape if shape is None else shape,
                scale=scale,
                bound=float(f"{found.high:.6g}") if found else 0.0,
                path=node.path,
            )
        )
        number = len(self.result.instructions) - 1
        if found:
            self.needed[number] = min(64, scale + self._bits(node) + self.precision.headroom + 2)
        return number

    def _set(self, node: Node, number: int, scale: int) -> None:
        self.number[id(node)], self.scale[id(node)] = number, scale

    def _bits(self, node: Node) -> int:
        """Bits before the binary point that the value's magnitude needs."""
        found = self.ranges.get(id(node))
        return max(-40, math.ceil(math.log2(found.reach))) if found and found.high > 0 else 0

    def _target(self, node: Node) -> int:
        """Fractional bits a rescaled value keeps."""
        found = self.ranges.get(id(node))
        fraction, bits = self.precision.fraction, self._bits(node)
        if found is None or found.high == 0:
            return fraction
        if node.coarse:
            return max(4, min(fraction, COARSE_BITS - bits - self.precision.headroom - 2))
        if node.shape[-1:] == (1,) and found.low > found.high * 2.0**-20:
            # A variance or a denominator: what counts is its relative error, at its small end.
            wanted = fraction - math.floor(math.log2(found.low))
        else:
            wanted = fraction - min(0, bits) - max(0, bits - 6) + self.extra.get(id(node), 0)
        return max(4, min(wanted, fraction + 20, self.precision.room - bits))

    def _source(self, node: Node, scale: int) -> int:
        """A source, encoded at the scale that its reader asks for."""
        key = (f"{id(node)}", scale)
        if key not in self.sources:
            kind = node.op
            table = {"weight": self.result.weights, "constant": self.result.constants, "client": self.result.clients}[
                kind
            ]
            name = f"{node.name or kind}@{scale}"
            while name in table:
                name += "'"
            assert node.value is not None
            table[name] = (node, scale) if kind == "client" else (node.value, scale)  # type: ignore[assignment]
            self.sources[key] = self._emit(kind, node, [], scale, name=name)
        return self.sources[key]

    def _value(self, node: Node) -> tuple[int, int]:
        """A node's instruction and scale; sources at the default scale."""
        if id(node) in self.number:
            return self.number[id(node)], self.scale[id(node)]
        scale = self.precision.fraction + 2
        return self._source(node, scale), scale

    def _exactly(self, node: Node, scale: int) -> int:
        """The node's value at exactly this scale: encoded so, shifted up (free), or rescaled down (one opening)."""
        if node.op in ("weight", "constant", "client"):
            return self._source(node, scale)
        number, have = self._value(node)
        if have == scale:
            return number
        key = (number, scale - have)
        if key not in self.at:
            if have < scale:
                self.at[key] = self._emit("shift", node, [number], scale, bits=scale - have)
            else:
                self.at[key] = self._emit("rescale", node, [number], scale, bits=have - scale, ring=64)
        return self.at[key]

    def _lowered(self, node: Node, scale: int | None = None) -> tuple[int, int]:
        """The value at no more than its target scale: for readers that open it elementwise anyway."""
        have = self._value(node)[1]
        target = self._target(node) if scale is None else scale
        if node.op in ("weight", "constant", "client"):
            return self._source(node, target), target
        if have <= target:
            return self._value(node)
        return self._exactly(node, target), target

    def _fits(self, node: Node, scale: int) -> bool:
        return scale + self._bits(node) <= self.precision.room

    def _find_readers(self, nodes: list[Node]) -> None:
        for node in nodes:
            if node.op in ("mul", "polynomial", "less"):
                self.opened.update(id(arg) for arg in node.args)
        readers: dict[int, list[Node]] = {}
        for node in nodes:
            for arg in node.args:
                readers.setdefault(id(arg), []).append(node)
        for node in nodes:
            if node.op == "mul":
                self._find_amplified(node, readers.get(id(node), []))
        for node in reversed(nodes):
            if node.op == "matmul":
                self.matrix.update(id(arg) for arg in node.args)
            elif id(node) in self.matrix and (node.op in SHAPES or node.op in ("add", "sub", "mul_private")):
                self.matrix.update(id(arg) for arg in node.args if arg.owner == "shared")

    def _find_amplified(self, node: Node, readers: list[Node]) -> None:
        """A value times a reciprocal above 1 has its rounding error multiplied: it keeps that many bits more."""
        moved = [r.attributes["exponent"] for r in readers if r.op == "ldexp"]
        exponent = max(moved) if len(moved) == len(readers) and moved else 0
        for x, factor in (node.args, reversed(node.args)):
            if self._relative(factor) and not self._relative(x):
                extra = self._bits(factor) + exponent
                self.extra[id(x)] = max(self.extra.get(id(x), 0), min(extra, 8))

    # --- operations --------------------------------------------------------------------------------------------------
    def _local(self, node: Node) -> None:
        scale = max((self.scale[id(a)] for a in node.args if id(a) in self.scale), default=self.precision.fraction + 2)
        if not self._fits(node, scale - 1):  # a sum of many; its reader's rescale has a bit to spare
            scale = self.precision.room - self._bits(node)
        args = [self._exactly(arg, scale) for arg in node.args]
        self._set(node, self._emit(node.op, node, args, scale, **node.attributes), scale)

    def _ldexp(self, node: Node) -> None:
        number, scale = self._value(node.args[0])
        self.number[id(node)], self.scale[id(node)] = number, scale - node.attributes["exponent"]
        # The instruction is the same; only what its integers mean has changed.

    def _add(self, node: Node) -> None:
        scales = [self.scale[id(a)] for a in node.args if id(a) in self.scale]
        scale = max(scales, default=self.precision.fraction + 2)
        if not self._fits(node, scale):
            # Rescaling the smaller argument to the larger one's scale is cheap; both only if that does not fit either.
            largest = max((a for a in node.args if id(a) in self.scale), key=lambda a: math.prod(a.shape))
            scale = min(self.scale[id(largest)], self.precision.room - self._bits(node))
        args = [self._exactly(arg, scale) for arg in node.args]
        self._set(node, self._emit(node.op, node, args, scale), scale)

    _sub = _add

    def _mul(self, node: Node) -> None:
        self._product(node, "mul", elementwise=True)

    def _matmul(self, node: Node) -> None:
        self._product(node, "matmul", elementwise=False)

    def _product(self, node: Node, op: str, elementwise: bool) -> None:
        """Rescale operands until the product fits: all that are opened elementwise anyway, else the smallest first."""
        values = [
            self._value(a) if a.op not in ("weight", "constant", "client") else self._lowered(a) for a in node.args
        ]
        if elementwise:
            values = [self._lowered(a) for a in node.args]
        else:
            by_size = sorted((0, 1), key=lambda i: math.prod(node.args[i].shape))
            for i in by_size:
                if not self._fits(node, values[0][1] + values[1][1]):
                    values[i] = self._lowered(node.args[i])
        if not self._fits(node, values[0][1] + values[1][1]):
            values = self._squeezed(node, values)
        scale = values[0][1] + values[1][1]
        self._set(node, self._emit(op, node, [values[0][0], values[1][0]], scale), scale)

    def _squeezed(self, node: Node, values: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Lower both operands below their targets, evenly; refuse when too little would be left."""
        excess = values[0][1] + values[1][1] + self._bits(node) - self.precision.room
        cut = [(excess + 1) // 2, excess // 2] if node.args[0] is not node.args[1] else [(excess + 1) // 2] * 2
        lowered = []
        for arg, (_, scale), bits in zip(node.args, values, cut, strict=True):
            if scale - bits < 6:
                raise ProgramError(
                    f"{node.path or 'model'}: values up to 2^{self._bits(node)} leave too few bits for a product; "
                    "calibrate on typical inputs, or regularise the range when distilling"
                )
            lowered.append((self._exactly(arg, scale - bits), scale - bits))
        return lowered

    def _mul_public(self, node: Node) -> None:
        x, constant = node.args
        value = constant.value
        assert value is not None
        # Small tensors have bits to spare, and the steps of a division need them.
        bits = constant_scale(value, self.precision.constants + (6 if node.shape[-1:] == (1,) else 0))
        scale = self._lowered(x)[1] if id(x) in self.opened else self._value(x)[1]
        if not self._fits(node, scale + bits):
            scale = self.precision.room - bits - self._bits(node)
        args = [self._exactly(x, scale), self._source(constant, bits)]
        self._set(node, self._emit("mul_public", node, args, scale + bits), scale + bits)

    def _mul_private(self, node: Node) -> None:
        private = node.args[1]
        assert private.value is not None
        bits = 0 if is_mask(private) else weight_scale(private.value, self.precision.fraction + 2)
        if private.owner == "client" and not is_mask(private):
            bits = self.precision.fraction + 1 - max(0, self._bits(private))  # the example's own bits are by chance
        self._stationary(node, "mul_private", bits)

    def _linear(self, node: Node) -> None:
        weight = node.args[1].value
        assert weight is not None
        self._stationary(node, "linear", weight_scale(weight, self.precision.weights))

    def _stationary(self, node: Node, op: str, bits: int) -> None:
        x, private = node.args
        number, scale = self._value(x)
        wide = scale > self._target(x) + 2
        if not self._fits(node, scale + bits) or (wide and id(node) in self.matrix and op == "linear"):
            number, scale = self._lowered(x)
        if not self._fits(node, scale + bits):
            scale = self.precision.room - self._bits(node) - bits
            number = self._exactly(x, scale)
        self._set(node, self._emit(op, node, [number, self._source(private, bits)], scale + bits), scale + bits)

    def _polynomial(self, node: Node) -> None:
        """Directly on one opening if that is precise enough, else with the square as a second one."""
        x, coefficients = node.args[0], node.attributes["coefficients"]
        degree = len(coefficients) - 1
        found = self.ranges.get(id(x))
        domain = node.attributes["domain"]
        top = domain or (found.reach if found else 1.0)
        shift = math.ceil(math.log2(top)) if top > 0 else 0  # x 2^-shift is at most 1 where it counts
        headroom = 0 if domain else self.precision.headroom
        ceiling = 61 - headroom - max(0, self._bits(node))
        lowered = min(self._value(x)[1], self._target(x))
        wanted = min(lowered + shift, max(self.precision.fraction, lowered + shift if self._relative(x) else 0))
        guard = GUARD + 4 if self._relative(x) else GUARD
        scale = min(lowered + shift, (ceiling - guard) // degree)
        if scale < wanted - 1 and degree > 2:
            self._split_polynomial(node)
            if domain:
                self.bounded.add(self.number[id(node)])
            return
        number = self._exactly(x, scale - shift)
        scaled = [c * 2.0 ** (shift * k) for k, c in enumerate(coefficients)]
        exact = max(k * scale + fraction_bits(c) for k, c in enumerate(scaled))
        out = min(exact, degree * scale + guard + 2, ceiling)
        integers = [round(c * 2.0 ** (out - k * scale)) for k, c in enumerate(scaled)]
        self._set(node, self._emit("polynomial", node, [number], out, coefficients=integers), out)
        if domain:
            self.bounded.add(self.number[id(node)])

    def _relative(self, node: Node) -> bool:
        """Whether a value's relative error is what counts."""
        found = self.ranges.get(id(node))
        return found is not None and node.shape[-1:] == (1,) and found.low > found.high * 2.0**-20

    def _split_polynomial(self, node: Node) -> None:
        """c0 + c1 x + c2 w + x (c3 w) + c4 w w ... with w = x x rescaled: two openings, at full precision."""
        x, coefficients, domain = node.args[0], node.attributes["coefficients"], node.attributes["domain"]
        builder = Builder()
        builder.path = node.path
        square = builder.mul(x, x)
        even = builder.polynomial(square, coefficients[0::2], domain**2)
        product = builder.mul(x, builder.polynomial(square, coefficients[1::2], domain**2))
        total = builder.add(even, product)
        self.ranges.update(self._sampled(x, domain, _new_nodes(total, {id(x)})))
        if id(node) in self.ranges:
            self.ranges[id(total)] = self.ranges[id(node)]
        self.kept.append(total)  # ids of nodes are keys: they must not be recycled
        factors = product.args[0].args if product.op == "ldexp" else product.args
        self.opened.update((id(square), *(id(factor) for factor in factors if factor is not x)))
        for made in _new_nodes(total, {id(x)}):
            if made.op not in ("client", "weight", "constant"):
                getattr(self, f"_{made.op}", self._local)(made)
        number, scale = self._value(total)
        self._set(node, number, scale)

    def _sampled(self, x: Node, domain: float, nodes: list[Node]) -> dict[int, Range]:
        """Ranges of nodes computed from x alone, over x's calibrated range (or domain, if that is smaller)."""
        found = self.ranges.get(id(x), Range(0.0, 1.0))
        top = min(found.high, domain) if domain else found.high
        if self._relative(x):
            sample = torch.linspace(found.low, top, 257, dtype=torch.float64)
        else:
            sample = torch.linspace(-top, top, 257, dtype=torch.float64)
        ranges: dict[int, Range] = {}
        values = {id(x): sample}
        for node in nodes:
            args = [values[id(arg)] for arg in node.args]
            values[id(node)] = compute(node, args)
            magnitude = values[id(node)].abs()
            ranges[id(node)] = Range(float(magnitude.min()), float(magnitude.max()))
        return ranges

    def _less(self, node: Node) -> None:
        x, threshold = node.args[0], node.attributes["threshold"]
        number, scale = self._lowered(x)
        found = self.ranges.get(id(x))
        limit = (found.reach if found and found.high else 1.0) * 2.0**self.precision.headroom
        # A threshold beyond anything x may be decides alike wherever it lies beyond; nearer, it needs fewer bits.
        threshold = max(-limit, min(limit, threshold))
        bits = max(5, scale + math.ceil(math.log2(limit + abs(threshold))) + 2)
        if bits > 49:
            raise ProgramError(f"{node.path or 'model'}: a comparison over {bits} bits is too wide; calibrate again")
        integer = math.ceil(threshold * 2.0**scale)  # x < t on the grid: the first point not below t
        self._set(node, self._emit("less", node, [number], 0, threshold=integer, bits=bits), 0)


def _new_nodes(output: Node, stop: set[int]) -> list[Node]:
    """The nodes under `output` down to, and without, those in `stop`."""
    found: list[Node] = []

    def visit(node: Node) -> None:
        if id(node) in stop or any(node is f for f in found):
            return
        for arg in node.args:
            visit(arg)
        found.append(node)

    visit(output)
    return found
