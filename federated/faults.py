"""Whom a secure sum can blame for a share of a key that is not the one that was dealt.

Its dealer gave the server a digest of every share, so a wrong one shows, and any `threshold` of the others give the
key. Whether the holder changed it or the dealer sealed another one for it, nobody else can tell: the two disagree.

Of n clients, n - threshold may be faulty: silent or dishonest. While no more are, an honest client's shares give its
key; and it disagrees with dishonest clients alone: with as many as may be faulty at most, and, of those that answered,
with as many as may be faulty beside the silent ones. Who disagrees with more is dishonest. A client whose key cannot be
had does: n - silent answered, fewer than `threshold` of them with a right share. So each round that fails finds one.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Faults:
    """Of one session. `most`: how many clients may be faulty; `silent`: who gave no shares."""

    most: int
    silent: frozenset[int]
    against: dict[int, set[int]] = field(default_factory=dict)

    def disagree(self, holder: int, dealer: int) -> None:
        """A share of the dealer's, as this holder gave it, is not the one that was dealt."""
        self.against.setdefault(holder, set()).add(dealer)
        self.against.setdefault(dealer, set()).add(holder)

    def blamed(self) -> list[int]:
        """Who lies. Where more are faulty than may be, those that could be either side of a quarrel are spared."""
        certain = {i for i, others in self.against.items() if i in others or len(others) > self.most}
        rest = {i: others - certain for i, others in self.against.items() if i not in certain}
        over = {i for i, others in rest.items() if len(others - self.silent) > self.most - len(self.silent)}
        suspects = {i for i in over if rest[i] - over or all(len(rest[i]) > len(rest[j]) for j in rest[i])}
        return sorted(certain | suspects)

    def pairs(self) -> list[tuple[int, int]]:
        """Of the others, two of which one lies."""
        known = set(self.blamed())
        return sorted((i, j) for i, others in self.against.items() for j in others if i < j and not known & {i, j})
