# pyright: reportMissingImports=false
"""What travels between server and clients, as Flower's records: names, and how they are read on either side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from torch import Tensor, from_numpy

from ..parties.transport.frames import printable
from .settings import FederateError

ARRAYS, CONFIG, METRICS, CLIENT, SECURE = "arrays", "config", "metrics", "client", "secure"
WEIGHT = "num-examples"
VECTOR = "vector"
DRAWN = "drawn"
KEYS, SHARES, TRAIN, UNMASK = "train.keys", "train.shares", "train", "train.unmask"
REFUSED, NAME = "refused", "name"
LONGEST = 200  # of what a client says of itself


def record(values: Mapping[str, Tensor]) -> ArrayRecord:
    return ArrayRecord({name: Array(value.detach().numpy()) for name, value in values.items()})


def tensors(arrays: ArrayRecord) -> dict[str, Tensor]:
    """Copies, writable. Errors: FederateError for what is no array of numbers."""
    try:
        return {name: from_numpy(array.numpy().copy()) for name, array in arrays.items()}
    except Exception as error:  # somebody else's bytes: numpy's reader may fail of them in any way
        raise FederateError("holds what is no array of numbers") from error


def vector_of(message: Message) -> Tensor | None:
    """The one vector of a client's reply, whatever its shape; None if there is none."""
    records = list(message.content.array_records.values())
    if len(records) != 1:
        return None
    try:
        return tensors(records[0]).get(VECTOR)
    except FederateError:
        return None


def answer(message: Message, name: str, **records: Any) -> Message:
    """A client's reply, under its name."""
    return Message(RecordDict({CLIENT: ConfigRecord({NAME: name}), **records}), reply_to=message)


def refusal(message: Message, name: str, why: str) -> Message:
    """A client's reply where it cannot take part: the round goes on without it."""
    return Message(RecordDict({CLIENT: ConfigRecord({NAME: name, REFUSED: why})}), reply_to=message)


def reason(message: Message) -> str | None:
    """Why a reply does not count; None if it has content."""
    if message.has_error():
        lines = (message.error.reason or "no reason was given").strip().splitlines()
        return f"failed: {printable(lines[-1], LONGEST)}"
    client = message.content.config_records.get(CLIENT)
    if client is None:
        return "sent no name: is it another app?"
    return printable(str(client[REFUSED]), LONGEST) if REFUSED in client else None


def name_of(message: Message) -> str:
    """The client's own name, or its node's number."""
    if not message.has_error():
        client = message.content.config_records.get(CLIENT)
        if client is not None and NAME in client:
            return printable(str(client[NAME]), LONGEST)
    return f"node {message.metadata.src_node_id}"


def summary(weight: float, loss: float | None) -> MetricRecord:
    return MetricRecord({WEIGHT: weight} if loss is None else {WEIGHT: weight, "loss": loss})
