# pyright: reportMissingImports=false
"""The server's part of secure aggregation: it passes keys and sealed shares on, adds masked vectors up, and takes the
masks off the sum. At no time does it know a client's vector."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from flwr.app import ConfigRecord, Message, RecordDict
from torch import Tensor

from ..protocols.streams import SEED_BYTES
from .client_identity import MOST_BYTES
from .messages import CONFIG, KEYS, SECURE, SHARES, UNMASK, name_of, reason, vector_of
from .secure import (
    BOX_BYTES,
    DIGEST_BYTES,
    KEY_BYTES,
    SHARE_BYTES,
    SecureMember,
    combine,
    decoded,
    digest,
    mask,
    pair_mask,
    public_of,
    threshold_of,
    usable,
)
from .settings import FederateError

# Whom a secure sum can blame for a share of a key that is not the one that was dealt.
#
# Its dealer gave the server a digest of every share, so a wrong one shows, and any `threshold` of the others give the
# key. Whether the holder changed it or the dealer sealed another one for it, nobody else can tell: the two disagree.
#
# Of n clients, n - threshold may be faulty: silent or dishonest. While no more are, an honest client's shares give its
# key; and it disagrees with dishonest clients alone: with as many as may be faulty at most, and, of those that
# answered, with as many as may be faulty beside the silent ones. Who disagrees with more is dishonest. A client whose
# key cannot be had does: n - silent answered, fewer than `threshold` of them with a right share. So each round that
# fails finds one.


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


Send = Callable[[Iterable[Message]], list[Message]]


@dataclass(frozen=True)
class Commitments:
    """Digests of a client's shares by holder (of its seed's, then of its key's), and of its seed."""

    shares: Mapping[int, tuple[bytes, bytes]]
    seed: bytes


