"""The cost of a private run, layer by layer, and what each party learned."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ...models.program.pricing import Layer, price
from ...models.program.program import Program
from ...models.program.two_server import is_for_two_servers
from ..session.online import Timings
from ..session.parties import Parties

MB = 1e6
PEAK = "_peak_rss_mb"  # after a party's name
BUT_HEAD = "all of the model but its head: the base is public"
_SUMS = (
    "offline_s",
    "online_s",
    "offline_bytes",
    "online_bytes",
    "sent_bytes",
    "rounds",
    "audits",
)  # set-up is a session's


@dataclass
class Report:
    """The cost of one query. `str(report)` is a text of it.

    Seconds are measured at the client. Bytes are payload in both directions; `sent_bytes` left the client online, and
    began with `sent_head`. `made_ahead`: the query was preprocessed, and its offline bytes are not included. `audits`:
    runs without an answer in which the server checked the client; all figures but `layers` include them.
    """

    model: str
    plan: str
    protocol: str
    offline_s: float = 0.0
    online_s: float = 0.0
    setup_s: float = 0.0
    offline_bytes: int = 0
    online_bytes: int = 0
    sent_bytes: int = 0
    setup_bytes: int = 0
    rounds: int = 0
    made_ahead: bool = False
    audits: int = 0
    peak_rss_mb: dict[str, float] = field(default_factory=dict)
    layers: list[Layer] = field(default_factory=list)
    learned: dict[str, str] = field(default_factory=dict)
    sent_head: str = field(default="", repr=False)

    def to_dict(self) -> dict[str, Any]:
        """All fields but `sent_head`."""
        return {name: value for name, value in asdict(self).items() if name != "sent_head"}

    def __str__(self) -> str:
        lines = [
            f"{self.model}   plan {self.plan}   protocol {self.protocol}",
            f"offline {self.offline_s:.2f} s, {self.offline_bytes / MB:.1f} MB   "
            f"online {self.online_s:.2f} s, {self.online_bytes / MB:.1f} MB, {self.rounds} rounds   "
            f"set-up {self.setup_s:.2f} s, {self.setup_bytes / MB:.1f} MB",
        ]
        width = max((len(layer.path) for layer in self.layers), default=0)
        for layer in self.layers:
            lines.append(
                f"  {layer.path:<{width}}  {layer.online_bytes / MB:8.2f} MB online  "
                f"{layer.offline_bytes / MB:8.2f} MB offline  {layer.rounds:4d} rounds of its own"
            )
        lines += [f"{party}: {what}" for party, what in self.learned.items()]
        return "\n".join(lines)


def added_up(reports: Iterable[Report]) -> Report | None:
    """One report of several queries of one model; those of one query are the same object. None of none."""
    several = list({id(report): report for report in reports}.values())
    if len(several) < 2:
        return several[0] if several else None
    sums = {name: sum(getattr(report, name) for report in several) for name in _SUMS}
    peaks = {party for report in several for party in report.peak_rss_mb}
    most = {party: max(report.peak_rss_mb.get(party, 0.0) for report in several) for party in peaks}
    ahead = all(report.made_ahead for report in several)
    return replace(several[0], **sums, peak_rss_mb=most, made_ahead=ahead, layers=[])


def with_head(base: Report, head: Report) -> Report:
    """One report of a query whose last part was a session of its own."""
    both, of_head = added_up([base, head]), {f"{party}, of the head": what for party, what in head.learned.items()}
    assert both is not None
    setup = {"setup_s": base.setup_s + head.setup_s, "setup_bytes": base.setup_bytes + head.setup_bytes}
    learned = {**base.learned, "released to the client": BUT_HEAD, **of_head}
    return replace(both, protocol=f"{base.protocol}+{head.protocol}", learned=learned, **setup)


def _peak(party: str) -> str:
    return party + PEAK


@dataclass(frozen=True)
class AnsweredQuery:
    """The material of a report. `timings`: the client's; with N parties, those of all together. `others`: figures that
    the other parties report of themselves. `setup_s`, `setup_bytes`: of the session."""

    program: Program
    plan: str
    timings: Timings
    others: Mapping[str, float] = field(default_factory=dict)
    setup_s: float = 0.0
    setup_bytes: int = 0
    parties: Parties | None = None

    def report(self, protocol: str, learned: dict[str, str], **more: Any) -> Report:
        """The part of a report that all protocols have. `more`: a protocol's own values."""
        timings = self.timings
        values: dict[str, Any] = {
            "online_bytes": timings.online.sent,
            "peak_rss_mb": {"client": timings.peak_rss_mb},
            **more,
        }
        return Report(
            model=self.program.model,
            plan=self.plan,
            protocol=protocol,
            offline_s=timings.offline_s,
            online_s=timings.online_s,
            setup_s=self.setup_s,
            offline_bytes=timings.offline_bytes,
            setup_bytes=self.setup_bytes,
            rounds=timings.rounds,
            made_ahead=timings.ahead,
            audits=timings.audits,
            learned=learned,
            **values,
        )


# One function a protocol.


def two_party_report(query: AnsweredQuery) -> Report:
    """The cost of a query at its client."""
    timings, others = query.timings, query.others
    roles = [role for role in ("server", "dealer", "helper") if _peak(role) in others]
    return query.report(
        "beaver",
        who_learned_what(query.program, timings, "dealer" in roles),
        online_bytes=timings.online.sent + timings.online.received,
        sent_bytes=timings.online.sent,
        sent_head=timings.sent_head,
        peak_rss_mb={"client": timings.peak_rss_mb, **{role: others.get(_peak(role), 0.0) for role in roles}},
        layers=list(price(query.program).layers),
    )


