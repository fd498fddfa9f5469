"""The masks r and s of one pass, in the order of its calls. The client and the dealer draw the same ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import torch
from torch import Tensor

from ..streams import Stream

_AT_ONCE = 1 << 16  # numbers


class PassMasks:
    """Of the pass whose key this is, through this sequence of (group, rows).

    The label names all that must agree: other weights, another server or another sequence under the same key have other
    masks. Each call's masks are read once, in order, and never twice.

    artifact  the digest of the model's manifest
    server    the fingerprint of the server's certificate; empty where channels have none
    """

    def __init__(self, key: bytes, artifact: str, server: str, sequence: Sequence[tuple[int, int]]) -> None:
        label = json.dumps([artifact, server, [list(call) for call in sequence]])
        self._stream = Stream(key, "delegated").reader(hashlib.sha256(label.encode()).hexdigest())
        self._ahead = torch.empty(0, dtype=torch.int32)

    def next(self, rows: int, inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
        """r [rows, inputs] and s [rows, outputs], int32, of the next call."""
        count = rows * (inputs + outputs)
        if len(self._ahead) < count:  # of small calls, many at once
            more = self._stream.int32(max(count - len(self._ahead), _AT_ONCE))
            self._ahead = torch.cat((self._ahead, more)) if len(self._ahead) else more
        r, s, self._ahead = self._ahead.split([rows * inputs, rows * outputs, len(self._ahead) - count])
        return r.view(rows, inputs), s.view(rows, outputs)