@dataclass
class SecureRound:
    """One round's.

    dealt     what each client said of the shares that it dealt
    lost      why a client fell out, or what is wrong with it, by its name
    left_out  nodes that cheat, for certain: not to be asked again
    """

    send: Send
    size: int
    name: str = field(default_factory=lambda: secrets.token_hex(8))
    members: dict[int, SecureMember] = field(default_factory=dict)
    boxes: dict[int, dict[int, bytes]] = field(default_factory=dict)  # by receiver, then sender
    dealt: dict[int, Commitments] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    left_out: list[int] = field(default_factory=list)

    def prepare(self, nodes: Iterable[int], config: ConfigRecord) -> list[int]:
        """Keys and shares. `config`: what a client has to agree to first. Returns who is still there.

        Errors: FederateError if too few are.
        """
        replies = self._ask({i: {} for i in nodes}, KEYS, lambda node, reply: keys_fit(reply), config)
        signed: dict[int, tuple[bytes, bytes]] = {}
        keys = Counter(bytes(r[name]) for r in replies.values() for name in ("mask", "seal"))
        for i, r in replies.items():
            member = SecureMember(bytes(r["mask"]), bytes(r["seal"]))
            signed[i] = bytes(r["signer"]), bytes(r["signature"])
            if keys[member.mask] == keys[member.seal] == 1:
                self.members[i] = member
            else:  # the others would take the server for a liar
                self.lost[self.names[i]] = "sent a key that is not new; its keys have to be its own"
        if len(self.members) < 3:
            raise FederateError(f"{len(self.members)} clients are left: a secure sum needs 3 or more")
        ids = sorted(self.members)
        roster = {
            "ids": ids,
            "masks": [self.members[i].mask for i in ids],
            "seals": [self.members[i].seal for i in ids],
            "signers": [signed[i][0] for i in ids],
            "signatures": [signed[i][1] for i in ids],
        }
        replies = self._ask(
            dict.fromkeys(ids, roster),
            SHARES,
            lambda node, reply: (
                parts_fit(reply, "boxes", [i for i in ids if i != node], BOX_BYTES) and digests_fit(reply, len(ids))
            ),
        )
        self.boxes = {i: {} for i in replies}
        for sender, reply in replies.items():
            halves = [(both[:DIGEST_BYTES], both[DIGEST_BYTES:]) for both in reply["digests"]]
            self.dealt[sender] = Commitments(dict(zip(ids, halves, strict=True)), reply["seed"])
            for receiver, box in zip(reply["ids"], reply["boxes"], strict=True):
                if receiver in self.boxes:
                    self.boxes[receiver][sender] = box
        self._enough(len(replies))
        return sorted(replies)

    def request(self, node: int) -> ConfigRecord:
        """What goes with the third message: the sealed shares for this client."""
        boxes = self.boxes[node]
        return ConfigRecord({"session": self.name, "ids": list(boxes), "boxes": list(boxes.values())})

    def total(self, replies: Iterable[Message]) -> tuple[Tensor, dict[int, str]]:
        """The sum of the vectors of who sent one, in float64, and their names by node.

        Errors: FederateError if masks stay on it: too few shares, or a client whose shares give no key.
        """
        vectors: dict[int, Tensor] = {}
        names: dict[int, str] = {}
        for reply in replies:
            node, why = reply.metadata.src_node_id, reason(reply)
            if why is None and (vector := self._vector(reply)) is not None:
                vectors[node], names[node] = vector, name_of(reply)
            else:
                self.lost[name_of(reply)] = why or "its vector has another shape"
        self._enough(len(vectors))
        present, dropped = sorted(vectors), sorted(set(self.boxes) - set(vectors))
        asked = {"present": present, "dropped": dropped}
        answers = self._ask(
            dict.fromkeys(present, asked),
            UNMASK,
            lambda node, reply: parts_fit(reply, "shares", list(self.boxes), SHARE_BYTES),
        )
        seeds, keys = self._secrets(answers, present, dropped)
        total = torch.stack([vectors[i] for i in present]).sum(0)
        for seed in seeds.values():
            total -= mask(seed, self.name, self.size)
        for i, key in keys.items():
            for other in present:  # what `other` added for the pair is the negative of what `i` would have
                total += pair_mask(key, self.members[other].mask, self.name, self.size, i, other)
        return decoded(total), names

    def _secrets(
        self, answers: Mapping[int, Any], present: Sequence[int], dropped: Sequence[int]
    ) -> tuple[dict[int, bytes], dict[int, bytes]]:
        """Seeds of who is present, keys of who dropped, from the shares that are those that were dealt.

        Errors: FederateError if one cannot be had.
        """
        self._enough(len(answers))
        shares: dict[int, dict[int, bytes]] = {i: {} for i in self.boxes}
        faults = Faults(
            len(self.members) - threshold_of(len(self.members)), frozenset(set(self.members) - set(answers))
        )
        for holder, reply in answers.items():
            for dealer, part in zip(reply["ids"], reply["shares"], strict=True):
                if digest(part) == self.dealt[dealer].shares[holder][dealer in dropped]:
                    shares[dealer][holder] = part
                else:
                    faults.disagree(holder, dealer)
        self._blame(faults)
        seeds = {i: self._secret(i, shares[i], SEED_BYTES, lambda secret, i=i: digest(secret) == self.dealt[i].seed)
                 for i in present}  # fmt: skip
        keys = {i: self._secret(i, shares[i], KEY_BYTES, lambda secret, i=i: public_of(secret) == self.members[i].mask)
                for i in dropped}  # fmt: skip
        lacking = [self._name(i) for i, secret in {**seeds, **keys}.items() if secret is None]
        if lacking:
            raise FederateError(f"the shares of {', '.join(lacking)} give no key: its masks stay on the sum")
        return {i: secret for i, secret in seeds.items() if secret}, {i: secret for i, secret in keys.items() if secret}

    def _secret(
        self, dealer: int, shares: Mapping[int, bytes], size: int, right: Callable[[bytes], bool]
    ) -> bytes | None:
        """None if there are too few shares. With enough of them, all as they were dealt, nobody but the dealer lies."""
        need = threshold_of(len(self.members))
        if len(shares) < need:
            return None
        try:
            if right(secret := combine(shares, need, sorted(self.members), size)):
                return secret
        except FederateError:
            pass
        self._leave_out(dealer, "dealt shares that give no key")
        return None

    def _blame(self, faults: Faults) -> None:
        for i in faults.blamed():
            self._leave_out(i, "its shares of keys contradict other clients")
        for pair in faults.pairs():
            self.lost[" and ".join(map(self._name, pair))] = "disagree about a share of a key: one of the two lies"

    def _leave_out(self, node: int, why: str) -> None:
        self.left_out.append(node)  # by node: a name is what a client says of itself
        self.lost[self._name(node)] = f"{why}; it is left out of the rounds to come"

    def _name(self, node: int) -> str:
        return self.names.get(node, f"node {node}")

    def _vector(self, reply: Message) -> Tensor | None:
        vector = vector_of(reply)
        fits = vector is not None and vector.dtype == torch.int64 and vector.shape == (self.size,)
        return vector if fits and reply.metadata.src_node_id in self.boxes else None

    def _ask(
        self,
        asked: Mapping[int, Mapping[str, Any]],
        kind: str,
        fits: Callable[[int, ConfigRecord], bool],
        config: ConfigRecord | None = None,
    ) -> dict[int, Any]:
        """The answers that fit, by node."""
        extra = {} if config is None else {CONFIG: config}
        messages = [
            Message(RecordDict({SECURE: ConfigRecord({"session": self.name, **fields}), **extra}), node, kind)
            for node, fields in asked.items()
        ]
        answers, silent = {}, set(asked)
        for reply in self.send(messages):
            node, why = reply.metadata.src_node_id, reason(reply)
            silent.discard(node)
            self.names[node] = name_of(reply)
            answer = reply.content.config_records.get(SECURE) if why is None else None
            if answer is not None and fits(node, answer):
                answers[node] = answer
            else:
                self.lost[name_of(reply)] = why or f"sent what is no answer to {kind}"
        for node in silent:
            self.lost[f"node {node}"] = "did not answer in time"
        return answers

    def _enough(self, count: int) -> None:
        need = threshold_of(len(self.members))
        if count < need:
            raise FederateError(f"{count} of {len(self.members)} clients are left, {need} are needed for a secure sum")


def keys_fit(reply: ConfigRecord) -> bool:
    """Whether these are a client's two public keys, and a signature or none."""
    if not all(isinstance(key := reply.get(name), bytes) and usable(key) for name in ("mask", "seal")):
        return False
    words = (reply.get("signer"), reply.get("signature"))
    return all(isinstance(word, bytes) and len(word) <= MOST_BYTES for word in words)


def parts_fit(reply: ConfigRecord, name: str, ids: Sequence[int], size: int) -> bool:
    """Whether there is one part of `size` bytes for each of these ids, and nothing else."""
    holders, parts = reply.get("ids"), reply.get(name)
    if not isinstance(holders, list) or not isinstance(parts, list) or len(holders) != len(parts):
        return False
    sizes = {len(part) if isinstance(part, bytes) else -1 for part in parts}
    return sorted(holders, key=str) == sorted(ids, key=str) and sizes <= {size}


def digests_fit(reply: ConfigRecord, count: int) -> bool:
    """Whether there is a digest of each of the two shares of every holder, and one of the seed."""
    digests, seed = reply.get("digests"), reply.get("seed")
    return (
        isinstance(digests, list)
        and [len(both) if isinstance(both, bytes) else -1 for both in digests] == [2 * DIGEST_BYTES] * count
        and isinstance(seed, bytes)
    )
