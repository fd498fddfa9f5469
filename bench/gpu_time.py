"""What a query would take where parties compute on a GPU, reckoned without one: an estimate, not a measurement. Of a
model that writes, what a token would take behind a cache of text.

    python -m bench.gpu_time --model bert-base --length 128 --plan faithful
    python -m bench.gpu_time --model smollm2 --cache 128 --weights public
    python -m bench.latency --model bert-base --length 128 --plan faithful --device cuda      measures it, where one is

A session runs in threads on a pretended GPU (tests/gpu.py), whose work is counted by party and phase: operations, the
bytes that they read and write, products, and what goes up and down its link. Each takes as long as `GPUS` says. A
party's seconds are those of the processor, which draws masks on eight cores and gives orders, or of the GPU, whichever
are more, and those of the link; a round is one wait for each party.
"""

import argparse
import math
import statistics
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from blindformer.models.compile import Compiled, compile
from blindformer.models.generation.chat import compile_chat
from blindformer.models.generation.rows import Rows
from blindformer.models.loading.load import load
from blindformer.models.program.pricing import price
from blindformer.models.program.program import Program
from blindformer.parties.client.threads import ThreadParties
from blindformer.parties.session.part_runs import RUNS
from blindformer.parties.session.rehearsal import rehearse
from blindformer.protocols.devices import CPU
from blindformer.protocols.kernels import library
from blindformer.protocols.seeds import new_seed
from blindformer.protocols.streams import MOST_THREADS, Stream
from blindformer.tests.gpu import pretended
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes, _get_current_dispatch_mode_stack

from .generation import text_of
from .harness import BenchError, Report, Say, add_weights, carry_out, columns, megabytes, model_parser, seconds
from .latency import OUTPUT
from .workloads import WORKLOADS, build

PARTIES = {
    ("server", "offline"): "blindformer correlations",
    ("server", "online"): "blindformer server",
    ("client", "offline"): "blindformer client",
    ("client", "online"): threading.main_thread().name,
    ("dealer", "offline"): "blindformer dealer",
}
KERNELS = library.on_gpu  # as it is before a GPU is pretended
SHARE = 0.5  # of what a data sheet promises, that products and memory reach
WAIT = 60e-6  # seconds that a round adds at each party: the last numbers come down, and the others' go up


@dataclass(frozen=True)
class GpuFigures:
    """Of a data sheet, a second: bytes of memory, multiply-accumulates of bytes and of float64, bytes of the link; and
    the seconds that torch takes to order an operation from Python."""

    memory: float
    of_bytes: float
    of_floats: float
    link: float
    order: float = 7e-6


# https://resources.nvidia.com/en-us-gpu-resources/h100-datasheet-24306 (SXM);
# https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf
GPUS = {
    "H100": GpuFigures(memory=3.35e12, of_bytes=1979e12 / 2, of_floats=67e12 / 2, link=50e9),
    "RTX 4090": GpuFigures(memory=1.008e12, of_bytes=660e12 / 2, of_floats=1.29e12 / 2, link=25e9),
}


