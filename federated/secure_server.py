# pyright: reportMissingImports=false
"""The server's part of secure aggregation: it passes keys and sealed shares on, adds masked vectors up, and takes the
masks off the sum. At no time does it know a client's vector."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from flwr.app import ConfigRecord, Message, RecordDict
from torch import Tensor

from ..protocols.streams import SEED_BYTES
from .messages import KEYS, SECURE, SHARES, UNMASK, name_of, reason, vector_of
from .secure import (
    BOX_BYTES,
    KEY_BYTES,
    SHARE_BYTES,
    Member,
    combine,
    decoded,
    mask,
    pair_mask,
    threshold_of,
    usable,
)
from .settings import FederateError

Send = Callable[[Iterable[Message]], list[Message]]


@dataclass
class Session:
    """One round's. `lost`: why each client that fell out did, by its name."""

    send: Send
    size: int
    name: str = field(default_factory=lambda: secrets.token_hex(8))
    members: dict[int, Member] = field(default_factory=dict)
    boxes: dict[int, dict[int, bytes]] = field(default_factory=dict)  # by receiver, then sender
    lost: dict[str, str] = field(default_factory=dict)

    def prepare(self, nodes: Iterable[int]) -> list[int]:
        """Keys and shares. Returns who is still there. Errors: FederateError if too few are."""
        replies = self._ask({i: {} for i in nodes}, KEYS, lambda node, reply: keys_fit(reply))
        self.members = {i: Member(bytes(r["mask"]), bytes(r["seal"])) for i, r in replies.items()}
        if len(self.members) < 3:
            raise FederateError(f"{len(self.members)} clients are left: a secure sum needs 3 or more")
        ids = sorted(self.members)
        roster = {
            "ids": ids,
            "masks": [self.members[i].mask for i in ids],
            "seals": [self.members[i].seal for i in ids],
        }
        replies = self._ask(
            dict.fromkeys(ids, roster),
            SHARES,
            lambda node, reply: parts_fit(reply, "boxes", [i for i in ids if i != node], BOX_BYTES),
        )
        self.boxes = {i: {} for i in replies}
        for sender, reply in replies.items():
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
        """The sum of the vectors of who sent one, in float64, and their names by node. Errors: FederateError."""
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
        found = self._ask(
            dict.fromkeys(present, asked),
            UNMASK,
            lambda node, reply: parts_fit(reply, "shares", list(self.boxes), SHARE_BYTES),
        )
        total = torch.stack([vectors[i] for i in present]).sum(0)
        holders, need = sorted(self.members), threshold_of(len(self.members))
        shares: dict[int, dict[int, bytes]] = {i: {} for i in self.boxes}
        for holder, reply in found.items():
            for i, part in zip(reply["ids"], reply["shares"], strict=True):
                shares[i][holder] = part
        for i in present:
            total -= mask(combine(shares[i], need, holders, SEED_BYTES), self.name, self.size)
        for i in dropped:
            key = combine(shares[i], need, holders, KEY_BYTES)
            for other in present:  # what `other` added for the pair is the negative of what `i` would have
                total += pair_mask(key, self.members[other].mask, self.name, self.size, i, other)
        return decoded(total), names

    def _vector(self, reply: Message) -> Tensor | None:
        vector = vector_of(reply)
        fits = vector is not None and vector.dtype == torch.int64 and vector.shape == (self.size,)
        return vector if fits and reply.metadata.src_node_id in self.boxes else None

    def _ask(
        self, asked: Mapping[int, Mapping[str, Any]], kind: str, fits: Callable[[int, ConfigRecord], bool]
    ) -> dict[int, Any]:
        """The answers that fit, by node."""
        messages = [
            Message(RecordDict({SECURE: ConfigRecord({"session": self.name, **what})}), node, kind)
            for node, what in asked.items()
        ]
        answers, silent = {}, set(asked)
        for reply in self.send(messages):
            silent.discard(reply.metadata.src_node_id)
            node, why = reply.metadata.src_node_id, reason(reply)
            found = reply.content.config_records.get(SECURE) if why is None else None
            if found is not None and fits(node, found):
                answers[node] = found
            else:
                self.lost[name_of(reply)] = why or f"sent what is no answer to {kind}"
        for node in silent:
            self.lost[f"node {node}"] = "did not answer in time"
        return answers

    def _enough(self, count: int) -> None:
        need = threshold_of(len(self.members))
        if count < need:
            raise FederateError(f"{count} of {len(self.members)} clients are left, {need} are needed for a secure sum")


def keys_fit(found: ConfigRecord) -> bool:
    """Whether these are a client's two public keys."""
    return all(isinstance(key := found.get(name), bytes) and usable(key) for name in ("mask", "seal"))


def parts_fit(found: ConfigRecord, name: str, ids: Sequence[int], size: int) -> bool:
    """Whether there is one part of `size` bytes for each of these ids, and nothing else."""
    given, parts = found.get("ids"), found.get(name)
    if not isinstance(given, list) or not isinstance(parts, list) or len(given) != len(parts):
        return False
    sizes = {len(part) if isinstance(part, bytes) else -1 for part in parts}
    return sorted(given, key=str) == sorted(ids, key=str) and sizes <= {size}
