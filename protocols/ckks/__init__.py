"""One encrypted request, one encrypted reply: CKKS ciphertexts, by SEAL through TenSEAL. No dealer, no interaction.

The client alone holds the secret key. The server computes on ciphertexts and sees their number, sizes and times.
A Program becomes a circuit of affine maps and products (planner.py); what is linear costs one level however much of it
there is. Results are approximate, so this protocol is held to `clear` within an error, not to the last bit.

Nothing imports TenSEAL here; keys.py and evaluator.py do.
"""

from __future__ import annotations

from ..base import ProtocolInfo


def _computes() -> set[str]:
    from .planner import plan

    return {"client", "weight", "constant", *plan.all}


PROTOCOL = ProtocolInfo(
    "ckks",
    parties="client, server",
    security="the server follows the protocol and learns only sizes; CKKS at 128 bits",
    exact=False,
    list_operations=_computes,
)