class CountedWork(TorchDispatchMode):
    """Of one thread: `operations`, the `bytes` that they read and write, and multiply-accumulates `of_bytes` and
    `of_floats`."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        returned = func._schema.returns
        if any(one.alias_info is not None and not one.alias_info.is_write for one in returned):
            return result  # a view
        self.counts["operations"] += 1
        self.counts["bytes"] += sum(x.nbytes for x in _tensors((args, result)))
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten._int_mm):
            kind = "of_bytes" if args[0].dtype is torch.int8 else "of_floats"
            self.counts[kind] += args[0].numel() * args[1].shape[-1]
        return result


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from _tensors(item)


def counted_kernel(name: str) -> Callable[..., Any] | None:
    """A kernel for GPUs (protocols/kernels/fused.py), as its torch function and two orders: room, and the kernel."""
    if KERNELS(name) is None:
        return None

    def run(*args: Any) -> Any:
        modes = _get_current_dispatch_mode_stack()
        with _disable_current_modes():
            result = library.kernels[name].reference(*args)
        for mode in modes:
            if isinstance(mode, CountedWork):
                mode.counts["operations"] += 2
                mode.counts["bytes"] += sum(x.nbytes for x in _tensors((args, result)))
        return result

    return run


Ask = Callable[[ThreadParties], Iterator[list[Program]]]
"""Asks a session twice, and gives the programs that ran: first for what lasts, then for what is counted."""


def texts(chosen: argparse.Namespace) -> tuple[Compiled, Ask]:
    """A text a time."""
    work = build(chosen.model, chosen.length, queries=2)
    how = {"outputs": [OUTPUT], "name": work.name, "weights": chosen.weights}
    compiled = compile(work.model, work.calibration, chosen.plan, **how)

    def ask(session: ThreadParties) -> Iterator[list[Program]]:
        for query in work.queries[:2]:
            session.query(query)
            yield [compiled.program]

    return compiled, ask


def tokens(chosen: argparse.Namespace) -> tuple[Compiled, Ask]:
    """Tokens after a cache of text, and then as many as two lots of correlations are made for."""
    if chosen.cache < 2:
        raise BenchError("--cache: give at least 2")
    slots = -(-(chosen.cache + 3 * RUNS) // 32) * 32
    compiled, chat = compile_chat(load(chosen.model), plan=chosen.plan, slots=slots, weights=chosen.weights)
    ids = text_of(chat, chosen.cache + 3 * RUNS)[len(chat.prefix) :]

    def ask(session: ThreadParties) -> Iterator[list[Program]]:
        parts = list[str]()
        rows = Rows(compiled.program, session.passes(lambda part, answer: parts.append(part)), chat.prefix)
        rows.read(ids[: chosen.cache], wanted=0)
        for start, count in ((0, RUNS), (RUNS, 2 * RUNS)):
            parts.clear()
            for token in ids[chosen.cache + start :][:count]:
                rows.read([token])
            yield [compiled.program.part(name) for name in parts]

    return compiled, ask


@dataclass
class Counted:
    """By party and phase, what was counted, and seconds on a core of this machine (`on_core`); of the query also rounds
    and bytes. Of several tokens, their mean."""

    rounds: float
    online_bytes: float
    offline_bytes: float
    on_core: dict[str, float]
    work: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict)


def count(chosen: argparse.Namespace, say: Say) -> Counted:
    """One query, or some tokens, after a first one, which makes what lasts."""
    say("compile")
    writes = chosen.model not in WORKLOADS
    compiled, ask = (tokens if writes else texts)(chosen)
    threads: dict[str, list[CountedWork]] = defaultdict(list)

    def watched(name: str) -> CountedWork:
        threads[name].append(mode := CountedWork())
        return mode

    say("count")
    with pretended(watched, counted_kernel), ThreadParties(compiled, timeout=chosen.timeout, device="cuda") as session:
        asking = ask(session)
        next(asking)
        for modes in threads.values():
            for mode in modes:
                mode.counts.clear()
        programs = next(asking)
    costs = [price(program) for program in programs]
    say("on a core")
    on_core = rehearse(programs[-1], compiled.weights, runs=RUNS if writes else 1).compute_s()

    def mean(name: str) -> float:
        return statistics.mean(getattr(cost, name) for cost in costs)

    counted = Counted(mean("rounds"), mean("up") + mean("down"), mean("offline_bytes"), on_core)
    for of, name in PARTIES.items():
        work = sum((mode.counts for mode in threads[name]), Counter[str]())
        counted.work[of] = {what: value / len(programs) for what, value in work.items()}
    dealt, held, up, down = (mean(name) for name in ("dealt_bytes", "held_bytes", "up", "down"))
    links = {  # up and down; the dealer has the streams of both parties
        ("server", "offline"): (dealt, 0),
        ("client", "offline"): (held, 0),
        ("dealer", "offline"): (2 * held, dealt),
        ("server", "online"): (up, down),
        ("client", "online"): (down, up),
    }
    for of, (to_gpu, from_gpu) in links.items():
        counted.work[of] |= {"up": to_gpu, "down": from_gpu}
    return counted


def party_seconds(counts: dict[str, float], gpu: GpuFigures, mask_bytes_a_second: float, phase: str) -> float:
    drawn = counts["up"] / (MOST_THREADS * mask_bytes_a_second) if phase == "offline" else 0.0
    host = drawn + counts["operations"] * gpu.order
    products = counts.get("of_bytes", 0) / gpu.of_bytes + counts.get("of_floats", 0) / gpu.of_floats
    device = (counts["bytes"] / gpu.memory + products) / SHARE
    return max(host, device) + (counts["up"] + counts["down"]) / gpu.link


def masks_a_second(size: int = 1 << 26) -> float:
    """Bytes of key stream that this processor draws in a second, on one core."""
    stream, spent = Stream(new_seed(), "speed", CPU), math.inf
    for number in range(3):
        started = time.perf_counter()
        stream.integers(str(number), (size // 8,))
        spent = min(spent, time.perf_counter() - started)
    return size / spent


def measure(chosen: argparse.Namespace, say: Say) -> Report:
    counted, speed = count(chosen, say), masks_a_second()
    estimates = {}
    for name, gpu in GPUS.items():
        by_party = {of: party_seconds(counts, gpu, speed, of[1]) for of, counts in counted.work.items()}
        offline = max(value for (_, phase), value in by_party.items() if phase == "offline")
        online = max(value for (_, phase), value in by_party.items() if phase == "online")
        parties = {f"{party}_{phase}_s": value for (party, phase), value in by_party.items()}
        estimates[name] = {"offline_s": offline, "online_s": online + 2 * WAIT * counted.rounds, **parties}
    return {
        "model": chosen.model,
        **({"length": chosen.length} if chosen.model in WORKLOADS else {"cache": chosen.cache}),
        "weights_are": chosen.weights,
        "plan": chosen.plan,
        "rounds": counted.rounds,
        "online_bytes": counted.online_bytes,
        "offline_bytes": counted.offline_bytes,
        "masks_a_second": speed,
        "on_core": counted.on_core,
        "work": {f"{party} {phase}": dict(counts) for (party, phase), counts in counted.work.items()},
        "estimates": estimates,
    }


def show(report: Report) -> list[Table | str]:
    what = f"length {report['length']}" if "length" in report else f"a token after {report['cache']}"
    title = f"{report['model']}, {what}, plan {report['plan']}, all parties on a GPU: an estimate"
    work = columns(title, "party", "operations", "memory", "bytes x bytes", "floats", "up", "down")
    for party, counts in report["work"].items():
        figures = [megabytes(counts.get(key, 0)) for key in ("bytes", "up", "down")]
        products = [f"{counts.get(key, 0) / 1e9:.1f} G" for key in ("of_bytes", "of_floats")]
        work.add_row(party, f"{counts.get('operations', 0):,.0f}", figures[0], *products, *figures[1:])
    took = columns("seconds", "GPU", "offline", "online", *report["work"])
    alone = (seconds(report["on_core"].get(party.replace(" ", "_"), 0.0)) for party in report["work"])
    took.add_row("none: a core each", "", "", *alone)
    for name, estimate in report["estimates"].items():
        parties = (seconds(estimate[f"{party.replace(' ', '_')}_s"]) for party in report["work"])
        took.add_row(name, seconds(estimate["offline_s"]), seconds(estimate["online_s"]), *parties)
    return [work, took]


def main(arguments: list[str] | None = None) -> int:
    options = model_parser("gpu_time", "Reckon what a query would take on a GPU, without one.", models=None)
    options.add_argument("--cache", type=int, default=128, help="of a model that writes: tokens of text (%(default)s)")
    add_weights(options)
    return carry_out(options, arguments, measure, show)


if __name__ == "__main__":
    raise SystemExit(main())
