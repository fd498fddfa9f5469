"""Rescales and comparisons, and what is built on these."""

import math

import torch
from blindformer.protocols.operations.fourier import POINTS, WAVE

from ..programs import Data, Draft, hidden, program, scaled


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


@program("polynomial", "less")
def operations_on_differences_of_bits(d: Draft, data: Data, op: str) -> None:
    x = scaled(d, data, 3, 5)
    bits = d("sub", d("less", x, threshold=0, bits=24), d("less", x, threshold=50000, bits=24))
    if op == "polynomial":
        d("polynomial", bits, coefficients=[1, 2, 3, 4])
    else:
        d("less", bits, threshold=0, bits=5)


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


@program((12, 4, 0), (12, 4, 3), (20, 14, 2), (30, 30, 30), (7, 7, 0))
def lookup(d: Draft, data: Data, of: tuple[int, int, int]) -> None:
    """On openings of both kinds, at every place of the table, and beyond it."""
    bits, low, drop = of
    top = 1 << bits
    edges = [0, 1, top - 1, top // 2, (1 << low) - 1, 1 << low, top - (1 << low), -1, top, 12345678901]
    wide = torch.cat([torch.tensor(edges), torch.arange(0, top, max(1, top // 90)), data.words(50)])
    places = d("mul_private", d.client(wide), d.weight(torch.ones(1)))
    rescaled = scaled(d, data, 3, 40, bits=bits + 2, drop=10)
    for count in (1, 3):
        table = d.constant(data.ints(1 << bits - low, count, bits=18))
        for x in (places, rescaled):
            y = d("lookup", x, table, start=-5, bits=bits, low=low, drop=drop)
            d("mul", y, x)
            d("lookup", x, table, start=7, bits=bits, low=low, drop=drop, width=24)


@program((12, 6, 20), (20, 14, 130), (20, 13, 21), (12, 4, 7), (7, 7, 3), (7, 5, 1))
def reached(d: Draft, data: Data, of: tuple[int, int, int]) -> None:
    """Of none, of few and of many; in one cell, in a word of them, and in more."""
    bits, low, n = of
    for x in (hidden(d, data, 3, 2, n, bits=bits + 2), scaled(d, data, 3, 2, n, bits=bits - 2, drop=10)):
        whether = d("reached", x, start=-3, bits=bits, low=low)
        for kept in (data.bits(2, n), torch.zeros(2, n, dtype=torch.int64)):
            d("reached", x, d.constant(kept), start=5, bits=bits, low=low, width=16)
        d("mul", whether, d("sum", x, dims=[2], keepdim=True))


@program((24, 8, 40), (12, 0, 64), (30, 1, 3))
def sides(d: Draft, data: Data, of: tuple[int, int, int]) -> None:
    """Inside of two thresholds, and above: bits that stay open where they are taken apart, side by side or moved."""
    bits, drop, n = of
    for x in (hidden(d, data, 3, n, bits=bits - 2), scaled(d, data, 3, n, bits=bits - 2, drop=10)):
        for low, high in ((-(5 << drop), 5 << drop), (1 << drop, 1 << drop), (-(1 << bits - 3), 1 << bits - 4)):
            both = d("sides", x, low=low, high=high, bits=bits, **({"drop": drop} if drop else {}))
            inside, above = (d("slice", both, dim=1, start=at, stop=at + n, step=1) for at in (0, n))
            d("add", d("mul", inside, x), d("mul", x, d("sub", d.constant(1), above)))
            d("mul", d("permute", inside, dims=[1, 0]), d("reshape", x, sizes=[n, 3]))


@program((24, 8), (12, 7), (30, 1))
def less_of_the_high_bits(d: Draft, data: Data, of: tuple[int, int]) -> None:
    bits, drop = of
    for x in (hidden(d, data, 3, 40, bits=bits - 2), scaled(d, data, 3, 40, bits=bits - 2, drop=10)):
        for threshold in (0, 5 << drop, -(1 << bits - 3), (3 << drop) + 1):
            below = d("less", x, threshold=threshold, bits=bits, drop=drop)
            d("mul", below, x)


@program((40, 6), (20, 6), (12, 1), (9, 3), (2, 2))
def fourier(d: Draft, data: Data, of: tuple[int, int]) -> None:
    """Periods of more and of fewer units than the wave has points; x lies beyond one, too."""
    bits, terms = of
    wave = d.constant((torch.linspace(0, 2 * math.pi, POINTS + 1).double().cos() * 2**WAVE).round().long())
    both = data.ints(terms + 1, 2, bits=15)
    for x in (hidden(d, data, 3, 40, bits=bits + 3), scaled(d, data, 3, 40, bits=bits + 2, drop=10)):
        for table, how in (
            (both, {}),
            (both * torch.tensor([1, 0]), {"periods": 1}),
            (both * torch.tensor([0, 1]), {"periods": 3, "slope": 9}),
        ):
            y = d("fourier", x, d.constant(table), wave, bits=bits, fraction=18, **how)
            d("mul", y, x)


@program((22, 18, 8), (18, 18, 8), (22, 19, 16))
def exp(d: Draft, data: Data, of: tuple[int, int, int]) -> None:
    bits, low, width = of
    starts = torch.tensor([[2.0 - width], [2.0]])[-(1 << bits - low) :]
    table = d.constant((torch.exp(starts + torch.linspace(0, width, 1025, dtype=torch.float64)) * 2**14).long())
    for x in (hidden(d, data, 3, 40, bits=bits + 2), scaled(d, data, 3, 40, bits=bits + 2, drop=10)):
        d("exp", x, table, start=-3, bits=bits, low=low, drop=0, rate=float(width), fraction=28)
