"""Texts through a model on this machine, privately and in the clear, and how far apart the answers are."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...approximations import Plan, approximate, restore
from ...models.loading.answers import at_tokens
from ...models.loading.huggingface import InputError, LoadError
from ...models.loading.load import Loaded
from ...models.loading.truncation import Truncation
from ...models.lowering.structure import tensors_of
from ...protocols.errors import BlindformerError
from ...versions import versions
from ..receipts.receipt import Prices, Receipt, asked_for
from ..reports.report import Report
from ..session.online import Progress, rss_mb
from ..session.parties import Parties
from .local import bounded, find_local
from .session import ask_all


@dataclass
class Comparison:
    """A private run of some inputs beside the same in the clear.

    inputs           the model's, [1, ...] each
    private, clear   outputs by name, one per input; `clear` is the float32 model itself
    errors           of inputs that have no answer, by index; nothing is private of them
    receipt          if one was asked for, or its error
    reports          one per query; `texts`: inputs of one, of which the last may have had fewer
    """

    compiled: Any
    inputs: list[dict[str, Tensor]]
    private: list[dict[str, Tensor]]
    clear: list[dict[str, Tensor]]
    reports: list[Report]
    plaintext_s: float
    texts: int = 1
    errors: dict[int, BlindformerError] = field(default_factory=dict)
    receipt: Receipt | BlindformerError | None = None

    def max_abs_error(self, normalised: bool = False) -> float:
        """The largest difference of any element of any output, padding aside. `normalised`: of vectors brought to
        length one first."""
        form = (lambda x: torch.nn.functional.normalize(x, dim=-1)) if normalised else (lambda x: x)
        return max(float((form(p) - form(c)).abs().max()) for p, c in self._pairs())

    def cosine_min(self) -> float:
        """The least cosine of a private output with the one in the clear, each taken as one vector, without padding."""
        return min(float(torch.cosine_similarity(p.flatten(), c.flatten(), 0)) for p, c in self._pairs())

    def summary(self, model: str, length: int, normalised: bool = False) -> dict[str, Any]:
        """The keys that demo and bench share. Seconds and bytes are of one query: their mean and their exact number."""
        first = self.reports[0]
        return {
            "model": model,
            "length": length,
            "plan": first.plan,
            "protocol": first.protocol,
            "plaintext_s": self.plaintext_s,
            "offline_s": statistics.fmean(r.offline_s for r in self.reports),
            "online_s": statistics.fmean(r.online_s for r in self.reports),
            "offline_bytes": first.offline_bytes,
            "online_bytes": first.online_bytes,
            "rounds": first.rounds,
            "max_abs_error": self.max_abs_error(normalised),
            "cosine_min": self.cosine_min(),
            "peak_rss_mb": max((mb for r in self.reports for mb in r.peak_rss_mb.values()), default=rss_mb()),
            "versions": versions(),
            **({"texts_a_query": self.texts} if self.texts > 1 else {}),
        }

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        rows = zip(self.inputs, self.private, self.clear, strict=True)
        return [(at_tokens(n, p[n], given), at_tokens(n, c[n], given)) for given, p, c in rows for n in p]


def encode_each(
    loaded: Loaded, items: Mapping[int, Any], length: str | int = "auto", truncate: Truncation = "off"
) -> tuple[int, dict[int, dict[str, Tensor]], dict[int, InputError]]:
    """(the length that all are padded to, in tokens, of sounds in samples, 0 for images; the inputs of those that fit,
    and why others do not, by their numbers).

    `length`, `truncate`: as for Loaded.length_for. Errors: LoadError.
    """
    inputs: dict[int, dict[str, Tensor]] = {}
    errors: dict[int, InputError] = {}
    sizes: dict[int, int] = {}
    medium = loaded.task.medium
    if medium is not None and length != "auto":
        raise LoadError(f"{loaded.name}: takes {medium.word}s, which have no lengths; leave --length out")
    for index, item in items.items():
        try:
            sizes[index] = (
                loaded.length_for([item], length, truncate) if medium is None else loaded.task.samples([item])
            )
        except InputError as error:
            errors[index] = error
    size = max(sizes.values(), default=0)
    for index in sizes:
        try:
            item = items[index]
            inputs[index] = loaded.encode(item, size, truncate) if medium is None else loaded.encode_file(item, size)
        except InputError as error:
            errors[index] = error
    return size, inputs, errors


def compare(
    loaded: Loaded,
    compiled: Any,
    inputs: list[dict[str, Tensor]],
    *,
    protocol: str = "beaver",
    threads: int = 1,
    timeout: float = 120,
    progress: Progress | None = None,
    parties: Parties | int = 2,
    trained: bool = False,
    prices: Prices = None,
    device: str = "cpu",
) -> Comparison:
    """Run the inputs privately in three processes (or on the reference protocol), and the float32 model beside it.
    `compiled`: what sessions of the protocol take, a Compiled or a delegated model's part.

    An input without an answer leaves those of the others (Comparison.errors).

    `parties`: of protocol `crypten`, each a process, and the dealer one more: how many, or who of them owns what.
    `prices`: has all parties vouch for the session (`receipt`). `trained`: the model was, with this plan, so that the
    float32 model has the plan's functions, too. `device`: where each party computes.
    """
    clear, seconds = _plaintext(loaded, compiled.plan if trained else None, inputs, threads)
    comparison = Comparison(compiled, inputs, [], clear, [], seconds)
    local = find_local(protocol, parties)
    options = {"threads": threads, "timeout": timeout, "progress": progress, "device": device}
    say = progress or (lambda phase, done, total: None)
    say("start", 0, 1)
    session = local.open(compiled, **options)
    say("start", 1, 1)
    comparison.texts = session.texts
    with session:
        say("query", 0, len(inputs))
        for answers, reply in ask_all(session, inputs):
            for answer in answers:
                if isinstance(answer, BlindformerError):
                    comparison.errors[len(comparison.private)] = answer
                comparison.private.append({} if isinstance(answer, BlindformerError) else answer)
            if reply is not None and any(not isinstance(answer, BlindformerError) for answer in answers):
                comparison.reports.append(reply.report)
            say("query", len(comparison.private), len(inputs))
        comparison.receipt = asked_for(session.receipt, prices)
    if len(comparison.errors) == len(inputs):
        raise comparison.errors[0]
    return comparison


def _plaintext(
    loaded: Loaded, plan: Plan | None, inputs: list[dict[str, Tensor]], threads: int
) -> tuple[list[dict[str, Tensor]], float]:
    """The float32 model's outputs, and its seconds for one input: the median, after a warm-up, on as many threads.
    `plan`: the one whose functions the model was trained with."""
    if plan is not None:
        approximate(loaded.model, plan)
    try:
        results, seconds = [], []
        with bounded(threads), torch.no_grad():
            loaded.model(**inputs[0])
            for item in inputs:
                started = time.perf_counter()
                output = loaded.model(**item)
                seconds.append(time.perf_counter() - started)
                results.append(tensors_of(output))
    finally:
        if plan is not None:
            restore(loaded.model)
    return results, statistics.median(seconds)
