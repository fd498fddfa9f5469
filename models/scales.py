"""Places scales: from a graph on real numbers to a Program on fixed point, with as few rescales as the ring allows.

A product adds scales, a power of two moves the scale, a sum aligns scales by a free left shift. The ring holds 62 bits of magnitude;
`headroom` of them are kept free, since inputs may pass what calibration saw. A rescale is placed where the next
operation would not fit otherwise; and where a value is opened elementwise anyway, because there it is free: the rescale's opening
serves the products, powers and comparisons that follow.

`fraction`: the fractional bits that a rescaled value keeps. Values that are small, or bounded away from zero because they are about
to be divided by, keep that many significant bits instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .graph import Node, order
from .program import Instruction, ProgramError
from .ranges import Range
from .reference import attributes_of

SHAPES = {"reshape", "permute", "expand", "slice", "index", "concat", "unfold", "neg"}


@dataclass(frozen=True)
class Precision:
    """How many bits go where. `weights`: bits of linear weights, sign included."""

    fraction: int = 14
    weights: int = 16
    headroom: int = 2
    constants: int = 14

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


class Scaler:
    """One walk over the graph. `number[id(node)]` and `scale[id(node)]`: its instruction and fractional bits."""

    def __init__(self, ranges: dict[int, Range], precision: Precision) -> None:
        self.ranges, self.precision = ranges, precision
        self.result = Scaled()
        self.number: dict[int, int] = {}
        self.scale: dict[int, int] = {}
        self.at: dict[tuple[int, int], int] = {}  # (instruction, scale) -> the same value at that scale
        self.sources: dict[tuple[str, int], int] = {}
        self.matrix: set[int] = set()  # nodes whose value reaches a matrix product by rearrangement and sums alone

    def run(self, outputs: list[Node], names: list[str]) -> Scaled:
        nodes = order(outputs)
        self._find_matrix_operands(nodes)
        for node in nodes:
            if node.op not in ("client", "weight", "constant"):
                handler: Callable[[Node], None] = getattr(self, f"_{node.op}", self._local)
                handler(node)
        for name, node in zip(names, outputs, strict=True):
            source, scale = self._value(node)
            self.result.outputs[name] = self._emit("reveal", node, [source], scale, to="client")
        return self.result

    # --- bookkeeping -------------------------------------------------------------------------------------------------
    def _emit(self, op: str, node: Node, args: list[int], scale: int, shape: tuple[int, ...] | None = None, **attributes) -> int:
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
        return len(self.result.instructions) - 1

    def _set(self, node: Node, number: int, scale: int) -> None:
        self.number[id(node)], self.scale[id(node)] = number, scale
        self.at[number, scale] = number

    def _bits(self, node: Node) -> int:
        """Bits before the binary point that the value's magnitude needs."""
        found = self.ranges.get(id(node))
        return max(-40, math.ceil(math.log2(found.high))) if found and found.high > 0 else 0

    def _target(self, node: Node) -> int:
        """Fractional bits a rescaled value keeps."""
        found = self.ranges.get(id(node))
        fraction = self.precision.fraction
        if found is None or found.high == 0:
            return fraction
        reference = found.low if found.low > found.high * 2.0**-12 else found.high
        extra = max(0, math.floor(-math.log2(reference)))
        return fraction + min(extra, 12 if self._bits(node) <= 0 else max(0, 12 - self._bits(node)))

    def _source(self, node: Node, scale: int) -> int:
        """A source, encoded at the scale that its reader asks for."""
        key = (f"{id(node)}", scale)
        if key not in self.sources:
            kind = node.op
            table = {"weight": self.result.weights, "constant": self.result.constants, "client": self.result.clients}[kind]
            name = f"{node.name or kind}@{scale}"
            while name in table:
                name += "'"
            assert node.value is not None
            table[name] = (node, scale) if kind == "client" else (node.value, scale)  # type: ignore[assignment]
            number = self._emit(kind, node, [], scale, name=name)
            self.at[number, scale] = number
            self.sources[key] = number
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
        if (number, scale) in self.at:
            return self.at[number, scale]
        if have < scale:
            made = self._emit("shift", node, [number], scale, bits=scale - have)
        else:
            made = self._emit("rescale", node, [number], scale, bits=have - scale, width=64)
        self.at[number, scale] = made
        return made

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

    def _find_matrix_operands(self, nodes: list[Node]) -> None:
        for node in reversed(nodes):
            if node.op == "matmul":
                self.matrix.update(id(arg) for arg in node.args)
            elif id(node) in self.matrix and (node.op in SHAPES or node.op in ("add", "sub", "mul_private")):
                self.matrix.update(id(arg) for arg in node.args if arg.owner == "shared")

    # --- operations --------------------------------------------------------------------------------------------------
    def _local(self, node: Node) -> None:
        scale = max((self.scale[id(a)] for a in node.args if id(a) in self.scale), default=self.precision.fraction + 2)
        args = [self._exactly(arg, scale) for arg in node.args]
        self._set(node, self._emit(node.op, node, args, scale, **attributes_of(node)), scale)

    def _ldexp(self, node: Node) -> None:
        number, scale = self._value(node.args[0])
        self.number[id(node)], self.scale[id(node)] = number, scale - node.attributes["exponent"]
        # The instruction is the same; only what its integers mean has changed.
        self.at[number, self.scale[id(node)]] = number

    def _add(self, node: Node) -> None:
        scales = [self.scale[id(a)] for a in node.args if id(a) in self.scale]
        scale = max(scales, default=self.precision.fraction + 2)
        if not self._fits(node, scale):
            scale = self.precision.room - self._bits(node)
        args = [self._exactly(arg, scale) for arg in node.args]
        self._set(node, self._emit(node.op, node, args, scale), scale)

    _sub = _add

    def _mul(self, node: Node) -> None:
        self._product(node, "mul", elementwise=True)

    def _matmul(self, node: Node) -> None:
        self._product(node, "matmul", elementwise=False)

    def _product(self, node: Node, op: str, elementwise: bool) -> None:
        """Rescale operands until the product fits: all that are opened elementwise anyway, else the smallest first."""
        scales = [None, None]
        values = [self._value(a) if a.op not in ("weight", "constant", "client") else self._lowered(a) for a in node.args]
        if elementwise:
            values = [self._lowered(a) for a in node.args]
        else:
            by_size = sorted((0, 1), key=lambda i: math.prod(node.args[i].shape))
            for i in by_size:
                if not self._fits(node, values[0][1] + values[1][1]):
                    values[i] = self._lowered(node.args[i])
        del scales
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
        bits = _constant_scale(value, self.precision.constants)
        scale = self._value(x)[1]
        if not self._fits(node, scale + bits):
            scale = min(scale, max(self._target(x), self.precision.room - bits - self._bits(node)))
            scale = min(scale, self.precision.room - bits - self._bits(node))
        args = [self._exactly(x, scale), self._source(constant, bits)]
        self._set(node, self._emit("mul_public", node, args, scale + bits), scale + bits)

    def _mul_private(self, node: Node) -> None:
        x, private = node.args
        value = private.value
        assert value is not None
        binary = private.owner == "client" and bool(((value == 0) | (value == 1)).all()) and value.dtype in (torch.bool, torch.int64)
        bits = 0 if binary or private.value.dtype == torch.bool else _weight_scale(value, self.precision.fraction + 2)
        if private.owner == "client" and _is_mask(private):
            bits = 0
        self._stationary(node, "mul_private", bits)

    def _linear(self, node: Node) -> None:
        weight = node.args[1].value
        assert weight is not None
        self._stationary(node, "linear", _weight_scale(weight, self.precision.weights))

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
        x, coefficients = node.args[0], node.attributes["coefficients"]
        degree = len(coefficients) - 1
        found = self.ranges.get(id(x))
        top = node.attributes.get("domain") or (found.high if found else 1.0)
        spread = max(0.0, math.log2(top)) * degree if top > 0 else 0.0
        ceiling = self.precision.room - self._bits(node)
        wanted = min(self._value(x)[1], self._target(x))
        guard = self.precision.fraction - 2 + math.ceil(spread)
        scale = min(wanted, (ceiling - guard) // degree)
        if scale < min(wanted, self.precision.fraction - 4):
            self._horner(node)
            return
        number = self._exactly(x, scale)
        exact = max(k * scale + _fraction_bits(c) for k, c in enumerate(coefficients))
        out = min(exact, degree * scale + guard + 2, ceiling)
        integers = [round(c * 2.0 ** (out - k * scale)) for k, c in enumerate(coefficients)]
        self._set(node, self._emit("polynomial", node, [number], out, coefficients=integers), out)

    def _horner(self, node: Node) -> None:
        """One product after the other, with a rescale between: where the whole polynomial would not fit precisely."""
        x, coefficients = node.args[0], node.attributes["coefficients"]
        number, scale = self._lowered(x)
        bits = self._bits(x)
        out = min(2 * scale, self.precision.room - max(self._bits(node), bits) - 2)
        total: int | None = None
        have = 0
        for position, c in enumerate(reversed(coefficients)):
            if position == 0:
                continue
            if total is None:
                step = self._constant_like(node, coefficients[-1], scale)
                total, have = self._emit("mul_public", node, [number, step], 2 * scale), 2 * scale
            else:
                lowered = min(scale, out - scale)
                total = self._emit("rescale", node, [total], lowered, bits=have - lowered, width=64)
                total, have = self._emit("mul", node, [total, number], lowered + scale), lowered + scale
            if c:
                total = self._emit("add", node, [total, self._constant_like(node, c, have)], have)
        assert total is not None
        self._set(node, total, have)

    def _constant_like(self, node: Node, number: float, scale: int) -> int:
        source = Node("constant", owner="public", path=node.path, value=torch.tensor(number, dtype=torch.float64))
        self.kept = [*getattr(self, "kept", []), source]  # keeps its identity alive
        return self._source(source, scale)

    def _less(self, node: Node) -> None:
        x, threshold = node.args[0], node.attributes["threshold"]
        number, scale = self._lowered(x)
        found = self.ranges.get(id(x))
        top = (found.high if found else 1.0) + abs(threshold)
        need = scale + max(0, math.ceil(math.log2(top * 2.0**self.precision.headroom))) + 2
        bits = 4 * math.ceil((need - 1) / 4) + 1
        if bits > 49:
            raise ProgramError(f"{node.path or 'model'}: a comparison over {bits} bits is too wide; calibrate again")
        integer = math.ceil(threshold * 2.0**scale)  # x < t on the grid: the first point not below t
        self._set(node, self._emit("less", node, [number], 0, threshold=integer, bits=bits), 0)


def _weight_scale(value: Tensor, bits: int) -> int:
    """The largest scale at which the largest weight still fits `bits` bits with its sign."""
    top = float(value.abs().max()) if value.numel() else 0.0
    return min(bits + 8, bits - 1 - math.ceil(math.log2(top))) if top > 0 else bits - 1


def _constant_scale(value: Tensor, bits: int) -> int:
    """Fractional bits of a public constant: exact if it has few, else `bits` significant ones."""
    exact = max((_fraction_bits(float(v)) for v in value.reshape(-1).unique()), default=0)
    top = float(value.abs().max())
    significant = bits - math.ceil(math.log2(top)) if top > 0 else 0
    return min(exact, max(0, significant))


def _fraction_bits(number: float) -> int:
    """Bits after the binary point of a float."""
    if number == 0 or number == int(number):
        return 0
    return max(0, math.ceil(math.log2(float(number).as_integer_ratio()[1])))


def _is_mask(node: Node) -> bool:
    value = node.value
    return value is not None and bool(((value == 0) | (value == 1)).all())
