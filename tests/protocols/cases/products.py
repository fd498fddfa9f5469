"""Products and polynomials of shared values, on every kind of opening."""

from ..programs import Data, Draft, hidden, program, scaled


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


@program()
def products_of_matrices_of_which_the_bits_above_are_opened(d: Draft, data: Data) -> None:
    """Rescaled values, whose openings count wraps, at several widths; a row of them, and as both factors."""
    for width in (64, 41, 33):
        x = d("rescale", hidden(d, data, 3, 4, 5, bits=32), bits=12, ring=44, width=width)
        y = d("rescale", hidden(d, data, 3, 5, 6, bits=32), bits=12, ring=44, width=width)
        d("mul", x, x, width=width)
        for factors in ((x, y), (x, d("permute", x, dims=[0, 2, 1], width=width)), (hidden(d, data, 3, 2, 4), x)):
            d("matmul", *factors, width=width)


@program()
def sums_with_public_numbers_keep_an_opening(d: Draft, data: Data) -> None:
    x, number, each = scaled(d, data, 3, 5), d.constant(77), d.constant(data.ints(3, 5))
    table = d.constant(data.ints(8, 2, bits=18))
    for moved in (d("add", x, number), d("add", each, x), d("sub", x, each), d("sub", number, x)):
        d("mul", moved, moved)
        d("mul", x, moved)
        d("polynomial", moved, coefficients=[3, 5, 7, 11])
        d("less", moved, threshold=17, bits=24)
        d("lookup", moved, table, start=-5, bits=12, low=9, drop=3)
        d("matmul", moved, d("permute", moved, dims=[1, 0]))
        d("mul", d("add", moved, each), moved)
    narrow = d("rescale", hidden(d, data, 3, 5, bits=32), bits=16, ring=40)
    d("mul", narrow, narrow)
    low = d("add", narrow, number, width=20)  # no wrap is read of it
    d("matmul", low, d("permute", low, dims=[1, 0], width=20), width=20)
    d("polynomial", low, coefficients=[3, 5, 7], width=20)
