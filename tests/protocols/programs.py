"""Small programs that every protocol must run like `clear`: each operation alone, and the ways operations meet.

A `Draft` writes a program while computing it in the clear, so shapes come by themselves. Every value is revealed: a
test can then hold each instruction against its own arguments, exactly, wherever roundings have gone before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from blindformer.models.handover import hand_over
from blindformer.models.program import Instruction, Program
from blindformer.protocols.clear import ClearEngine
from blindformer.protocols.ring import sign_extend
from torch import Tensor

ENGINE = ClearEngine({})
SOURCES = ("client", "weight", "constant", "input")


@dataclass(frozen=True)
class Case:
    program: Program
    client: dict[str, Tensor]
    weights: dict[str, Tensor]
    constants: dict[str, Tensor]
    inputs: dict[str, Tensor] = field(default_factory=dict)

    @property
    def sources(self) -> dict[str, Tensor]:
        return {**self.client, **self.weights, **self.constants, **self.inputs}


@dataclass
class Draft:
    instructions: list[Instruction] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    tensors: dict[str, dict[str, Tensor]] = field(default_factory=lambda: {kind: {} for kind in SOURCES})

    def client(self, value: Tensor, width: int = 64) -> int:
        return self._source("client", value, width)

    def weight(self, value: Tensor, width: int = 64) -> int:
        return self._source("weight", value, width)

    def constant(self, value: Tensor | int, width: int = 64) -> int:
        return self._source("constant", torch.as_tensor(value), width)

    def input(self, value: Tensor, width: int = 64) -> int:
        return self._source("input", value, width)

    def __call__(self, op: str, *args: int, width: int = 64, **attributes: Any) -> int:
        value = ENGINE.compute(op, [self.values[arg] for arg in args], attributes)
        return self._emit(op, args, value, width, attributes)

    def case(self, *revealed: int, to: str = "client") -> Case:
        """The program, revealing these values (none given: every value but the sources)."""
        chosen = revealed or [i for i, item in enumerate(self.instructions) if item.op not in SOURCES]
        outputs = {}
        for number in chosen:
            width = self.instructions[number].width
            outputs[str(number)] = self._emit("reveal", (number,), self.values[number], width, {"to": to})
        program = Program(instructions=tuple(self.instructions), outputs=outputs)
        program.check()
        return Case(program, *(self.tensors[kind] for kind in SOURCES))

    def _source(self, kind: str, value: Tensor, width: int) -> int:
        name = f"{kind}{len(self.instructions)}"
        self.tensors[kind][name] = value.long()
        return self._emit(kind, (), value.long(), width, {"name": name})

    def _emit(self, op: str, args: tuple[int, ...], value: Tensor, width: int, attributes: dict[str, Any]) -> int:
        self.instructions.append(
            Instruction(op=op, args=args, attributes=attributes, shape=tuple(value.shape), width=width)
        )
        self.values.append(value)
        return len(self.instructions) - 1


def reveal_all(program: Program) -> Program:
    """The same program, with every value revealed instead of its outputs."""
    instructions = [item for item in program.instructions if item.op != "reveal"]
    assert all(item.op == "reveal" for item in program.instructions[len(instructions) :])
    outputs = {}
    for number, item in enumerate(list(instructions)):
        if item.op not in SOURCES:
            outputs[str(number)] = len(instructions)
            instructions.append(
                item.model_copy(update={"op": "reveal", "args": (number,), "attributes": {"to": "client"}})
            )
    return program.model_copy(update={"instructions": tuple(instructions), "outputs": outputs})


def handed_over(case: Case) -> Case:
    """The same computation for a data owner who takes no part."""
    return Case(hand_over(case.program), {}, case.weights, case.constants, {**case.client, **case.inputs})


def check(case: Case, outputs: dict[str, Tensor]) -> None:
    """Every revealed value follows from its own arguments: exactly in the ring, a rescale to the floor or ceiling.

    Holds programs that reveal all their values. Only the low `width` bits of a value are claimed; of a rescale whose
    argument is out of range, those below the wrap of its ring.
    """
    instructions = case.program.instructions
    values = {i: case.sources[x.attributes["name"]] for i, x in enumerate(instructions) if x.op in SOURCES}
    values.update((int(name), value) for name, value in outputs.items())
    assert set(outputs) == set(case.program.outputs)
    for number, item in enumerate(instructions):
        if item.op in SOURCES or item.op == "reveal":
            continue
        got, args = values[number], [values[arg] for arg in item.args]
        assert tuple(got.shape) == item.shape, f"{number} {item.op}"
        if item.op == "rescale":
            wrong = _not_rescaled(got, args[0], item)
        else:
            wrong = sign_extend(got - ENGINE.compute(item.op, args, item.attributes), item.width) != 0
        assert not bool(wrong.any()), f"{number} {item.op}: {int(wrong.sum())} of {wrong.numel()} elements are wrong"


def _not_rescaled(got: Tensor, x: Tensor, item: Instruction) -> Tensor:
    bits, ring = item.attributes["bits"], item.attributes.get("ring", 64)
    x = sign_extend(x, ring)
    errors = [got - (x >> bits), got + (-x >> bits)]  # from the floor and from the ceiling
    fits = (x < 1 << ring - 2) & (x >= -(1 << ring - 2))
    wraps = max(1, min(item.width, ring - bits))
    inside, outside = (
        torch.stack([sign_extend(error, width) != 0 for error in errors]).all(0) for width in (item.width, wraps)
    )
    return torch.where(fits, inside, outside)


CASES: dict[str, Callable[[], Case]] = {}


def program(*variants: Any) -> Callable[[Callable[..., Case]], Callable[..., Case]]:
    """Register a function of a Draft and generator of test data (and a variant's value) as a case."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        def build(*extra: Any) -> Case:
            draft = Draft()
            to = function(draft, Data(7), *extra)
            return draft.case(to=to or "client")

        name = function.__name__
        for variant in variants:
            CASES[f"{name}-{variant}"] = lambda variant=variant: build(variant)
        if not variants:
            CASES[name] = build
        return function

    return register


class Data:
    """Seeded test data (never masks)."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def ints(self, *shape: int, bits: int = 20) -> Tensor:
        """Signed integers below 2^bits in magnitude."""
        top = 1 << bits
        return torch.randint(1 - top, top, shape, generator=self.generator)

    def words(self, *shape: int) -> Tensor:
        """Any element of the ring."""
        return torch.randint(-(1 << 63), (1 << 63) - 1, shape, generator=self.generator)

    def bits(self, *shape: int) -> Tensor:
        return torch.randint(0, 2, shape, generator=self.generator)


def hidden(d: Draft, data: Data, *shape: int, bits: int = 20) -> int:
    """A shared value: a client's times one weight each."""
    return d("mul_private", d.client(data.ints(*shape, bits=bits // 2)), d.weight(data.ints(*shape, bits=bits // 2)))


def scaled(d: Draft, data: Data, *shape: int, bits: int = 20, drop: int = 12) -> int:
    """A shared value that a rescale has opened."""
    return d("rescale", hidden(d, data, *shape, bits=bits + drop), bits=drop)


# --- linear in the secret --------------------------------------------------------------------------------------------
@program("add", "sub")
def sums_of_any_owners(d: Draft, data: Data, op: str) -> None:
    x, y = hidden(d, data, 3, 4), hidden(d, data, 3, 4)
    client, weight, public = d.client(data.words(3, 4)), d.weight(data.words(4)), d.constant(data.words(3, 1))
    for a, b in [(x, y), (x, client), (client, x), (x, weight), (weight, x), (x, public), (public, x)]:
        d(op, a, b)
    for a, b in [(client, weight), (weight, client), (client, public), (public, client), (weight, public)]:
        d(op, a, b)
    d(op, x, x)
    d(op, hidden(d, data, 4), x)


@program()
def negation_shift_and_public_factors(d: Draft, data: Data) -> None:
    x, client, weight = hidden(d, data, 3, 4), d.client(data.ints(3, 4)), d.weight(data.ints(3, 4))
    for value in (x, client, weight):
        d("neg", value)
        d("shift", value, bits=7)
        d("mul_public", value, d.constant(data.ints(4)))
    d("shift", x, bits=63)
    d("mul_public", x, d.constant(-3))


@program()
def rearrangements(d: Draft, data: Data) -> None:
    x, y = hidden(d, data, 2, 3, 4), hidden(d, data, 2, 1, 4)
    for value in (x, d.client(data.ints(2, 3, 4)), d.weight(data.ints(2, 3, 4))):
        d("sum", value, dims=[0, 2], keepdim=False)
        d("sum", value, dims=[1], keepdim=True)
        d("reshape", value, sizes=[6, 4])
        d("permute", value, dims=[2, 0, 1])
        d("slice", value, dim=1, start=0, stop=3, step=2)
        d("index", value, dim=2, indices=[3, 0, 0, 1])
    d("expand", y, sizes=[2, 3, 4])
    d("concat", x, y, dim=1)
    d("concat", x, x, d("expand", y, sizes=[2, 3, 4]), dim=2)
    d("concat", x, d.client(data.ints(2, 2, 4)), d.weight(data.ints(2, 1, 4)), dim=1)
    d("mul", d("permute", x, dims=[0, 2, 1]), d("reshape", x, sizes=[2, 4, 3]))


@program()
def image_patches(d: Draft, data: Data) -> None:
    image = hidden(d, data, 2, 3, 6, 6)
    d("unfold", image, kernel=[2, 2], stride=[2, 2], padding=[0, 0])
    d("unfold", image, kernel=[3, 3], stride=[1, 2], padding=[1, 1])
    patches = d("unfold", d.client(data.ints(1, 3, 6, 6)), kernel=[2, 2], stride=[2, 2], padding=[0, 0])
    d("linear", patches, d.weight(data.ints(12, 5)))


@program("client", "owner")
def shares_from_outside(d: Draft, data: Data, to: str) -> Any:
    """A value that comes in shares meets every kind of operation, and values of every owner."""
    x, narrow = d.input(data.ints(3, 3, bits=30)), d.input(data.ints(3, 3, bits=14), width=24)
    others = [d.client(data.words(3, 3)), d.weight(data.words(3)), d.constant(data.words(3, 1)), hidden(d, data, 3, 3)]
    for other in others:
        d("add", x, other)
        d("sub", other, x)
    for op in ("mul", "matmul"):
        for pair in ((x, x), (x, others[3]), (others[0], x)):
            d(op, *pair)
    d("linear", x, d.weight(data.words(3, 2)))
    for private in others[:2]:
        d("mul_private", x, private)
    d("mul_private", others[3], others[0])
    d("polynomial", x, coefficients=[1, 2, 3])
    d("less", x, threshold=-5, bits=32)
    d("mul", d("rescale", x, bits=10), narrow, width=24)
    d("rescale", narrow, bits=6, ring=24, width=16)
    d("concat", narrow, d("shift", narrow, bits=3, width=24), dim=1, width=24)
    return to


# --- by a private value ----------------------------------------------------------------------------------------------
@program()
def linear(d: Draft, data: Data) -> None:
    d("linear", d.client(data.words(5, 7)), d.weight(data.words(7, 3)))


@program()
def linears_that_read_one_value(d: Draft, data: Data) -> None:
    x = d("add", hidden(d, data, 2, 5, 7), d.client(data.words(5, 7)))
    for columns in (1, 3, 8):
        d("linear", x, d.weight(data.words(7, columns)))
    d("linear", d("linear", x, d.weight(data.ints(7, 7))), d.weight(data.ints(7, 2)))


@program()
def private_embedding(d: Draft, data: Data) -> None:
    """The client's tokens as one-hot rows meet the server's table, which it never sees."""
    tokens = torch.randint(0, 11, (2, 5), generator=data.generator)
    d("linear", d.client(torch.nn.functional.one_hot(tokens, 11)), d.weight(data.words(11, 4)))


@program()
def product_with_the_server_s_vector(d: Draft, data: Data) -> None:
    x = hidden(d, data, 2, 3, 4)
    d("mul_private", x, d.weight(data.words(4)))
    d("mul_private", x, d.weight(data.words(3, 1)))
    d("mul_private", d.client(data.words(3, 4)), d.weight(data.words(2, 3, 4)))


@program()
def product_with_the_client_s_mask(d: Draft, data: Data) -> None:
    x, y, mask = hidden(d, data, 2, 3, 4), hidden(d, data, 2, 3, 1), d.client(data.bits(2, 3, 1))
    d("mul_private", x, mask)
    d("mul_private", y, mask)
    d("mul_private", x, d.client(data.words(4)))
    d("mul_private", d.weight(data.words(2, 3, 4)), mask)
    d("mul", x, mask)


@program()
def private_values_used_as_shared(d: Draft, data: Data) -> None:
    """A private value that is used as a shared one twice is opened once, under one mask."""
    client, weight, x = d.client(data.words(3, 3)), d.weight(data.words(3, 3)), hidden(d, data, 3, 3)
    d("mul", client, client)
    d("mul", client, x)
    d("mul", weight, client)
    d("matmul", weight, x)
    d("matmul", client, weight)
    d("polynomial", client, coefficients=[1, 2, 3])
    d("mul", d("add", client, x), client)


# --- shared by shared ------------------------------------------------------------------------------------------------
@program()
def product(d: Draft, data: Data) -> None:
    d("mul", hidden(d, data, 5, 7), hidden(d, data, 5, 7))


@program()
def square(d: Draft, data: Data) -> None:
    x = hidden(d, data, 5, 7)
    d("mul", x, x)


@program()
def products_of_every_kind_of_opening(d: Draft, data: Data) -> None:
    plain, other, scaled_ = hidden(d, data, 3, 5), hidden(d, data, 3, 5), scaled(d, data, 3, 5)
    again, bit = scaled(d, data, 3, 5, drop=20), d("less", scaled_, threshold=17, bits=24)
    more = d("less", scaled_, threshold=-400000, bits=24)
    between, none = d("sub", bit, more), d("sub", d.constant(1), bit)
    counted = d("add", d("neg", d("add", bit, more)), d.constant(3))
    kinds = [plain, other, scaled_, again, bit, more, between, none, counted]
    for i, x in enumerate(kinds):
        for y in kinds[i:]:
            d("mul", x, y)


@program()
def broadcast_products(d: Draft, data: Data) -> None:
    x, column, row = scaled(d, data, 2, 3, 4), scaled(d, data, 2, 3, 1), hidden(d, data, 4)
    for a, b in [(x, column), (column, x), (x, row), (column, row), (d("less", column, threshold=0, bits=24), x)]:
        d("mul", a, b)


@program(1, 2, 3, 4)
def polynomial(d: Draft, data: Data, degree: int) -> None:
    coefficients = [int(c) for c in data.words(degree + 1)]
    for x in (hidden(d, data, 3, 5), scaled(d, data, 3, 5), d.client(data.words(3, 5))):
        d("polynomial", x, coefficients=coefficients)


@program()
def polynomials_share_powers(d: Draft, data: Data) -> None:
    for x in (hidden(d, data, 3, 5), scaled(d, data, 3, 5)):
        for coefficients in ([0, 0, 1], [-5, 0, 0, 0, 3], [1, 1, 1, 1], [7, -9]):
            d("polynomial", x, coefficients=coefficients)
        d("mul", x, x)


@program()
def matrix_products(d: Draft, data: Data) -> None:
    x, y, small = hidden(d, data, 2, 3, 4, 5), hidden(d, data, 2, 3, 5, 6), hidden(d, data, 5, 2)
    d("matmul", x, y)
    d("matmul", x, small)
    d("matmul", d("slice", x, dim=1, start=0, stop=1, step=1), y)
    d("matmul", x, d("permute", x, dims=[0, 1, 3, 2]))
    quadratic = scaled(d, data, 4, 4)
    d("matmul", quadratic, quadratic)


# --- rescale ---------------------------------------------------------------------------------------------------------
@program(1, 2, 7, 16, 30, 44, 61)
def rescale(d: Draft, data: Data, bits: int) -> None:
    edges = torch.tensor([0, 1, -1, 2**bits - 1, 2**bits, -(2**bits), 2**62 - 1, 1 - 2**62, 2**61, -(2**61)])
    d("rescale", d.client(edges.repeat(50)), bits=bits)
    d("rescale", hidden(d, data, 9, 11, bits=60), bits=bits)


@program(24, 32, 40, 48, 56)
def rescale_in_a_smaller_ring(d: Draft, data: Data, ring: int) -> None:
    top = 2 ** (ring - 2)
    edges = torch.tensor([0, 1, -1, top - 1, 1 - top, top // 2, -top // 2, 255, -256]).repeat(50)
    x = d("mul_private", d.client(edges), d.weight(torch.ones(1)), width=ring)
    for bits, width in [(8, ring - 8), (8, ring), (ring // 2, 16), (ring // 2, 64), (ring - 8, 8)]:
        y = d("rescale", x, width=width, bits=bits, ring=ring)
        d("mul", y, y, width=width)
        d("polynomial", y, width=width, coefficients=[5, -6, 7])


@program(24, 32, 48, 64)
def rescale_out_of_range(d: Draft, data: Data, ring: int) -> None:
    x = d("mul_private", d.client(data.words(400)), d.weight(torch.ones(1)), width=ring)
    for bits, width in [(8, ring - 8), (8, 64), (ring // 2, 16), (ring // 2, 64)]:
        y = d("rescale", x, width=width, bits=bits, ring=ring)
        d("mul", y, y, width=width)
        if width == 64:
            d("less", y, width=16, threshold=0, bits=min(ring - bits, 40))


# --- comparison ------------------------------------------------------------------------------------------------------
@program(*range(5, 50))
def less(d: Draft, data: Data, bits: int) -> None:
    threshold = int(data.ints(1, bits=45)[0])
    reach = 2 ** (bits - 1) - 1
    edges = [0, 1, -1, 2, -2, reach, -reach, reach - 1, 1 - reach, reach // 2, -(reach // 2)]
    x = d.client(threshold + torch.cat([torch.tensor(edges), data.ints(90, bits=bits - 1)]))
    d("less", x, threshold=threshold, bits=bits)


@program(5, 20, 37)
def less_out_of_range(d: Draft, data: Data, bits: int) -> None:
    d("less", d.client(data.words(200)), threshold=int(data.ints(1, bits=45)[0]), bits=bits)


@program()
def comparisons_share_an_opening(d: Draft, data: Data) -> None:
    for x in (hidden(d, data, 7, 11), scaled(d, data, 7, 11), scaled(d, data, 3, drop=40)):
        for threshold, bits in [(0, 22), (-70000, 22), (1000, 22), (5, 23)]:
            d("less", x, threshold=threshold, bits=bits)
        d("mul", x, x)


@program(1, 63, 64, 65, 130)
def comparison_of_any_count(d: Draft, data: Data, count: int) -> None:
    d("less", hidden(d, data, count), threshold=3, bits=22)


# --- built on comparison ---------------------------------------------------------------------------------------------
@program()
def relu(d: Draft, data: Data) -> None:
    x = scaled(d, data, 5, 7)
    d("mul", d("sub", d.constant(1), d("less", x, threshold=0, bits=24)), x)


@program()
def where(d: Draft, data: Data) -> None:
    x, y, z = hidden(d, data, 5, 7), hidden(d, data, 5, 7), scaled(d, data, 5, 1)
    d("add", y, d("mul", d("less", z, threshold=-50, bits=24), d("sub", x, y)))


@program(1, 2, 5, 8)
def largest_and_where(d: Draft, data: Data, count: int) -> None:
    """A tournament that carries positions along: max and argmax of rows, the first of equal ones."""
    best = d("mul_private", d.client(data.ints(3, count, bits=2)), d.weight(torch.ones(1)))
    where = d("sub", d.constant(torch.arange(count).expand(3, count)), d("sub", best, best))
    while d.values[best].shape[1] > 1:
        n = d.values[best].shape[1]
        halves = [
            [d("slice", v, dim=1, start=s, stop=n - n % 2, step=2) for s in (0, 1)]
            + [d("slice", v, dim=1, start=n - n % 2, stop=n, step=1)] * (n % 2)
            for v in (best, where)
        ]
        lower = d("less", d("sub", halves[0][0], halves[0][1]), threshold=0, bits=5)
        joined = []
        for left, right, *rest in halves:
            won = d("add", left, d("mul", lower, d("sub", right, left)))
            joined.append(d("concat", won, *rest, dim=1) if rest else won)
        best, where = joined
    largest = d.values[best][:, 0]
    assert torch.equal(largest, next(iter(d.tensors["client"].values())).max(1).values)
    assert torch.equal(d.values[where][:, 0], next(iter(d.tensors["client"].values())).argmax(1))


# --- all together ----------------------------------------------------------------------------------------------------
@program()
def one_value_many_readers(d: Draft, data: Data) -> None:
    for x in (hidden(d, data, 4, 4), scaled(d, data, 4, 4)):
        d("matmul", x, d("permute", x, dims=[1, 0]))
        d("less", x, threshold=9, bits=23)
        d("mul", x, x)
        d("polynomial", x, coefficients=[1, 2, 3, 4])
        d("linear", x, d.weight(data.ints(4, 2)))
        d("mul_private", x, d.weight(data.ints(4)))
        d("mul_private", x, d.client(data.ints(4, 1)))
        d("rescale", x, bits=3)
        d("matmul", x, x)
        d("less", x, threshold=-9, bits=23)
        d("polynomial", x, coefficients=[0, 0, 0, 0, 1])


@program()
def one_layer(d: Draft, data: Data) -> None:
    """Attention and feed-forward in miniature, at 12 fractional bits, two heads of two features."""
    x, mask = d.client(data.ints(1, 5, 4, bits=13)), d.client(torch.tensor([1, 1, 1, 0, 0]).view(1, 1, 5, 1))
    qkv = d("add", d("linear", x, d.weight(data.ints(4, 12, bits=12))), d.weight(data.ints(12, bits=24)))
    heads = d("permute", d("reshape", d("rescale", qkv, bits=12), sizes=[1, 5, 3, 2, 2]), dims=[2, 0, 3, 1, 4])
    q, k, v = (
        d("reshape", d("slice", heads, dim=0, start=i, stop=i + 1, step=1), sizes=[1, 2, 5, 2]) for i in range(3)
    )
    scores = d("rescale", d("matmul", q, d("permute", k, dims=[0, 1, 3, 2])), bits=12)
    weights = d("rescale", d("polynomial", scores, coefficients=[25 << 24, 10 << 12, 1]), bits=20)
    ones = d("expand", mask, sizes=[1, 2, 5, 1])
    mixed = d("matmul", weights, d("concat", d("mul_private", v, mask), ones, dim=-1))
    inner = d("rescale", d("slice", mixed, dim=3, start=0, stop=2, step=1), bits=14)
    y = d("reshape", d("permute", inner, dims=[0, 2, 1, 3]), sizes=[1, 5, 4])
    wide = d("rescale", d("linear", d("add", y, x), d.weight(data.ints(4, 8, bits=12))), bits=12)
    positive = d("sub", d.constant(1), d("less", wide, threshold=0, bits=40))
    out = d("linear", d("mul", positive, wide), d.weight(data.ints(8, 4, bits=12)))
    d("add", d("rescale", out, bits=12), x)
