"""The operations of a Program: what a protocol may be asked to compute on secrets.

A protocol states which of these it `offers`; compilation checks that against what a program needs.

sources    client(name)                  a tensor of the data owner          weight(name)  of the model owner
           constant(name)                public
           input(name)                   shared: each party is sent an additive share, the owner takes no part
local      add, sub                      shared, private or public arguments, equal scales, broadcasting
           neg; shift(bits)              times 2^bits
           mul_public                    times a public integer tensor (second argument)
           sum(dims, keepdim), reshape(sizes), permute(dims), expand(sizes), slice(dim, start, stop, step),
           index(dim, indices), concat(dim), unfold(kernel, stride, padding)
private    linear                        [..., K] times the server's [K, N]
           mul_private                   elementwise, by a private value of either party
shared     mul, matmul                   shared by shared
           polynomial(coefficients)      sum c_k x^k, integer coefficients, ascending
           rescale(bits, ring)           divide by 2^bits; |x| < 2^(ring-2), opened modulo 2^ring
           less(threshold, bits)         1 where x < threshold, |x - threshold| < 2^(bits-1)
result     reveal(to, bits, ring)        x / 2^bits, of x modulo 2^ring (without bits: x), to the client alone; to
                                         "owner": each party keeps a fresh share for it
"""

from __future__ import annotations

SOURCES = frozenset({"client", "weight", "constant", "input"})
LINEAR = frozenset(
    {"add", "sub", "neg", "shift", "mul_public", "sum", "reshape", "permute", "expand", "slice", "index", "concat"}
    | {"unfold"}
)
PRIVATE = frozenset({"linear", "mul_private"})
SHARED = frozenset({"mul", "matmul", "polynomial", "rescale", "less"})
RESULT = frozenset({"reveal"})
OWNER = "owner"  # of the data, who takes no part in the protocol
RECIPIENTS = frozenset({"client", OWNER})  # of results
OPERATIONS = SOURCES | LINEAR | PRIVATE | SHARED | RESULT
