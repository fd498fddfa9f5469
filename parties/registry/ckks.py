"""One encrypted request, one encrypted reply."""

from __future__ import annotations

from . import ProtocolEntry, ServiceSpec

ENTRY = ProtocolEntry(
    "ckks",
    words="encrypted",
    who="one server, which computes on ciphertexts   CKKS, 128 bits",
    parties=2,
    start="start serve and query",
    served=ServiceSpec(
        client=".client.client:EncryptedClient",
        service=".service.encrypted:EncryptedService",
        checks=".doctor.checks:ENCRYPTED_QUERIES",
        words="encrypted",
    ),
    local=".client.encrypted:LocalEncrypted",
    check=".client.client:check_tenseal",
)
