"""One value that all kinds of operations read; a layer of a model."""

import torch

from ..programs import Data, Draft, hidden, program, scaled


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
