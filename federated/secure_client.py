# pyright: reportMissingImports=false
"""A client's part of secure aggregation: four messages of one session, in order, each answered once."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from flwr.app import ConfigRecord, RecordDict
from torch import Tensor

from ..protocols.streams import new_seed
from .client_identity import ClientIdentity, Signed
from .messages import SECURE
from .secure import (
    SHARE_BYTES,
    SecureMember,
    agreed,
    digest,
    encoded,
    mask,
    new_key,
    opened,
    pair_mask,
    sealed,
    share,
    threshold_of,
)
from .settings import FederateError


@dataclass
class SecureState:
    """What a client keeps between the messages of a session, in its own node alone.

    stage      the last one that was answered: keys, shares, vector, done
    members    ids (as texts) and public keys, hexadecimal, of all in the session
    boxes      sealed shares that the others sent, by id
    """

    session: str = ""
    stage: str = ""
    me: int = 0
    mask_key: str = ""
    seal_key: str = ""
    own: str = ""
    members: dict[str, list[str]] = field(default_factory=dict)
    boxes: dict[str, str] = field(default_factory=dict)

    @classmethod
    def kept(cls, state: RecordDict) -> SecureState:
        record = state.config_records.get(SECURE)
        return cls() if record is None else cls(**json.loads(str(record["part"])))

    def keep(self, state: RecordDict) -> None:
        state[SECURE] = ConfigRecord({"part": json.dumps(asdict(self))})

    def expect(self, session: str, stage: str) -> None:
        """Errors: FederateError for a message out of its order, or repeated."""
        if (self.session, self.stage) != (session, stage):
            raise FederateError("a message of secure aggregation came twice, or too late; begin the round again")

    @property
    def roster(self) -> dict[int, SecureMember]:
        return {int(i): SecureMember(bytes.fromhex(m), bytes.fromhex(s)) for i, (m, s) in self.members.items()}


def keys(session: str, me: int, identity: ClientIdentity | None = None) -> tuple[SecureState, ConfigRecord]:
    """First message: two fresh pairs of keys, signed by an identity that has a key. A new session forgets the last."""
    mask_key, mask_public = new_key()
    seal_key, seal_public = new_key()
    part = SecureState(session, "keys", me, mask_key.hex(), seal_key.hex())
    part.members = {str(me): [mask_public.hex(), seal_public.hex()]}
    signed = (identity or ClientIdentity()).sign(mask_public, seal_public, session, me)
    return part, ConfigRecord(asdict(signed))


def shares(part: SecureState, given: ConfigRecord, most: int, identity: ClientIdentity | None = None) -> ConfigRecord:
    """Second message: everybody's keys arrive; sealed shares of the own mask's seed and of the key of the pairs go out.

    So do digests of the seed and of all shares, in the order of ids: a wrong share will show. `most`: clients of the
    run; a server that names more invents them.
    """
    part.expect(str(given["session"]), "keys")
    columns: Any = [given[name] for name in ("ids", "masks", "seals", "signers", "signatures")]
    everybody = {i: Signed(*keys) for i, *keys in zip(*columns, strict=True)}
    (identity or ClientIdentity()).check(everybody, part.session)
    members = {str(i): [keys.mask.hex(), keys.seal.hex()] for i, keys in everybody.items()}
    if len(members) > most:
        raise FederateError(f"{len(members)} clients in the session of a run of {most}; the server may be lying")
    public = [key for pair in members.values() for key in pair]
    if members.get(str(part.me)) != part.members[str(part.me)] or len(set(public)) != len(public):
        raise FederateError("the keys of the session are not those that were sent; the server may be lying")
    if len(members) < 3:
        raise FederateError(f"{len(members)} clients in the session: a sum of so few says too much")
    part.members, part.stage = members, "shares"
    own = new_seed()
    part.own = own.hex()
    roster = part.roster
    need = threshold_of(len(roster))
    of_own = share(own, need, list(roster))
    of_key = share(bytes.fromhex(part.mask_key), need, list(roster))
    others = [i for i in sorted(roster) if i != part.me]
    boxes = [sealed(_seal(part, roster[i]), of_own[i] + of_key[i], f"{part.session} {part.me} {i}") for i in others]
    part.boxes = {str(part.me): (of_own[part.me] + of_key[part.me]).hex()}
    digests = [digest(of_own[i]) + digest(of_key[i]) for i in sorted(roster)]
    return ConfigRecord({"ids": others, "boxes": boxes, "digests": digests, "seed": digest(own)})


def begin_vector(part: SecureState, given: ConfigRecord, identity: ClientIdentity | None = None) -> None:
    """Third message, before training: who sent shares. Vectors are masked for these alone.

    Among known clients each one's shares have to open: that takes its key of this very session. The signed keys of an
    old one of the same name, which the server could bring again, do not.
    """
    part.expect(str(given["session"]), "shares")
    ids: Any = given["ids"]
    boxes: Any = given["boxes"]
    roster = part.roster
    if not set(ids) <= set(roster) - {part.me} or len(set(ids)) + 1 < threshold_of(len(roster)):
        raise FederateError("too few clients of the session are left, or strangers came; begin the round again")
    part.boxes |= {str(i): box.hex() for i, box in zip(ids, boxes, strict=True)}
    if identity is not None and identity.known:
        for i in ids:
            if not any(_opened(part, roster[i], i)):
                raise FederateError(f"node {i} sent shares that do not open: it may be of an old session; leave it out")


def masked(part: SecureState, vector: Tensor) -> Tensor:
    """The vector in fixed point, under the own mask and one a pair: uniform to whoever lacks one of them."""
    roster = part.roster
    total = encoded(vector, len(roster)) + mask(bytes.fromhex(part.own), part.session, len(vector))
    for i in map(int, part.boxes):
        if i != part.me:
            total += pair_mask(bytes.fromhex(part.mask_key), roster[i].mask, part.session, len(vector), part.me, i)
    part.stage = "vector"
    return total


def noisy_others(part: SecureState, trusted: int) -> int:
    """Of so many other clients that add the noise that they should, how many are in any sum that is opened, at least.

    Each of the h = n - u clients that can be trusted gives shares of the own masks of t clients at least, of keys of
    the others, and never of both (`unmask`), whatever the server tells each of them; u others give both. Who is left
    out of a sum has given at most h - (t - u) of the h t shares of own masks, whoever is in it at most h.
    """
    members = len(part.members)
    need, strangers = threshold_of(members), max(0, members - 1 - trusted)
    if need <= strangers:
        return 0
    left_out = (members - strangers) * (members - need) // (need - strangers)
    return max(0, members - left_out - 1 - strangers)


def unmask(part: SecureState, given: ConfigRecord) -> ConfigRecord:
    """Fourth message: for who is in the sum, the share of its own mask; for who dropped, of its key. Never both.

    Zeros for a box that does not open: they are no share, and the server hears of it.
    """
    part.expect(str(given["session"]), "vector")
    present: Any = given["present"]
    dropped: Any = given["dropped"]
    known = {int(i) for i in part.boxes}
    if set(present) & set(dropped) or set(present) | set(dropped) != known or part.me not in present:
        raise FederateError("the server asks for shares that would open a client's vector; refused")
    if len(present) < threshold_of(len(part.members)):
        raise FederateError("too few clients are in the sum: their vectors would not stay hidden")
    part.stage = "done"
    roster, half = part.roster, {}
    for i in sorted(known):
        both = _opened(part, roster[i], i)
        middle = len(both) // 2
        half[i] = both[:middle] if i in present else both[middle:]
    return ConfigRecord({"ids": list(half), "shares": list(half.values())})


def _opened(part: SecureState, sender: SecureMember, i: int) -> bytes:
    box = bytes.fromhex(part.boxes[str(i)])
    if i == part.me:
        return box
    try:
        return opened(_seal(part, sender), box, f"{part.session} {i} {part.me}")
    except FederateError:
        return bytes(2 * SHARE_BYTES)


def _seal(part: SecureState, other: SecureMember) -> bytes:
    return agreed(bytes.fromhex(part.seal_key), other.seal, f"seal {part.session}")
