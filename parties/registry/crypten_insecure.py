"""CrypTen as it comes: the first party makes all correlations."""

from __future__ import annotations

from . import ProtocolEntry

ENTRY = ProtocolEntry(
    "crypten-insecure",
    words="",
    local=".client.local_n_party:InsecureNParty",
    check="..protocols.crypten.versions:check_versions",
    insecure="the model's owner makes all correlations, as CrypTen's default provider has it, so it can read the data; "
    "for comparison only",
)
