"""Inputs into queries of one session, as many at a time as its program takes, and each input's own answer out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...models.compile import AnswerOutOfRange
from ...protocols.errors import BlindformerError
from ..session.online import Answer
from .session import LocalSession

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class AskedTogether:
    """Inputs that went together: the outputs of each, and the query's answer; or why there is none."""

    outputs: list[dict[str, Tensor]]
    answer: Answer | BlindformerError


def ask_all(session: LocalSession, inputs: Sequence[Inputs], texts: int) -> Iterator[AskedTogether]:
    """In order, `texts` of them a query: the last one is repeated until a query is full.

    Where one answer of several is out of range, each is asked alone. An error that ends the session is that of all that
    are left.
    """
    queries = [list(inputs[at : at + texts]) for at in range(0, len(inputs), texts)]
    while queries:
        items = queries.pop(0)
        try:
            answer = session.query(_together([*items, *items[-1:] * (texts - len(items))]))
        except BlindformerError as error:
            if len(items) > 1 and isinstance(error, AnswerOutOfRange):
                queries[:0] = [[item] for item in items]
                continue
            lost = len(items)
            if not session.open:
                lost, queries = lost + sum(map(len, queries)), []
            yield AskedTogether([{} for _ in range(lost)], error)
        else:
            yield AskedTogether(apart(answer.outputs, texts, len(items)), answer)


def _together(items: list[Inputs]) -> Inputs:
    return items[0] if len(items) == 1 else {name: torch.cat([item[name] for item in items]) for name in items[0]}


def apart(outputs: dict[str, Tensor], texts: int, count: int) -> list[dict[str, Tensor]]:
    """The outputs of a query for so many texts, of which `count` were asked, by text."""
    return [outputs] if texts == 1 else rows_of(outputs, count)


def rows_of(values: Inputs, count: int) -> list[Inputs]:
    """The first `count` rows of tensors, by row."""
    return [{name: value[n : n + 1] for name, value in values.items()} for n in range(count)]
