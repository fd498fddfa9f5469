"""Two parties and an offline dealer, semi-honest: additive shares modulo 2^64, masks from AES-CTR streams.

Who learns what, message by message, is stated at the head of each primitive's file.
"""

from __future__ import annotations

from ..operations import of_kind


class Beaver:
    name = "beaver"
    parties = "server, client, offline dealer"
    security = "semi-honest, no two parties collude; masks from AES-128-CTR, openings uniform over the ring"
    exact = True

    @property
    def offers(self) -> frozenset[str]:
        from .primitive import primitives

        return of_kind("source", "local") | primitives().keys()


PROTOCOL = Beaver()
