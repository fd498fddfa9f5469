"""Shares of A B modulo 2^(8 width), of matrices that are both shared: two products with what one party knows.

    A B = A0 B0 + A1 B1 + A0 B1 + A1 B0
Each party encrypts its share of B as if it were weights, and multiplies the other's by its share of A (linear.py), both
at once:
    request    each way    B_i, encrypted under the party's own key
    reply      each way    A_i B_j - R_i, encrypted, flooded
    share      A_i B_i + R_i + what it decrypts, A_j B_i - R_j
Or the same of B^T A^T, if that has fewer rows: a row is a merge of ciphertexts, which is most of the work.

Who learns what: as in linear.py, in both roles. The numbers are modulo 2^(8 width) already, so masks have no more bits.
A party that wants a share r that it knows replies second, with R_i = r - A_i B_i - what it decrypted.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .lattice import HomomorphicError, LatticeKey, LatticePublic
from .linear import LinearClient, LinearServer, blocks, linear_cost


def matrix_cost(batch: int, rows: int, inner: int, columns: int, width: int = 8) -> tuple[int, int]:
    """Bytes of a request and of a reply, of each party."""
    if _turned(batch, rows, columns):
        rows, columns = columns, rows
    return linear_cost(batch, rows, inner, columns, width)


def _turned(batch: int, rows: int, columns: int) -> bool:
    return columns * len(blocks(rows)) < rows * len(blocks(columns))


class MatrixParty:
    """A party of one product of A [batch, rows, inner] and B [batch, inner, columns], with its shares of both, int64.

    Errors: HomomorphicError, also for what a peer sent.
    """

    def __init__(self, key: LatticeKey, a: Tensor, b: Tensor, width: int = 8) -> None:
        if a.dim() != 3 or b.dim() != 3 or a.shape[::2] != b.shape[:2]:
            raise HomomorphicError(f"matrices {list(a.shape)} and {list(b.shape)}: give batches that fit")
        self._own, self._width = torch.matmul(a, b), width
        self._is_turned = _turned(len(a), a.shape[1], b.shape[2])
        self._left, right = (b.mT, a.mT) if self._is_turned else (a, b)
        self._server = LinearServer(key, right, width)
        self._shape = tuple(right.shape)

    def request(self) -> bytes:
        """The first number of matrix_cost."""
        return self._server.setup()

    def reply(self, public: LatticePublic, request: bytes, r: Tensor) -> bytes:
        """To the other's request; r [batch, rows, columns] is uniform and used once. The second number of
        matrix_cost."""
        batch, inner, columns = self._shape
        client = LinearClient(public, request, (batch, inner, columns), self._width)
        return client.reply(self._left, r.mT if self._is_turned else r)

    def crossed(self, reply: bytes) -> Tensor:
        """What the other's reply holds, [batch, rows, columns]."""
        share = self._server.shares(reply, self._left.shape[1])
        return share.mT if self._is_turned else share

    def share(self, reply: bytes, r: Tensor) -> Tensor:
        """This party's share of A B, right in the low `width` bytes, with the r of its own reply."""
        return self._own + r + self.crossed(reply)