def who_learned_what(program: Program, timings: Timings | None = None, dealer: bool = True) -> dict[str, str]:
    """In one sentence each: what a party has seen after a query, if nobody colludes and all follow the protocol."""
    received = f"{timings.online.sent / MB:.1f} MB of " if timings else ""
    released = ", ".join(program.all_released()) or "nothing"
    opened = f", the weights of {count} open parameters" if (count := len(program.all_public())) else ""
    secret = "the private weights" if opened else "the weights"
    key, holds, unseen = ", the key of the weight masks", " and the masked weights", f", the answer or {secret}"
    if not program.weight_shapes():
        key, holds, unseen = "", "", " or the answer"
    has_been_told = f"was told the program's hash, two seeds{key} and a count of queries"
    if is_for_two_servers(program):
        seats = {
            "server": "received one share of the input and masked values; learns nothing about the text or the answer",
            "helper": f"received a seed and masked values; learns nothing about the text{unseen}",
            "dealer": has_been_told,
            "client": f"sent {received}shares, and holds the text; it alone learns the answer",
        }
    else:
        masks = ", and the client's masks of runs that were audits" if program.audits else ""
        seats = {
            "server": f"received {received}masked values{masks}; learns nothing about the text or the answer",
            "dealer": has_been_told,
            "client": f"holds the text, its own shares{holds}; it alone learns the answer",
        }
    if not dealer:
        del seats["dealer"]
        seats["server"] += "; has the key of what travels encrypted while correlations are made"
        seats["client"] = (
            "holds the text, its own shares, and weights that it cannot decrypt; it alone learns the answer"
        )
    return {
        **seats,
        "released to the client": released,
        "public": "the model's architecture, scales, the constants of its approximations (fitted to calibrated "
        f"ranges){opened}, and the padded length{_of_passes(program)}",
    }


def _of_passes(program: Program) -> str:
    """What is public, too, where answers are given token by token."""
    from ...models.generation.parts import source_parts

    if not program.parts:
        return ""
    written = ": so how long an answer is, and in how many pieces a recording was heard"
    passes = "; how many tokens each pass reads and keeps, and when it comes"
    return passes + (written if source_parts(program.parts) else "")


def parties_report(query: AnsweredQuery) -> Report:
    """With N parties. Bytes are of all parties' messages, each counted once; seconds are the slowest party's."""
    parties = query.parties
    assert parties is not None
    leader, recipient = parties.names[0], parties.names[parties.recipient_rank]
    data = [parties.names[rank] for rank in sorted(parties.owns_data(query.program))]
    secret = "private weights" if query.program.all_public() else "weights"
    learned = dict.fromkeys(
        parties.names, f"received masked values; learns nothing of the data, the {secret} or the answer"
    )
    learned[leader] = "holds the weights, received masked values; learns nothing of the data or the answer"
    learned |= dict.fromkeys(data, "holds its own data and received masked values and weights")
    learned[recipient] += "; it alone learns the answer"
    learned["dealer"] = "was told the program, every party's seed, the keys of the weight masks and a count of queries"
    peaks = {name.removesuffix(PEAK): mb for name, mb in query.others.items()}
    return query.report("crypten", learned, peak_rss_mb=peaks)


def encrypted_report(query: AnsweredQuery) -> Report:
    """For one encrypted request: bytes of request and reply together, and of the evaluation keys sent for it."""
    learned = {
        "server": "received ciphertexts and evaluation keys; learns their sizes and times",
        "client": "holds the texts and the secret key; it alone learns the answer, and the noise in it",
        "released to the client": ", ".join(query.program.all_released()) or "nothing",
        "public": "the model's architecture, the circuit's levels and rotations, and the padded length",
    }
    online = query.timings.online
    return query.report("ckks", learned, online_bytes=online.sent + online.received, sent_bytes=online.sent)


def clear_report(query: AnsweredQuery) -> Report:
    """For the reference protocol, which hides nothing."""
    learned = {"this process": "holds the model, the text and the answer: protocol clear hides nothing"}
    return query.report("clear", learned, peak_rss_mb={})


def phases_in_words(reports: list[Report]) -> str:
    """Offline and online, on average."""
    count, ahead = len(reports), sum(report.made_ahead for report in reports)
    rounds = max(math.ceil(r.rounds / (1 + r.audits)) for r in reports)  # of a run: an audit is one, too
    moved = f"{sum(r.offline_bytes for r in reports) / count / MB:.1f} MB"
    if ahead:
        moved = "made ahead" if ahead == count else f"{moved}, {ahead} of {count} made ahead"
    return (
        f"offline {sum(r.offline_s for r in reports) / count:.2f} s, {moved}   "
        f"online {sum(r.online_s for r in reports) / count:.2f} s, "
        f"{sum(r.online_bytes for r in reports) / count / MB:.1f} MB, {rounds} rounds"
        f"{f'   audits {audits}' if (audits := sum(r.audits for r in reports)) else ''}"
    )


def each_in_words(reports: list[Report], what: str) -> str:
    """The average cost of one `what`, such as "a text", in a line."""
    return f"{what}: {phases_in_words(reports)}"


def requests_in_words(reports: list[Report], what: str = "") -> str:
    """One request, on average, and the keys that went before it. Answers of one request have one report."""
    requests = list({id(report): report for report in reports}.values())
    count, keys = len(requests), max(report.setup_bytes for report in requests)
    return (
        f"{'1 request' if count == 1 else f'{count} requests, on average'}: "
        f"{sum(r.online_s for r in requests) / count:.2f} s, "
        f"{sum(r.online_bytes for r in requests) / count / MB:.2f} MB   "
        f"evaluation keys {f'{keys / MB:.1f} MB, once' if keys else 'sent earlier'}"
    )
