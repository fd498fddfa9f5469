"""One session of the beaver protocol, party by party: set-up, then queries, over channels that are already introduced.

    set-up    server -> client   a catalogue of the masked weights D = W - B; those that the client has not
    live      client -> dealer   its seed, over a short connection of its own
              client -> server   "live"
              server -> dealer   its seed, the keys of the masks B, the program if the dealer does not know it
    a query   client -> server   its number, and where its correlations come from: live, or the spool
              live               the dealer sends the server corrections, the client makes its part from its seed
              the spool          both parties mark one number as used, and read what they kept of it
              server <-> client  the rounds of the program; the last message opens the result to the client alone
    ahead     the same correlations, kept by both for a later session

Who waits for a queue, a dealer or the other party's computing hears a sign of life every third of the timeout; so a
silence always means that somebody is gone.

The dealer learns two seeds, the keys of the weight masks, and how many queries there are: nothing that depends on the
text.

    server.py, client.py, dealer.py   the parties
    dealing.py                        the dealer as the server sees it
    weights.py, cache.py              the masked weights
    messages.py, keys.py, ahead.py, timings.py
"""

from __future__ import annotations

from .client import Answer, ClientParty, Progress, UseSpool
from .dealer import (
    DealerParty,
    MemoryPrograms,
    ProgramLimits,
    Programs,
    receive_program,
    receive_seed,
    wait_with,
)
from .keys import query_key
from .messages import patient
from .seeds import MemorySeeds, SeedError, Seeds
from .server import Outside, ServerParty
from .timings import Timings, peak_rss_mb, rss_mb
from .weights import Served, ServedPart, serve_parts, weight_keys

__all__ = [
    "Answer",
    "ClientParty",
    "DealerParty",
    "MemoryPrograms",
    "MemorySeeds",
    "Outside",
    "ProgramLimits",
    "Programs",
    "Progress",
    "SeedError",
    "Seeds",
    "Served",
    "ServedPart",
    "ServerParty",
    "Timings",
    "UseSpool",
    "patient",
    "peak_rss_mb",
    "query_key",
    "receive_program",
    "receive_seed",
    "rss_mb",
    "serve_parts",
    "wait_with",
    "weight_keys",
]
