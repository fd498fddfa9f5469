"""How a data set's training part is dealt out to clients: all alike, or with classes in unequal shares.

T.-M. H. Hsu, H. Qi, M. Brown, arXiv:1909.06335, section 3: each class is divided among the clients by a draw from a
Dirichlet distribution. Every party that knows the seed finds the same shares.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .settings import FederateError

LEAST = 2  # examples of a client
_TRIES = 100


def deal(labels: Sequence[int], clients: int, alpha: float, seed: int) -> list[list[int]]:
    """Positions of each client's examples, disjoint and together all of them. alpha 0: all alike.

    Errors: FederateError if there are too few examples for so many clients.
    """
    if len(labels) < LEAST * clients:
        raise FederateError(f"{clients} clients: there are {len(labels)} examples to share; give fewer clients")
    random = np.random.default_rng((seed, clients))
    if alpha == 0:
        return [sorted(part.tolist()) for part in np.array_split(random.permutation(len(labels)), clients)]
    for _ in range(_TRIES):
        parts = _dirichlet(np.asarray(labels), clients, alpha, random)
        if min(map(len, parts)) >= LEAST:
            return parts
    raise FederateError(
        f"alpha {alpha:g}: in {_TRIES} draws some client of {clients} had fewer than {LEAST} examples; "
        "raise alpha, or give fewer clients"
    )


def _dirichlet(labels: np.ndarray, clients: int, alpha: float, random: np.random.Generator) -> list[list[int]]:
    parts: list[list[int]] = [[] for _ in range(clients)]
    for label in np.unique(labels):
        places = random.permutation(np.flatnonzero(labels == label))
        shares = random.dirichlet(np.full(clients, alpha))
        ends = np.round(np.cumsum(shares)[:-1] * len(places)).astype(int)
        for client, part in enumerate(np.split(places, ends)):
            parts[client] += part.tolist()
    return [sorted(part) for part in parts]
