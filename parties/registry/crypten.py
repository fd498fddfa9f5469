"""N parties and an offline dealer, on CrypTen."""

from __future__ import annotations

from . import ProtocolEntry, RunsHere

ENTRY = ProtocolEntry(
    "crypten",
    words="N parties",
    start="start its parties with `blindformer party`",
    local=RunsHere(
        start=".client.local_n_party:LocalNParty",
        report=".reports.report:parties_report",
        check="..protocols.crypten.versions:check_versions",
    ),
    price=".reports.estimate:price_of_parties",
    talks=".client.local_n_party:conversation",
)
