"""Which Galois keys a circuit's rotations are made of. A key weighs megabytes, so there are fewer keys than rotations.

- Rotations of one ciphertext follow one another, as do those of sums: by 8 blocks is by 1 block eight times, and all
  between are wanted anyway (`chain`). As many key switches as before, and one key.
- A rotation that is used seldom is made of several others (`compose`): more key switches, by a tenth at most.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

SLACK = 0.1
"""Of the work of all rotations: what fewer keys may add to it."""

MOST = 4
"""Keys that one rotation is made of at the most: noise adds up."""


def chain(rotations: Iterable[int], slots: int) -> dict[int, int]:
    """Each rotation but 0 -> the one that it is reached from; near ones first. One way around, or both ways from 0:
    whichever has fewer different steps."""
    wanted = sorted({r % slots for r in rotations} - {0})
    near = [r for r in wanted if r <= slots // 2]
    far = wanted[len(near) :][::-1]
    one_way = dict(zip(wanted, [0, *wanted], strict=False))
    both = dict(zip(near, [0, *near], strict=False)) | dict(zip(far, [0, *far], strict=False))
    return min(both, one_way, key=lambda steps: len(hops(steps, slots)))


def hops(steps: Mapping[int, int], slots: int) -> set[int]:
    """The different steps of a chain."""
    return {(to - before) % slots for to, before in steps.items()}


def compose(work: Mapping[int, float], slots: int) -> dict[int, tuple[int, ...]]:
    """Each rotation -> the rotations with keys that it is made of, one after the other.

    work   of one rotation by so many steps, times how often there is one; steps modulo the slots, without 0
    """
    keys = sorted(work)
    compositions = {r: (r,) for r in keys}
    left = SLACK * sum(work.values())
    while True:
        trials = []
        for key in keys:
            candidate = _made(set(work), [k for k in keys if k != key], slots)
            if candidate is not None:
                trials.append((_added(work, candidate) - _added(work, compositions), key, candidate))
        if not trials or (best := min(trials, key=lambda trial: trial[:2]))[0] > left:
            return compositions
        left -= best[0]
        keys.remove(best[1])
        compositions = best[2]


def _added(work: Mapping[int, float], compositions: Mapping[int, tuple[int, ...]]) -> float:
    return sum(amount * (len(compositions[r]) - 1) for r, amount in work.items())


def _made(wanted: set[int], keys: list[int], slots: int) -> dict[int, tuple[int, ...]] | None:
    """Each rotation by as few keys as can be; None if one needs more than MOST."""
    last = np.zeros(slots, dtype=np.int64)  # the key of the last step there; 0: not reached
    edge, missing = np.array([0]), set(wanted)
    for _ in range(MOST):
        fresh = []
        for key in keys:
            to = (edge + key) % slots
            to = to[(last[to] == 0) & (to != 0)]
            last[to] = key
            fresh.append(to)
        edge = np.concatenate(fresh) if fresh else np.array([], dtype=np.int64)
        missing = {r for r in missing if not last[r]}
        if not missing:
            return {r: _back(r, last, slots) for r in wanted}
    return None


def _back(rotation: int, last: np.ndarray, slots: int) -> tuple[int, ...]:
    steps = []
    while rotation:
        steps.append(int(last[rotation]))
        rotation = (rotation - steps[-1]) % slots
    return tuple(steps)
