"""Two parties and an offline dealer, semi-honest: additive shares modulo 2^64, masks from AES-CTR streams.

Who learns what, message by message, is stated at the head of each primitive's file.
"""

from __future__ import annotations

from functools import cache

from ..base import ProtocolInfo
from ..operations import of_kind


@cache
def _computes() -> frozenset[str]:
    from .primitive import primitives

    return of_kind("source", "local") | primitives().keys()


PROTOCOL = ProtocolInfo(
    "beaver",
    parties="server, client, offline dealer",
    security="semi-honest, no two parties collude; masks from AES-128-CTR, openings uniform over the ring",
    exact=True,
    list_operations=_computes,
)
