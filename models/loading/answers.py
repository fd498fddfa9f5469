"""How a model's outputs read as answers: for each kind of model a function, with what transformers' pipelines give."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .task import Item, Task
from .truncation import Truncation

NEXT_TOKENS = 5  # of a causal or masked model, unless more are asked for
LONGEST_SPAN = 15  # tokens of an answer, as transformers had it
NO_ENTITY = "O"  # the label of tokens that are nothing in particular
SPAN = ("start_logits", "end_logits")  # [1, length]: a score for each token
PROJECTIONS = ("text_embeds", "image_embeds")
_FORMS = {"softmax": lambda x: torch.softmax(x, -1), "sigmoid": torch.sigmoid, "none": lambda x: x}


@dataclass(frozen=True)
class Outcome:
    """The outputs for one text or image, by name, and the inputs that they answer. `item`: what was encoded, if known.

    `top_k`: how many labels, tokens or spans (None: as many as is usual). `truncate`: as of Task.encoding.
    """

    outputs: Mapping[str, Tensor]
    inputs: Mapping[str, Tensor]
    top_k: int | None = None
    item: Item | None = None
    truncate: Truncation | bool = True

    def encoding(self, task: Task) -> Any:
        """The tokenizer's own result. Needs `item`."""
        assert self.item is not None
        return task.encoding(self.item, self.inputs["input_ids"].shape[-1], self.truncate)

    def real(self, length: int) -> int:
        """Positions that hold tokens; padding is on the right."""
        mask = self.inputs.get("attention_mask")
        return length if mask is None or mask.shape[-1] != length else int(mask.sum())


