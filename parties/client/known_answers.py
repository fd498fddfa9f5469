"""Known answers for sentinels: a server that is trusted, or one of this machine, is asked the same several times."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...files import whole_file
from ...models.artifacts import Question
from ...models.loading.answers import at_tokens
from ...models.loading.huggingface import InputError
from .base import BaseClient
from .sentinels import KnownAnswer, check_whole

LEAST_RUNS, LEAST_ANSWERS = 3, 32  # of each item; of each length
MARGIN = 4.0


def make_known(client: BaseClient, items: Sequence[Any]) -> list[KnownAnswer]:
    """What the client's server answers to `items`, at each compiled length that they fit, or at the client's own.

    Honest answers to one question differ by the chance in roundings only. So what is known is the mean of several; its
    tolerance is `MARGIN` times the largest deviation from it, of any element of any answer of that length, and two of
    the units that answers are rounded to.

    Errors: SentinelError; InputError, where an item fits no length; those of queries.
    """
    check_whole(client.part)
    own, lengths = client.length, client.part.lengths
    known: list[KnownAnswer] = []
    try:
        for length in lengths if own is None else [own]:
            client.length = length or None
            questions: list[Question] = []
            for number, item in enumerate(items, 1):
                try:
                    questions.append(client.part.encode(item, client.length))
                except InputError as error:
                    if length in (own, max(lengths)):
                        raise InputError(f"input {number} of {len(items)}: {error}") from None
            if questions:
                known += _of_length(client, questions)
    finally:
        client.length = own
    return known


def _of_length(client: BaseClient, questions: list[Question]) -> list[KnownAnswer]:
    count, first = len(questions), questions[0]
    runs = max(LEAST_RUNS, -(-LEAST_ANSWERS // count))
    answers: list[list[dict[str, Tensor]]] = [[] for _ in questions]
    for index, result in client.stream([question.item for question in questions] * runs):
        if result.error is not None:
            raise result.error
        inputs = questions[index % count].inputs
        answers[index % count].append({name: at_tokens(name, x, inputs) for name, x in result.outputs.items()})
    means: list[dict[str, Tensor]] = [{} for _ in questions]
    tolerance: dict[str, float] = {}
    for name, number in first.part.program.outputs.items():
        largest = 0.0
        for mean, repeated in zip(means, answers, strict=True):
            values = torch.stack([answer[name] for answer in repeated]).double()
            mean[name] = values.mean(0).float()
            largest = max(largest, float((values - mean[name]).abs().max()))
        tolerance[name] = MARGIN * largest + 2 * 2.0 ** -first.part.program.instructions[number].scale
    names = first.part.program.hash(), client.protocol
    return [
        KnownAnswer(question.item, first.length, mean, tolerance, *names)
        for question, mean in zip(questions, means, strict=True)
    ]


def write_known(file: Path, known: Sequence[KnownAnswer]) -> None:
    """One a line. Errors: OSError."""
    with whole_file(file) as stream:
        for answer in known:
            stream.write(json.dumps(answer.row(), ensure_ascii=False).encode() + b"\n")
