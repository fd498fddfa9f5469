"""A language model judged on a text as it is used: in torch, in fixed point, and in private conversations."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ...approximations import Plan
from ...models.compile import AnswerOutOfRange
from ...models.generation.chat import SLOTS, model_and_prefix
from ...models.generation.conversation import Conversation
from ...models.generation.decoder import Decoder
from ...models.generation.folder import found_or_compiled
from ...models.judging.evaluation import EvaluationError
from ...models.judging.perplexity import PlacedTokens, TextScore, Window, text_score, windows
from ...models.loading.load import Loaded
from ...versions import versions
from ..config import load_settings
from ..registry import reference, talking
from ..reports.evaluation import TextEvaluation
from ..session.online import Progress
from .evaluation import APPROXIMATED, EXACT, check_protocols
from .protocols import find_local

PROTOCOLS = ("torch", reference(), *(protocol for protocol in talking() if protocol != reference()))
WINDOWED = "float32 in the window"
Answer = Callable[[Window], Tensor]
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
    check_protocols(protocols, PROTOCOLS)
    model, prefix, _ = model_and_prefix(loaded, system, tokens, window)
    if not text.strip():
        raise EvaluationError(f"{title}: is empty; give a text of at least 2 tokens")
    ids = loaded.processor(text, add_special_tokens=False, verbose=False)["input_ids"]
    whole, some = windows(ids, tokens), windows(ids, tokens, private)
    say = progress or (lambda what, done, total: None)

    def exact(window: Window) -> Tensor:
        return model(input_ids=torch.tensor([[*prefix, *window.ids]])).logits[0, len(prefix) :]

    def judged(protocol: str, answer: Answer, given: Sequence[Window]) -> PlacedTokens:
        total = sum(len(window.ids) for window in given)
        return _judged(answer, exact, given, lambda done: say(protocol, done, total))

    with torch.inference_mode():
        float32 = judged("torch", exact, whole)
        found = {"torch": float32}
        if window is not None:
            found[WINDOWED] = judged("torch", _in_window(model, prefix, window), whole)
    chosen = [protocol for protocol in PROTOCOLS if protocol in protocols and protocol != "torch"]
    folder = None
    if chosen:
        cache = load_settings(None).client.cache.expanduser()
        folder = found_or_compiled(
            loaded.folder, cache, plan=plan, system=system, slots=tokens, window=window, progress=compiling
        )
    for protocol in chosen:
        assert folder is not None
        say(protocol, 0, 1)
        with find_local(protocol).talk(folder, timeout=timeout) as talk, torch.inference_mode():
            found[protocol] = judged(protocol, _answer_of(talk), whole if protocol == reference() else some)
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
        rows=_rows(found),
        versions=versions(),
    )


def _in_window(model: nn.Module, prefix: Sequence[int], attended: int) -> Answer:
    """float32, where each token reads the prefix and so many last tokens alone."""
    decoder = Decoder(copy.deepcopy(model), torch.tensor(prefix), embedding="private", window=attended).eval()

    def answer(window: Window) -> Tensor:
        return decoder(torch.tensor([window.ids]), torch.tensor([0]), **decoder.empty(0))["logits"][0]

    return answer


def _answer_of(talk: Conversation) -> Answer:
    def answer(window: Window) -> Tensor:
        talk.rows.crop(0)  # but for the prefix
        return talk.decoder(input_ids=torch.tensor([window.ids])).logits[0]

    return answer


def _judged(answer: Answer, exact: Answer, given: Sequence[Window], progress: Callable[[int], None]) -> PlacedTokens:
    found, start = PlacedTokens(), 0
    for window in given:
        started = time.perf_counter()
        try:
            logits = answer(window)
        except AnswerOutOfRange:
            found.refused += len(window.ids)
        else:
            found.seconds += time.perf_counter() - started
            found.add(start, window, logits, logits if answer is exact else exact(window))
        start += len(window.ids)
        progress(start)
    return found


def _rows(found: dict[str, PlacedTokens]) -> list[TextScore]:
    """float32 first, private rows last, which are compared with `clear` too."""
    rows, float32 = [], found["torch"]
    for protocol, own in found.items():
        if protocol == WINDOWED:
            rows.append(text_score(WINDOWED, "torch", own, float32, {EXACT: float32}))
            continue
        others = {} if protocol == "torch" else {EXACT: float32}
        if protocol != reference() and protocol != "torch" and reference() in found:
            others[reference()] = found[reference()]
        rows.append(text_score(EXACT if protocol == "torch" else APPROXIMATED, protocol, own, float32, others))
    return rows
