"""Seeds of key streams, and of a process's general generators: from the operating system's CSPRNG, without torch."""

from __future__ import annotations

import os
import secrets
import sys

SEED_BYTES = 32  # not 16: whoever looks for any of 2^30 seeds at once needs 2^30 times fewer guesses (streams.py)
SEED_HEX = f"^[0-9a-f]{{{2 * SEED_BYTES}}}$"  # a pattern, of seeds in messages


def new_seed() -> bytes:
    return secrets.token_bytes(SEED_BYTES)


def reseed() -> None:
    """For a process that was forked: its parent and their other children have the state of torch's and of numpy's
    generators, if they have imported them, and would draw the same. Python's own does this by itself. No mask comes
    from any of them."""
    if (torch := sys.modules.get("torch")) is not None:
        # The CPU's: torch.manual_seed looks for other devices, too, which takes 2 MB of each process.
        torch.default_generator.manual_seed(int.from_bytes(os.urandom(8)))
    if (random := sys.modules.get("numpy.random")) is not None:
        random.seed(list(os.urandom(32)))
