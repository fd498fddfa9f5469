# pyright: reportMissingImports=false
"""How a round's updates reach the strategy: each by itself, as a sum, or as a sum of which the server sees no part.

In all three the replies are looked at before they count: one that is refused is named, and the round goes on.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from flwr.app import ConfigRecord, Message, RecordDict
from torch import Tensor

from .learning import EXTRA, clipped, flat, unflat
from .messages import (
    ARRAYS,
    CONFIG,
    DRAWN,
    METRICS,
    SECURE,
    WEIGHT,
    name_of,
    reason,
    record,
    summary,
    tensors,
    vector_of,
)
from .privacy import Budget
from .secure_server import SecureRound, Send
from .settings import FederateError, FederateSettings
from .subject import check_like

Tensors = Mapping[str, Tensor]


@dataclass
class Collected:
    """`replies` are what the strategy gets; `taken` the clients in them, `lost` why each of the others is not.

    left_out  nodes that cheat: not to be asked again
    """

    replies: list[Message]
    taken: list[str] = field(default_factory=list)
    lost: dict[str, str] = field(default_factory=dict)
    loss: float | None = None
    left_out: list[int] = field(default_factory=list)


def collect(
    messages: list[Message],
    drawn: Collection[int],
    now: Tensors,
    settings: FederateSettings,
    budget: Budget,
    send: Send,
) -> Collected:
    """Send the round's messages and take in the answers.

    drawn  the nodes that are to train. In a secure sum the others add zeros: its members see who is in it
    """
    if settings.secagg:
        return _secure(messages, drawn, now, budget, settings, send)
    asked = [message for message in messages if message.metadata.dst_node_id in drawn]
    replies = send(asked)
    lost = _silent(asked, replies)
    if settings.clips_updates:
        return _summed(messages, replies, now, budget, lost)
    return _each(replies, now, lost)


def _each(replies: list[Message], now: Tensors, lost: dict[str, str]) -> Collected:
    good, taken, losses, weights = [], [], [], []
    for reply in replies:
        name, why = name_of(reply), reason(reply) or _faults(reply, now)
        if why is not None:
            lost[name] = why
            continue
        good.append(reply)
        taken.append(name)
        metrics: Any = reply.content.metric_records[METRICS]
        weights.append(float(metrics[WEIGHT]))
        losses.append(float(metrics.get("loss", math.nan)))
    total = sum(weights)
    loss = sum(w * x for w, x in zip(weights, losses, strict=True)) / total if total else math.nan
    return Collected(good, taken, lost, None if math.isnan(loss) else loss)


def _faults(reply: Message, now: Tensors) -> str | None:
    """Why an update does not count; None if it does."""
    arrays, metrics = reply.content.array_records, reply.content.metric_records
    if set(arrays) != {ARRAYS} or set(metrics) != {METRICS}:
        return "its reply lacks an update"
    report: Any = metrics[METRICS]
    weight = report.get(WEIGHT)
    if not isinstance(weight, float) or not 0 < weight < 2**31:
        return "its number of examples is none"
    if not isinstance(report.get("loss", 0.0), float):
        return "its loss is no number"
    try:
        values = tensors(arrays[ARRAYS])
    except FederateError as error:
        return f"its update {error}"
    try:
        check_like(values, now)
    except FederateError as error:
        return f"its update is of a wrong shape: {error}"
    if not all(v.is_floating_point() for v in values.values()):
        return "its update holds no floating-point numbers"
    if not all(bool(v.isfinite().all()) for v in values.values()):
        return "its update holds NaN or infinity"
    return None


def _summed(
    messages: list[Message], replies: list[Message], now: Tensors, budget: Budget, lost: dict[str, str]
) -> Collected:
    """Clipped updates, added up here: the server sees each, and adds the noise unless they have their own."""
    size = sum(v.numel() for v in now.values()) + EXTRA
    total, taken = torch.zeros(size, dtype=torch.float64), []
    for reply in replies:
        name, why = name_of(reply), reason(reply)
        vector = None if why else vector_of(reply)
        if why is None and (vector is None or vector.shape != (size,) or not vector.is_floating_point()):
            why = "its update is of a wrong shape"
        if why is None and vector is not None and not bool(vector.isfinite().all()):
            why = "its update holds NaN or infinity"
        if why is not None or vector is None:
            lost[name] = why or "its update is of a wrong shape"
            continue
        vector = vector.double()
        if budget.settings.dp == "central":  # whoever did not clip is clipped here
            vector[:-EXTRA] = clipped(vector[:-EXTRA], budget.settings.clip)
            vector[-EXTRA:] = torch.tensor([1.0, 0.0])
        total += vector
        taken.append(name)
    return _from_sum(messages, total, taken, now, budget, lost)


def _secure(
    messages: list[Message],
    drawn: Collection[int],
    now: Tensors,
    budget: Budget,
    settings: FederateSettings,
    send: Send,
) -> Collected:
    session = SecureRound(send, sum(v.numel() for v in now.values()) + EXTRA)
    content = {message.metadata.dst_node_id: message.content for message in messages}
    kind = messages[0].metadata.message_type
    config_record = messages[0].content.config_records[CONFIG]
    terms = ConfigRecord({key: config_record[key] for key in ("noise", "server-round")})
    try:
        left = session.prepare(content, terms)
        config = {i: ConfigRecord({**content[i].config_records[CONFIG], DRAWN: i in drawn}) for i in left}
        asked = [
            Message(RecordDict({**content[i], CONFIG: config[i], SECURE: session.request(i)}), i, kind) for i in left
        ]
        replies = send(asked)
        session.lost |= _silent(asked, replies)
        total, names = session.total(replies)
    except FederateError as error:  # the model stays as it was
        return Collected([], lost={**session.lost, "round": str(error)}, left_out=session.left_out)
    collected = _from_sum(messages, total, list(names.values()), now, budget, session.lost)
    return replace(collected, left_out=session.left_out)


def _from_sum(
    messages: list[Message], total: Tensor, taken: list[str], now: Tensors, budget: Budget, lost: dict[str, str]
) -> Collected:
    """One reply that stands for all: the start of the round and the mean update."""
    weight, loss = float(total[-EXTRA]), None
    if budget.settings.clips_updates:
        mean = budget.release(total[:-EXTRA], weight)
    elif weight > 0:
        mean = total[:-EXTRA] / weight
        loss = float(total[-EXTRA + 1]) / weight if budget.settings.dp == "none" else None
    else:
        return Collected([], taken, lost)
    values = unflat(flat(now) + mean, now)
    content = RecordDict({ARRAYS: record(values), METRICS: summary(1.0, None)})
    return Collected([Message(content, reply_to=messages[0])], taken, lost, loss)


def _silent(messages: Iterable[Message], replies: Iterable[Message]) -> dict[str, str]:
    """Who did not answer before the round's time was over."""
    missing = {m.metadata.dst_node_id for m in messages} - {r.metadata.src_node_id for r in replies}
    return {f"node {node}": "did not answer in time" for node in missing}
