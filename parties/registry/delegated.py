"""Linear layers of a public model, delegated to a server; a dealer that holds the same weights helps ahead."""

from __future__ import annotations

from . import ProtocolEntry, ServiceSpec

ENTRY = ProtocolEntry(
    "delegated",
    words="public model",
    who="one server and an offline dealer that do not collude, answers checked, 128 bits",
    parties=2,
    start="start serve and query",
    served=ServiceSpec(
        client=".client.delegated:DelegatedClient",
        service=".service.delegated:DelegatedServerService",
        words="public model",
        checks=".doctor.checks:DELEGATED",
        helpers=("dealer",),
        holds=("dealer",),
        storing=".client.delegated:storing",
    ),
    dealer=".service.delegated:DelegatedDealerService",
    local=".client.delegated:DelegatedSession",
    private=".client.private_head:DelegatedPrivateModel",
    talks=True,
    receipts=True,
    compiled="..models.delegated:is_delegated",
    as_it_is=True,
)
