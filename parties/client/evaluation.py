"""A model judged as it is used: in torch, in fixed point, and through private sessions: a classifier on a data set, a
language model on a text."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...approximations import Plan, calibrate
from ...models.compile import AnswerOutOfRange, Compiled
from ...models.data import Dataset, Examples, check_unseen, load_as_trained
from ...models.generation.chat import SLOTS, model_and_prefix
from ...models.generation.conversation import Conversation
from ...models.generation.decoder import Decoder
from ...models.generation.folder import found_or_compiled
from ...models.judging.evaluation import (
    OUTPUT,
    REFUSED,
    EvaluationError,
    Predictions,
    Score,
    by_bucket,
    clear_answers,
    compile_bucket,
    encode,
    score,
    torch_answers,
)
from ...models.judging.perplexity import PlacedTokens, TextScore, Window, text_score, windows
from ...models.loading.load import Loaded
from ...protocols.errors import BlindformerError
from ...versions import versions
from ..config import load_settings
from ..registry import reference, sessions, talking
from ..reports.evaluation import Evaluation, TextEvaluation
from ..session.online import Progress
from .client import open_here
from .local import LocalProtocol, find_local
from .session import ask_all

PROTOCOLS = ("torch", reference(), *sessions())
CALIBRATION = 384  # training texts that ranges are measured on, cut to each length; of 96 one answer in 200 was refused
TEACHER, EXACT, UNTOUCHED, APPROXIMATED = "teacher", "float32", "approximated, untouched", "approximated"


def evaluate(
    loaded: Loaded,
    data: str | Path | Dataset,
    *,
    plan: Plan | str | None = None,
    teacher: Loaded | None = None,
    protocols: Sequence[str] = ("torch", "clear"),
    private: int = 300,
    longest: int = 128,
    seed: int | None = None,
    threads: int = 1,
    timeout: float = 120,
    progress: Progress | None = None,
) -> Evaluation:
    """Judge a classifier on a data set's test part.

    data       what `load_data` takes: it is then read, and divided, as what the model was trained on; or a data set
    plan       a preset's name or a plan (default: the one in the model's folder, else `faithful`); one without ranges
               is calibrated on training texts
    teacher    what agreement is measured with; without one, the model itself in float32: with its plan, if it was
               trained with the plan in its folder, as its weights mean nothing with exact functions; else without
    protocols  torch: float32, and the same with the approximations; for a teacher also with the plan's approximations
               put into it untouched, to show what distillation won. clear: fixed point, the whole test set. Any
               other: private sessions on this machine, for `private` texts, stratified and drawn with the
               seed, as many to a query as it takes
    longest    tokens that texts are cut at, for every row alike
    seed       of what is drawn (default: of the split, else 0)

    A test part with rows that the model or the teacher was trained on is refused, where their folders tell.

    Errors: EvaluationError, DataError, PlanError, and those of a session.
    """
    check_protocols(protocols, PROTOCOLS)
    if not loaded.labels or loaded.kind not in ("classifier", "image"):
        raise EvaluationError(f"{loaded.name}: is no classifier; give one, such as a folder of `distill`")
    data = data if isinstance(data, Dataset) else load_as_trained(data, loaded.folder)
    if (loaded.kind == "image") != (data.kind == "image"):
        raise EvaluationError(f"{loaded.name} takes {loaded.kind} inputs, {data.name} holds {data.kind}s; they differ")
    for model in (loaded, teacher):
        if model is not None:
            check_unseen(model.folder, data)
    data = data.matched(loaded.labels)
    seed = seed if seed is not None else data.reading.seed if data.reading is not None else 0
    say = progress or (lambda what, done, total: None)
    test, labels = data.test.items, data.test.labels
    longest = min(longest, loaded.positions or longest)
    lengths = {length: len(places) for length, places in by_bucket(loaded, test, longest).items()}
    fitting = data.train.subset(CALIBRATION, seed).items
    own = loaded.plan() if plan is None else None
    trained = own is not None and own.needs_distillation()
    fitted = _fitted(loaded, plan or own or "faithful", fitting, lengths)
    predictions: dict[tuple[str, str], Predictions] = {}

    def run(name: str, protocol: str, make: Callable[[Callable[[int, int], None]], Predictions]) -> None:
        predictions[name, protocol] = make(lambda done, total: say(f"{name}, {protocol}", done, total))

    def taught(p: Callable[[int, int], None], plan: Plan | None = None) -> Predictions:
        assert teacher is not None
        return _renamed(torch_answers(teacher, test, longest, plan, progress=p), teacher, loaded)

    reference = TEACHER if teacher is not None else APPROXIMATED if trained else EXACT
    if teacher is not None:
        run(TEACHER, "torch", taught)
    if "torch" in protocols and teacher is not None:
        untouched = _fitted(teacher, fitted.replace(ranges={}, fits={}), fitting, lengths)
        run(UNTOUCHED, "torch", lambda p: taught(p, untouched))
    if "torch" in protocols or reference == APPROXIMATED:
        run(APPROXIMATED, "torch", lambda p: torch_answers(loaded, test, longest, fitted, progress=p))
    if reference == EXACT:
        run(EXACT, "torch", lambda p: torch_answers(loaded, test, longest, progress=p))
    if "clear" in protocols:
        run(APPROXIMATED, "clear", lambda p: clear_answers(loaded, test, longest, fitted, fitting, progress=p))
    private_ones = [protocol for protocol in sessions() if protocol in protocols]
    positions = _subset(data.test, private, seed) if private_ones else []
    options = {"threads": threads, "timeout": timeout}
    chosen = {position: test[position] for position in positions}
    for protocol in private_ones:
        local = find_local(protocol)
        run(
            APPROXIMATED,
            protocol,
            lambda p, local=local: _private_answers(local, loaded, chosen, longest, fitted, fitting, options, p),
        )
    return Evaluation(
        model=loaded.name,
        plan=fitted.name,
        plan_hash=fitted.content_hash(),
        data=data.name,
        labels=data.labels,
        seed=seed,
        longest=longest,
        lengths=lengths,
        test=len(test),
        subset=len(positions),
        rows=_rows(predictions, reference, labels, len(data.labels), seed),
        versions=versions(),
    )


def check_protocols(protocols: Sequence[str], known: Sequence[str]) -> None:
    """Errors: EvaluationError, naming what there is."""
    unknown = [p for p in protocols if p not in known]
    if unknown or not protocols:
        raise EvaluationError(f"protocol {unknown[0] if unknown else ''}: choose among {', '.join(known)}")


def _rows(
    predictions: Mapping[tuple[str, str], Predictions], reference: str, labels: Sequence[int], classes: int, seed: int
) -> list[Score]:
    """In the order of trust: the reference first, the private run last, which is compared with `clear` too."""
    order = [TEACHER, EXACT, UNTOUCHED, APPROXIMATED]
    rows = []
    for name, protocol in sorted(predictions, key=lambda key: (order.index(key[0]), PROTOCOLS.index(key[1]))):
        others = {}
        if (name, protocol) != (reference, "torch"):
            others["torch" if reference == APPROXIMATED else reference] = predictions[reference, "torch"]
        if protocol in sessions() and (name, "clear") in predictions:
            others["clear"] = predictions[name, "clear"]
        rows.append(score(name, protocol, predictions[name, protocol], labels, classes, others, seed))
    return rows


def _fitted(loaded: Loaded, plan: Plan | str, texts: Sequence[Any], lengths: Mapping[int, int]) -> Plan:
    if isinstance(plan, Plan) and plan.ranges:
        return plan
    return calibrate(
        loaded.model, [encode(loaded, texts[i : i + 16], n) for n in lengths for i in range(0, len(texts), 16)], plan
    )


def _renamed(answers: Predictions, of: Loaded, to: Loaded) -> Predictions:
    """A teacher's classes by the student's indices: by name, or as they are where names say nothing."""
    index = {name: i for i, name in to.labels.items()}
    if not of.labels or set(of.labels.values()) != set(index):
        if len(of.labels) != len(index):
            raise EvaluationError(
                f"{of.name} has {len(of.labels)} classes, {to.name} {len(index)}: give the teacher that it comes from"
            )
        return answers
    return Predictions({i: index[of.labels[c]] for i, c in answers.predicted.items()}, answers.seconds)


def _subset(test: Examples, count: int, seed: int) -> list[int]:
    """Positions of a stratified part of the test set."""
    numbered = Examples([str(i) for i in range(len(test))], test.labels)
    return [int(i) for i in numbered.subset(count, seed).texts]


def _private_answers(
    local: LocalProtocol,
    loaded: Loaded,
    texts: Mapping[int, Any],
    longest: int,
    plan: Plan,
    fitting: Sequence[Any],
    options: dict[str, Any],
    progress: Callable[[int, int], None],
) -> Predictions:
    """As a client would ask: a session for each length, with as many texts a query as fill it.

    `texts`: by their positions in the test set; `fitting`: those that ranges are measured on.
    """
    predicted: dict[int, int] = {}
    seconds: dict[str, list[float]] = {"online": [], "offline": []}
    positions = list(texts)
    for length, places in by_bucket(loaded, list(texts.values()), longest).items():

        def make(rows: int, length: int = length) -> Compiled:
            return compile_bucket(loaded, length, plan, fitting, rows=rows)

        compiled, taken = local.compile_for(len(places), make), iter(places)
        inputs = [encode(loaded, [texts[positions[place]]], length) for place in places]
        with local.open(compiled, **options) as session:
            for answers, reply in ask_all(session, inputs):
                if reply is not None:
                    count, timings = len(answers), reply.answer.timings
                    seconds["online"] += [timings.online_s / count] * count
                    seconds["offline"] += [timings.offline_s / count] * count
                for answer in answers:
                    if isinstance(answer, BlindformerError) and not isinstance(answer, AnswerOutOfRange):
                        raise answer
                    refused = isinstance(answer, AnswerOutOfRange)
                    predicted[positions[next(taken)]] = REFUSED if refused else int(answer[OUTPUT].argmax(-1))
                progress(len(predicted), len(texts))
    return Predictions(predicted, {phase: float(np.median(values)) for phase, values in seconds.items() if any(values)})


OF_TEXTS = ("torch", reference(), *(protocol for protocol in talking() if protocol != reference()))
WINDOWED = "float32 in the window"
Logits = Callable[[Window], Tensor]
"""Logits at every token of a window [tokens, words]."""


def evaluate_text(
    loaded: Loaded,
    text: str,
    *,
    title: str = "text",
    plan: Plan | str | None = None,
    system: str | None = None,
    protocols: Sequence[str] = ("torch", "clear"),
    tokens: int = SLOTS,
    window: int | None = None,
    private: int = 300,
    timeout: float = 120,
    progress: Progress | None = None,
    compiling: Progress | None = None,
) -> TextEvaluation:
    """Judge a language model on a text: perplexity, and how far its next tokens are from float32's.

    title      names the text in the result
    plan       a preset's name or a plan (default: the one in the model's folder, else `faithful`)
    system     the system prompt that conversations begin with (default: the model's own)
    protocols  torch: float32. clear: fixed point, in passes of a conversation. Any other: the same through a private
               session on this machine, for the first `private` tokens
    tokens     of a piece of the text that is read as one conversation, as `slots` of `compile_chat`
    window     how many of them a token reads, as of `compile_chat`; then float32 is judged with it, too
    timeout    seconds that a party may be silent
    compiling  the progress of compiling, unless the model is compiled in the user's cache

    Errors: EvaluationError, GenerationError, PlanError, and those of a session.
    """
    check_protocols(protocols, OF_TEXTS)
    model, prefix, _ = model_and_prefix(loaded, system, tokens, window)
    if not text.strip():
        raise EvaluationError(f"{title}: is empty; give a text of at least 2 tokens")
    ids = loaded.processor(text, add_special_tokens=False, verbose=False)["input_ids"]
    whole, some = windows(ids, tokens), windows(ids, tokens, private)
    say = progress or (lambda what, done, total: None)

    def exact(window: Window) -> Tensor:
        return model(input_ids=torch.tensor([[*prefix, *window.ids]])).logits[0, len(prefix) :]

    def judged(protocol: str, answer: Logits, given: Sequence[Window]) -> PlacedTokens:
        total = sum(len(window.ids) for window in given)
        return _judged(answer, exact, given, lambda done: say(protocol, done, total))

    with torch.inference_mode():
        float32 = judged("torch", exact, whole)
        judgements = {"torch": float32}
        if window is not None:
            judgements[WINDOWED] = judged("torch", _in_window(model, prefix, window), whole)
    chosen = [protocol for protocol in OF_TEXTS if protocol in protocols and protocol != "torch"]
    folder = None
    if chosen:
        cache = load_settings(None).client.cache.expanduser()
        folder = found_or_compiled(
            loaded.folder, cache, plan=plan, system=system, slots=tokens, window=window, progress=compiling
        )
    for protocol in chosen:
        assert folder is not None
        say(protocol, 0, 1)
        with open_here(find_local(protocol), folder, timeout=timeout) as client, torch.inference_mode():
            answer = _answer_of(client.conversation())
            judgements[protocol] = judged(protocol, answer, whole if protocol == reference() else some)
    used = None if folder is None else Plan.load(folder / "server")
    return TextEvaluation(
        model=loaded.name,
        plan=used.name if used else "",
        plan_hash=used.content_hash() if used else "",
        text=title,
        system=system or "",
        prefix=len(prefix),
        window=tokens,
        attended=window or 0,
        windows=len(whole),
        tokens=len(ids),
        subset=sum(len(window.ids) for window in some) if set(chosen) - {reference()} else 0,
        rows=_text_rows(judgements),
        versions=versions(),
    )


def _in_window(model: nn.Module, prefix: Sequence[int], attended: int) -> Logits:
    """float32, where each token reads the prefix and so many last tokens alone."""
    decoder = Decoder(copy.deepcopy(model), torch.tensor(prefix), embedding="private", window=attended).eval()

    def answer(window: Window) -> Tensor:
        return decoder(torch.tensor([window.ids]), torch.tensor([0]), **decoder.empty(0))["logits"][0]

    return answer


def _answer_of(conversation: Conversation) -> Logits:
    def answer(window: Window) -> Tensor:
        conversation.rows.crop(0)  # but for the prefix
        return conversation.decoder(input_ids=torch.tensor([window.ids])).logits[0]

    return answer


def _judged(answer: Logits, exact: Logits, given: Sequence[Window], progress: Callable[[int], None]) -> PlacedTokens:
    placed, start = PlacedTokens(), 0
    for window in given:
        started = time.perf_counter()
        try:
            logits = answer(window)
        except AnswerOutOfRange:
            placed.refused += len(window.ids)
        else:
            placed.seconds += time.perf_counter() - started
            placed.add(start, window, logits, logits if answer is exact else exact(window))
        start += len(window.ids)
        progress(start)
    return placed


def _text_rows(judgements: dict[str, PlacedTokens]) -> list[TextScore]:
    """float32 first, private rows last, which are compared with `clear` too."""
    rows, float32 = [], judgements["torch"]
    for protocol, own in judgements.items():
        if protocol == WINDOWED:
            rows.append(text_score(WINDOWED, "torch", own, float32, {EXACT: float32}))
            continue
        others = {} if protocol == "torch" else {EXACT: float32}
        if protocol != reference() and protocol != "torch" and reference() in judgements:
            others[reference()] = judgements[reference()]
        rows.append(text_score(EXACT if protocol == "torch" else APPROXIMATED, protocol, own, float32, others))
    return rows
