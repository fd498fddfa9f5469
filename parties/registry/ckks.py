"""One encrypted request, one encrypted reply."""

from __future__ import annotations

from . import ProtocolEntry, RunsHere, ServiceSpec

ENTRY = ProtocolEntry(
    "ckks",
    words="encrypted",
    who="one server, which computes on ciphertexts   CKKS, 128 bits",
    parties=2,
    start="start serve and query",
    served=ServiceSpec(
        client=".client.client:EncryptedClient",
        service=".service.https.serving:HttpsService",
        checks=".doctor.checks:ENCRYPTED_QUERIES",
        words="encrypted queries",
    ),
    local=RunsHere(
        start=".client.encrypted:LocalEncrypted",
        report=".reports.report:encrypted_report",
        texts=".client.encrypted:texts_of_circuit",
        costs=".reports.report:requests_in_words",
    ),
)
