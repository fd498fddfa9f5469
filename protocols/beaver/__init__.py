"""Two parties and an offline dealer, semi-honest: additive shares modulo 2^64, masks from AES-CTR streams.

Who learns what, message by message, is stated at the head of each primitive's file.
"""

from __future__ import annotations

from ..operations import OPERATIONS


class Beaver:
    name = "beaver"
    offers = OPERATIONS
    parties = "server, client, offline dealer"
    security = "semi-honest, no two parties collude; masks from AES-128-CTR, openings uniform over the ring"
    exact = True


PROTOCOL = Beaver()
