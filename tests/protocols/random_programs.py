"""Random programs: any operations on any values, as long as a rescale and a comparison get what they are promised."""

from __future__ import annotations

from hypothesis import strategies as st

from .programs import Case, Data, Draft

SHAPES = [(3, 3), (1, 3), (3, 1), (3,)]


@st.composite
def programs(draw: st.DrawFn) -> Case:
    """Up to 14 operations. `bound[i]`: the largest magnitude value i may have, however roundings fell before."""
    d, data = Draft(), Data(draw(st.integers(0, 2**20)))
    bound: dict[int, int] = {}
    covered: dict[int, int] = {}  # bits that a comparison may ask of the value's opening
    owned = []
    for kind in ("client", "client", "weight", "constant"):
        value = data.ints(*draw(st.sampled_from(SHAPES)), bits=draw(st.integers(1, 14)))
        number = getattr(d, kind)(value)
        bound[number] = 1 << 14
        if kind != "constant":
            owned.append(number)
            covered[number] = 64
    secret = list(owned)

    def add(op, *args, top, covers=64, **attributes):
        number = d(op, *args, **attributes)
        bound[number] = top
        covered[number] = covers
        secret.append(number)

    for _ in range(draw(st.integers(1, 14))):
        x = draw(st.sampled_from(secret))
        y = draw(st.sampled_from([*secret, *bound]))
        shape = d.values[x].shape
        op = draw(st.sampled_from(["add", "sub", "neg", "mul", "mul", "matmul", "linear", "private", "polynomial",
                                   "rescale", "rescale", "less", "less", "permute", "sum", "concat"]))  # fmt: skip
        if op in ("add", "sub"):
            args = (x, y) if draw(st.booleans()) else (y, x)
            add(op, *args, top=bound[x] + bound[y])
        elif op == "neg":
            add(op, x, top=bound[x])
        elif op == "mul" and y in covered:
            add(op, x, y, top=bound[x] * bound[y])
        elif op == "matmul" and len(shape) == 2 and y in covered and d.values[y].shape == (shape[1], 3):
            add(op, x, y, top=3 * bound[x] * bound[y])
        elif op == "linear":
            value = data.ints(shape[-1], 3, bits=8)
            weight = d.weight(value) if draw(st.booleans()) else d.constant(value)
            add(op, x, weight, top=3 * bound[x] << 8)
        elif op == "private":
            value = data.ints(*draw(st.sampled_from(SHAPES)), bits=8)
            v = d.client(value) if draw(st.booleans()) else d.weight(value)
            add("mul_private", x, v, top=bound[x] << 8)
        elif op == "polynomial":
            coefficients = [int(c) for c in data.ints(draw(st.integers(2, 5)), bits=6)]
            top = sum(abs(c) * bound[x] ** k for k, c in enumerate(coefficients))
            add(op, x, top=top, coefficients=coefficients)
        elif op == "rescale" and bound[x] < 1 << 62:
            bits = draw(st.integers(1, 24))
            add(op, x, top=(bound[x] >> bits) + 1, covers=64 - bits, bits=bits)
        elif op == "less":
            threshold = int(data.ints(1, bits=14)[0])
            bits = max(5, (bound[x] + (1 << 14)).bit_length() + 1)
            if bits <= min(49, covered[x]):
                add(op, x, top=1, threshold=threshold, bits=bits)
        elif op == "permute" and len(shape) == 2:
            add(op, x, top=bound[x], dims=[1, 0])
        elif op == "sum":
            add(op, x, top=3 * bound[x], dims=[len(shape) - 1], keepdim=True)
        elif op == "concat" and len(shape) == 2 and shape == (3, 3):
            wide = d("concat", d("slice", x, dim=1, start=0, stop=2, step=1), x, dim=1)
            add("slice", wide, top=bound[x], dim=1, start=1, stop=4, step=1)
    if not any(i not in (0, 1, 2, 3) for i in secret):
        add("neg", secret[0], top=bound[secret[0]])
    return d.case()