def at_tokens(name: str, output: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """The positions of an output [1, length, ...] that hold tokens: nobody reads what padding gives."""
    mask, per_token = inputs.get("attention_mask"), output.ndim == 3 or name in SPAN
    if mask is None or not per_token or output.shape[1] != mask.shape[-1]:
        return output
    return output[:, mask[0].bool()]


def read_answer(
    task: Task,
    outputs: Mapping[str, Tensor],
    inputs: Mapping[str, Tensor],
    top_k: int | None = None,
    item: Item | None = None,
    truncate: Truncation | bool = True,
) -> Any:
    """An answer (float outputs by name, of one text or image) in the terms of the task.

    classifier, image, audio   [{"label", "score"}], the most likely first; `top_k`: how many (None: all)
    sentence            one list of floats of length one (Euclidean)
    encoder             last_hidden_state as nested lists [1, tokens, hidden], without the padding's rows; or
                        {"text_embeds" or "image_embeds": one list of floats}
    causal, masked      [{"score", "token", "token_str"}], the most likely first; of a mask with "sequence"
    tokens              [{"entity", "score", "index", "word", "start", "end"}], without tokens labelled O
    span                [{"score", "start", "end", "answer"}], the most likely first (None: one). Needs `item`
    anything else       nested lists by output name

    `item`: the text, or pair of texts, that the inputs were made of; `truncate`: where it was cut (Task.encode_text).
    """
    outcome = Outcome(outputs, inputs, top_k, item, truncate)
    reader = READERS.get(task.kind, AnswerReader(by_name))
    there = reader.needs <= {*outputs, *inputs} and not (reader.words and task.processor is None)
    return reader.read(task, outcome) if there else by_name(task, outcome)


def by_name(task: Task, outcome: Outcome) -> Any:
    return {name: value.tolist() for name, value in outcome.outputs.items()}


def classes(task: Task, outcome: Outcome) -> list[dict[str, Any]]:
    scores = _FORMS[task.scores](outcome.outputs["logits"].reshape(-1).float())
    rows = [{"label": task.label(i), "score": float(score)} for i, score in enumerate(scores)]
    return sorted(rows, key=lambda row: row["score"], reverse=True)[: outcome.top_k]


def labels_or_features(task: Task, outcome: Outcome) -> Any:
    return classes(task, outcome) if task.labels and "logits" in outcome.outputs else features(task, outcome)


def features(task: Task, outcome: Outcome) -> Any:
    """The projection into the space that texts and images share, if there is one; else the hidden states."""
    for name in PROJECTIONS:
        if name in outcome.outputs:
            return {name: outcome.outputs[name][0].tolist()}
    if "last_hidden_state" not in outcome.outputs or "logits" in outcome.outputs:
        return by_name(task, outcome)
    hidden = outcome.outputs["last_hidden_state"]
    return hidden[:, : outcome.real(hidden.shape[1])].tolist()


def embedding(task: Task, outcome: Outcome) -> list[float]:
    return torch.nn.functional.normalize(outcome.outputs["sentence_embedding"][0], dim=-1).tolist()


def next_tokens(task: Task, outcome: Outcome) -> list[dict[str, Any]]:
    logits = outcome.outputs["logits"][0]
    return _most_likely(task, logits if logits.ndim == 1 else logits[outcome.real(len(logits)) - 1], outcome.top_k)


def masked_tokens(task: Task, outcome: Outcome) -> list[dict[str, Any]]:
    """What may stand at the mask, each with the whole text then."""
    logits, ids = outcome.outputs["logits"][0], outcome.inputs["input_ids"][0]
    place = int((ids == task.processor.mask_token_id).int().argmax())
    rows = _most_likely(task, logits if logits.ndim == 1 else logits[place], outcome.top_k)
    for row in rows:
        filled = ids.clone()
        filled[place] = row["token"]
        row["sequence"] = task.processor.decode(filled[: outcome.real(len(ids))], skip_special_tokens=True)
    return rows


def entities(task: Task, outcome: Outcome) -> list[dict[str, Any]]:
    """Tokens that have a label of their own, in order. `start`, `end`: where they are in the text, if that is known."""
    logits, ids = outcome.outputs["logits"][0].float(), outcome.inputs["input_ids"][0].tolist()
    scores, special = torch.softmax(logits, -1), set(task.processor.all_special_ids)
    encoding = outcome.encoding(task) if outcome.item is not None else None
    rows = []
    for index in range(outcome.real(len(ids))):
        score, best = scores[index].max(0)
        unknown = ids[index] == task.processor.unk_token_id
        if (ids[index] in special and not unknown) or task.label(int(best)) == NO_ENTITY:
            continue
        word, span = task.processor.convert_ids_to_tokens(ids[index]), None
        if encoding is not None and encoding.is_fast:
            span = encoding.token_to_chars(index)
            if unknown:
                word = _text_of(outcome.item, encoding.token_to_sequence(index))[span.start : span.end]
        places = {"start": None if span is None else span.start, "end": None if span is None else span.end}
        rows.append({"entity": task.label(int(best)), "score": float(score), "index": index, "word": word, **places})
    return rows


def spans(task: Task, outcome: Outcome) -> Any:
    """The most likely answers, as pieces of the second text: whole words of it, with the places where they stand."""
    ids = outcome.inputs["input_ids"][0]
    if outcome.item is None:
        return by_name(task, outcome)
    encoding = outcome.encoding(task)
    if not encoding.is_fast:  # such a tokenizer does not say which part of the text a token is
        return by_name(task, outcome)
    context = torch.tensor([part == 1 for part in encoding.sequence_ids(0)])
    starts, ends = (
        torch.softmax(outcome.outputs[name][0].float().masked_fill(~context, -torch.inf), -1)
        for name in ("start_logits", "end_logits")
    )
    scores = (starts[:, None] * ends[None, :]).triu().tril(LONGEST_SPAN - 1)
    best = scores.flatten().topk(min(outcome.top_k or 1, scores.numel()))
    answers = []
    for score, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        first, last = (_word_at(encoding, index) for index in divmod(place, len(ids)))
        if score > 0:
            text = _text_of(outcome.item, 1)[first.start : last.end]
            answers.append({"score": score, "start": first.start, "end": last.end, "answer": text})
    return answers


class AnswerReader(NamedTuple):
    """`needs`: outputs and inputs by name. `words`: whether it needs the tokenizer."""

    read: Callable[[Task, Outcome], Any]
    needs: Set[str] = frozenset()
    words: bool = False


READERS = {  # by kind of model
    "classifier": AnswerReader(classes, {"logits"}),
    "image": AnswerReader(labels_or_features),
    "audio": AnswerReader(labels_or_features),
    "encoder": AnswerReader(features),
    "sentence": AnswerReader(embedding, {"sentence_embedding"}),
    "causal": AnswerReader(next_tokens, {"logits"}, words=True),
    "masked": AnswerReader(masked_tokens, {"logits", "input_ids"}, words=True),
    "tokens": AnswerReader(entities, {"logits", "input_ids"}, words=True),
    "span": AnswerReader(spans, {"start_logits", "end_logits", "input_ids"}, words=True),
}


def _most_likely(task: Task, logits: Tensor, top_k: int | None) -> list[dict[str, Any]]:
    scores = torch.softmax(logits.float(), -1)
    best = scores.topk(min(top_k or NEXT_TOKENS, len(scores)))
    return [
        {"score": float(score), "token": token, "token_str": task.processor.decode([token])}
        for score, token in zip(best.values, best.indices.tolist(), strict=True)
    ]


def _word_at(encoding: Any, index: int) -> Any:
    """The characters of the word that a token of the second text belongs to, or the token's own."""
    word = encoding.token_to_word(index)
    return encoding.token_to_chars(index) if word is None else encoding.word_to_chars(word, sequence_index=1)


def _text_of(item: Any, part: int | None) -> str:
    return item[part or 0] if isinstance(item, tuple) else item
