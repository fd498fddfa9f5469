"""Tables among N parties: the dealer's numbers themselves. The keys that spare them are two parties'
(protocols/beaver/point_function.py)."""

from __future__ import annotations

from ...beaver import lookup


class LookupByNumbers(lookup.Lookup):
    op = "lookup"
    keyed = False
