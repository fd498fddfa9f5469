"""Two parties and an offline dealer."""

from __future__ import annotations

from . import ProtocolEntry, ServiceSpec

ENTRY = ProtocolEntry(
    "beaver",
    words="two parties",
    who="two parties and an offline dealer, semi-honest, 128 bits",
    parties=2,
    start="start serve and query",
    served=ServiceSpec(
        client=".client.client:Client",
        service=".service.two_party:ServerService",
        words="with a dealer",
        helpers=("dealer",),
        storing=".client.two_party:storing",
    ),
    dealer=".service.dealer:DealerService",
    local=".client.local:LocalParties",
    price=".reports.estimate:price_of_two",
    talks=True,
    public="delegated",
    head=".client.private_head:with_private_head",
    receipts=True,
    devices=True,
)
