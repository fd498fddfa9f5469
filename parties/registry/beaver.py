"""Two parties and an offline dealer."""

from __future__ import annotations

from . import ProtocolEntry, RunsHere, ServiceSpec

ENTRY = ProtocolEntry(
    "beaver",
    words="two parties",
    who="two parties and an offline dealer, semi-honest, 128 bits",
    parties=2,
    start="start serve and query",
    served=ServiceSpec(
        client=".client.client:Client",
        service=".service.server:ServerService",
        front=".replicas.front:ServerFront",
        checks=".doctor.checks:SESSIONS",
        words="sessions with a dealer",
        helpers=("dealer",),
    ),
    local=RunsHere(
        start=".client.local_parties:LocalParties",
        report=".reports.report:two_party_report",
        threads=".client.threads:ThreadParties",
    ),
    price=".reports.estimate:price_of_two",
    talks=".client.client:conversation",
)
