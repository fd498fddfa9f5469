"""Texts through a model on this machine, privately and in the clear, and how far apart the answers are."""

from __future__ import annotations

import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..approximations import Plan
from ..models.building import Stage, compile_lengths
from ..models.compile import Compiled, decode_outputs
from ..models.interpreter import interpret
from ..models.loading import Loaded
from ..protocols.clear import ClearEngine
from .kinds import REFERENCE, find_kind
from .launcher import LocalAnswer, LocalParties, Progress
from .many.roster import Roster, numbered
from .report import Report, clear_report
from .session import rss_mb
from .witness import uniformity


@dataclass
class Comparison:
    """A private run of some inputs beside the same in the clear.

    private, clear   outputs by name, one per input; `clear` is the float32 model itself
    reports          one per input
    seen             what the server received: `uniformity` of its bytes; None where nothing was received
    """

    compiled: Compiled
    private: list[dict[str, Tensor]]
    clear: list[dict[str, Tensor]]
    reports: list[Report]
    plaintext_s: float
    compile_s: float = 0.0
    seen: dict[str, Any] | None = None

    def max_abs_error(self, normalised: bool = False) -> float:
        """The largest difference of any element of any output. `normalised`: of vectors brought to length one first."""
        form = (lambda x: torch.nn.functional.normalize(x, dim=-1)) if normalised else (lambda x: x)
        return max(float((form(p) - form(c)).abs().max()) for p, c in self._pairs())

    def cosine_min(self) -> float:
        """The least cosine between a private output and the one in the clear, each taken as one vector."""
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
        }

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        return [(p[n], c[n]) for p, c in zip(self.private, self.clear, strict=True) for n in p]


def compile_text(
    loaded: Loaded,
    length: int,
    plan: Plan | str = "faithful",
    *,
    texts: Sequence[str] | None = None,
    embedding: str = "client",
    outputs: list[str] | None = None,
    stage: Stage | None = None,
) -> Compiled:
    """Compile a text model for one length. `texts` calibrate it (default: the built-in ones, never a user's)."""
    options = {"texts": texts, "embedding": embedding, "outputs": outputs, "stage": stage}
    return compile_lengths(loaded, [length], plan, **options)[length]


def compare(
    loaded: Loaded,
    compiled: Compiled,
    inputs: list[dict[str, Tensor]],
    *,
    protocol: str = "beaver",
    threads: int = 1,
    timeout: float = 120,
    progress: Progress | None = None,
    audit: bool = False,
    parties: int = 2,
    roster: Roster | None = None,
) -> Comparison:
    """Run the inputs privately in three processes (or on the reference protocol), and the float32 model beside it.

    `parties`: of protocol `crypten`, each a process, and the dealer one more; `roster`: who of them owns what.
    """
    roster = roster or numbered(parties)
    clear, seconds = _plaintext(loaded, compiled, inputs, threads)
    answers, reports, counts = [], [], []
    if protocol == REFERENCE:
        for item in inputs:
            started = time.perf_counter()
            engine = ClearEngine({**compiled.encode_inputs(item), **compiled.weights, **compiled.constants})
            answers.append(decode_outputs(compiled.program, interpret(compiled.program, engine).outputs))
            reports.append(clear_report(compiled.program, compiled.plan.name, time.perf_counter() - started))
        return Comparison(compiled, answers, clear, reports, seconds)
    kind = find_kind(protocol, len(roster.names))
    with tempfile.TemporaryDirectory(prefix="blindformer-") as folder:
        kind.save(compiled, Path(folder))
        options = {"threads": threads, "timeout": timeout, "progress": progress, **({"audit": True} if audit else {})}
        session, report = kind.start(Path(folder), roster, **options), kind.report(roster)
        with session:
            for number, item in enumerate(inputs):
                if progress:
                    progress("query", number, len(inputs))
                answer: LocalAnswer = session.query(item)
                answers.append(answer.outputs)
                reports.append(
                    report(
                        compiled.program,
                        compiled.plan.name,
                        answer.timings,
                        answer.others,
                        session.setup_s,
                        session.setup_bytes,
                    )
                )
            if progress:
                progress("query", len(inputs), len(inputs))
        counts = session.counts if isinstance(session, LocalParties) else []
    return Comparison(compiled, answers, clear, reports, seconds, seen=uniformity(counts) if counts else None)


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("blindformer", "torch", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _plaintext(
    loaded: Loaded, compiled: Compiled, inputs: list[dict[str, Tensor]], threads: int
) -> tuple[list[dict[str, Tensor]], float]:
    """The float32 model's outputs, and its seconds for one input: the median, after a warm-up, on as many threads."""
    names = list(compiled.program.outputs)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        results, seconds = [], []
        with torch.no_grad():
            loaded.model(**inputs[0])
            for item in inputs:
                started = time.perf_counter()
                output = loaded.model(**item)
                seconds.append(time.perf_counter() - started)
                results.append({name: output[name] for name in names})
    finally:
        torch.set_num_threads(before)
    return results, statistics.median(seconds)
