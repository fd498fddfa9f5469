"""Whom a secure sum can blame for a share of a key that is not the one that was dealt.

Its dealer gave the server a digest of every share, so a wrong one shows, and any `threshold` of the others give the
key. Whether the holder changed it or the dealer sealed another one for it, nobody else can tell: the two disagree. But
a client that is honest disagrees with dishonest ones alone; so one that disagrees with more than may be dishonest
(clients - threshold, as secrecy has it) is dishonest itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Faults:
    """Of one session. `dishonest`: how many clients may be, at most."""

    dishonest: int
    against: dict[int, set[int]] = field(default_factory=dict)

    def disagree(self, holder: int, dealer: int) -> None:
        """A share of the dealer's, as this holder gave it, is not the one that was dealt."""
        self.against.setdefault(holder, set()).add(dealer)
        self.against.setdefault(dealer, set()).add(holder)

    def blamed(self) -> list[int]:
        """Who lies for certain: it disagrees with too many, or with itself."""
        return sorted(i for i, others in self.against.items() if len(others) > self.dishonest or i in others)

    def pairs(self) -> list[tuple[int, int]]:
        """Of the rest, two of which one lies."""
        known = set(self.blamed())
        return sorted((i, j) for i, others in self.against.items() for j in others if i < j and not known & {i, j})
