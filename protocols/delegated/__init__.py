"""Linear layers of public weights, delegated: the client computes all else of the model itself, in the clear.

For each group of layers that read one input x, with weights W of integers, in a ring modulo 2^32 or 2^24:

    client             q = round(x / step), by rows, with |q| |w| < 2^31 for every row w of W: no product can wrap
    dealer -> server   W r - s            before; r and s are the client's key stream, which the dealer knows
    client -> server   q - r              uniform
    server -> client   W (q - r) + (W r - s) = W q - s, uniform to whoever does not know s
    client             W q, checked; then times step and the weights' scales

Who learns what. The server sees uniform numbers whatever it does, as long as r is used once; the dealer sees nothing of
a text. Both see the sequence of groups and rows, which follows from declared shapes, and when it comes. Server and
dealer together, at any later time, read every input of a linear layer, and so the text. The client learns what it could
compute itself: the weights are public.

A lie of either adds an error to W q that does not depend on the text. The client finds it by its own check
(arithmetic.py) before it sends anything that depends on the answer, and the session ends; this also proves which
weights have computed. So privacy holds against a server and a dealer that deviate in any way, as long as these two do
not collude, and AES is a pseudo-random function.

The split is Slalom's (Tramer and Boneh, ICLR 2019, arXiv:1806.03287) with the client in the enclave's place; the check
is Freivalds' ("Probabilistic machines can use less running time", IFIP 1977).

    arithmetic.py   products, quantised rows and the check, with kernels; the masks of a pass
        group.py        the client's side of one group
"""

from __future__ import annotations

from ..base import ProtocolInfo

RINGS = {"faithful": 32, "fast": 24}
"""Bits of the ring, by plan. Every number travels as so many, and weights and activations share them."""
RING = RINGS["faithful"]

PROTOCOL = ProtocolInfo(
    "delegated",
    parties="one server and an offline dealer, which both hold the public weights",
    security="private against deviating parties that do not collude; answers checked (2^-66); masks from AES-128-CTR",
    exact=True,
    list_operations=frozenset,  # no Program runs on it: the client runs the model
)
