"""The reference: the same computation in one process, which hides nothing."""

from __future__ import annotations

from . import ProtocolEntry, RunsHere

ENTRY = ProtocolEntry(
    "clear",
    words="to compare",
    who="the reference, in one process; it hides nothing",
    parties=2,
    local=RunsHere(
        start=".client.clear:ClearSession",
        report=".reports.report:clear_report",
        threads=".client.clear:ClearSession",
    ),
    talks=".client.clear:conversation",
    reference=True,
)
