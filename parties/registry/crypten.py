"""N parties and an offline dealer, on CrypTen."""

from __future__ import annotations

from . import ProtocolEntry

ENTRY = ProtocolEntry(
    "crypten",
    words="N parties",
    start="start its parties with `blindformer serve --party`",
    dealer=".service.dealer:NPartyDealerService",
    local=".client.local_n_party:LocalNParty",
    check="..protocols.crypten.versions:check_versions",
    price=".reports.estimate:price_of_parties",
    talks=True,
    devices=True,
)
