"""Seeds of key streams: from the operating system's CSPRNG, without torch."""

from __future__ import annotations

import secrets

SEED_BYTES = 32  # not 16: whoever looks for any of 2^30 seeds at once needs 2^30 times fewer guesses (streams.py)
SEED_HEX = f"^[0-9a-f]{{{2 * SEED_BYTES}}}$"  # a pattern, of seeds in messages


def new_seed() -> bytes:
    return secrets.token_bytes(SEED_BYTES)
