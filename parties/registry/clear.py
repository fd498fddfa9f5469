"""The reference: the same computation in one process, which hides nothing."""

from __future__ import annotations

from . import ProtocolEntry

ENTRY = ProtocolEntry(
    "clear",
    words="insecure",
    who="the reference, in one process; it hides nothing",
    parties=2,
    local=".client.local:ClearSession",
    talks=True,
    reference=True,
)
