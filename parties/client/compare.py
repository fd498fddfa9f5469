"""Private answers beside those of the model in the clear, and how far apart they are."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...approximations import Plan, approximate, restore
from ...models.loading.answers import at_tokens
from ...models.loading.huggingface import InputError, LoadError
from ...models.loading.load import Loaded
from ...models.loading.truncation import Truncation
from ...models.lowering.structure import tensors_of
from ...versions import versions
from ..reports.report import Report
from ..session.online import rss_mb
from .local import bounded
from .result import Result


@dataclass
class Comparison:
    """Private answers to some inputs beside the same in the clear.

    inputs           the model's, [1, ...] each
    private, clear   outputs by name, one per input; `clear` is the float32 model itself
    reports          one per query, of which each may have had several inputs
    """

    inputs: Sequence[dict[str, Tensor]]
    private: list[dict[str, Tensor]]
    clear: list[dict[str, Tensor]]
    reports: list[Report]
    plaintext_s: float

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
        first, texts = self.reports[0], -(-len(self.inputs) // len(self.reports))
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
            **({"texts_a_query": texts} if texts > 1 else {}),
        }

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        rows = zip(self.inputs, self.private, self.clear, strict=True)
        return [(at_tokens(n, p[n], given), at_tokens(n, c[n], given)) for given, p, c in rows for n in p]


def encode_each(
    loaded: Loaded, items: Mapping[int, Any], length: str | int = "auto", truncate: Truncation = "off"
) -> tuple[int, dict[int, dict[str, Tensor]], dict[int, InputError]]:
    """(the length that all are padded to, in tokens, of recordings in samples, 0 for images; the inputs that fit,
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
    inputs: Sequence[dict[str, Tensor]],
    results: Sequence[Result],
    plan: Plan | None = None,
    threads: int = 1,
) -> Comparison:
    """Private answers to these inputs, and those of the float32 model. `plan`: the one that the model was trained with,
    whose functions the float32 model then has, too."""
    clear, seconds = _plaintext(loaded, plan, inputs, threads)
    reports = {id(result.report): result.report for result in results if result.report is not None}
    return Comparison(inputs, [result.outputs for result in results], clear, list(reports.values()), seconds)


def _plaintext(
    loaded: Loaded, plan: Plan | None, inputs: Sequence[dict[str, Tensor]], threads: int
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
