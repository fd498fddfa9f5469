"""Preprocessed correlations: each party keeps its part of some queries' on disk, and uses each at most once.

    ledger.py   what is ready and what was used, in SQLite, committed to the disk before anything is handed out; and its
                keys, each overwritten before it is handed out
    spool.py    the server's files of corrections; which number both parties have: the server's and the client's side
                of a short conversation

At most once holds through crashes, retries, several processes, and an old copy of one party's folder put in place of
the present one: the other party's ledger still knows. It does not hold when old copies of *both* parties' folders are
put back: remove the spool after restoring a backup. A ledger that is bound to its folder needs no other one.
"""

from __future__ import annotations

from .ledger import KEYS, SHARED, SpoolError, audit_tag
from .spool import LEDGER, Spool

SPOOL_FILES = (LEDGER, KEYS, SHARED)  # a folder with one of them is a spool

__all__ = ["SPOOL_FILES", "Spool", "SpoolError", "audit_tag"]
