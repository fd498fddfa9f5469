"""Two or more parties and an offline dealer, on CrypTen: its communicator, its tensors in and out, our primitives.

The parties hold additive shares modulo 2^64, which is what CrypTen's arithmetic tensors hold. Party 0, the leader, owns
the model and receives the dealer's corrections. Products, powers, rescales and comparisons are those of `beaver`
(each head there says who learns what), opened among all parties; what differs with more than two of them is here.

    primitives/   products with a value that one party knows: X - A goes to that party alone
                  results: to one party, each share under a fresh sharing of zero
    source.py     correlations among N parties and a dealer
    context.py    declared costs, for any N, too; engine.py adds up a Program's
    wire.py       rounds on a CrypTen communicator
"""

from __future__ import annotations

from ..base import ProtocolInfo
from ..operations import of_kind


def _computes() -> frozenset[str]:
    from .primitives import primitives

    return of_kind("source", "local") | primitives().keys()


PROTOCOL = ProtocolInfo(
    "crypten",
    parties="two or more parties, the first owns the model; offline dealer",
    security="semi-honest, the dealer colludes with nobody, up to N-1 others may; masks from AES-128-CTR, no wraps",
    exact=True,
    list_operations=_computes,
)
