"""Sums, rearrangements, and products with a value that one party knows."""

from typing import Any

import torch

from ..programs import Data, Draft, hidden, program, scaled


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


@program()
def linear(d: Draft, data: Data) -> None:
    d("linear", d.client(data.words(5, 7)), d.weight(data.words(7, 3)))


@program()
def linear_by_public_weights(d: Draft, data: Data) -> None:
    """All parties know them, beside weights of the server: of a client's value, and on openings that others need."""
    own, x = d.client(data.words(5, 7)), hidden(d, data, 2, 5, 7)
    for value in (own, x):
        d("linear", value, d.constant(data.words(7, 3)))
        d("linear", value, d.weight(data.words(7, 3)))
    opened = scaled(d, data, 2, 5, 7)
    y = d("rescale", d("linear", opened, d.constant(data.ints(7, 7, bits=6))), bits=6)
    d("mul", y, opened)
    d("linear", d("linear", y, d.weight(data.ints(7, 4, bits=6))), d.constant(data.ints(4, 2, bits=6)))
    d("linear", hidden(d, data, 2, 3, 4, 5), d.constant(data.words(3, 5, 6)))


@program()
def linears_that_read_one_value(d: Draft, data: Data) -> None:
    x = d("add", hidden(d, data, 2, 5, 7), d.client(data.words(5, 7)))
    for columns in (1, 3, 8):
        d("linear", x, d.weight(data.words(7, columns)))
    d("linear", d("linear", x, d.weight(data.ints(7, 7))), d.weight(data.ints(7, 2)))


@program()
def linears_by_several_matrices(d: Draft, data: Data) -> None:
    """Each slice of x by its own matrix, or all by one; dimensions that lead broadcast both ways."""
    x, one = hidden(d, data, 2, 3, 4, 5), hidden(d, data, 4, 5)
    for value in (x, one, hidden(d, data, 3, 1, 5), d.client(data.ints(2, 1, 4, 5))):
        for lead in ((3,), (2, 3), (2, 1), (1,)):
            d("linear", value, d.weight(data.words(*lead, 5, 2)))
        d("linear", value, d.weight(data.ints(3, 5, 70, bits=6)), width=40)
    d("linear", x, d.weight(data.words(5, 2)))
    d("matmul", one, d.weight(data.words(3, 5, 2)))


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
