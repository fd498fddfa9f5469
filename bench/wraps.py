"""Truncations that go wrong: our exact rescale beside CrypTen's local truncation of shares, element by element.

    python -m bench.wraps --model minilm --length 32 --inferences 100

Ours: the Program among two parties of protocol `crypten`, in threads; after every rescale both shares are added up and
held against the exact quotient. CrypTen's: its own encoder in two processes; at every truncation party 1 shows its
share to party 0, which counts the pairs whose sum leaves the 64 bits (those are wrong by 2^48). Both look at real
shares of consecutive inferences, and change nothing of them.
"""

# pyright: reportMissingImports=false
# (the editable install maps `blindformer` to this folder by an import hook, which pyright does not follow)

import json
import math
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from blindformer.models.compile import Compiled, compile
from blindformer.models.program.correlations import Correlations
from blindformer.models.program.interpreter import interpret
from blindformer.parties.session.parties import numbered
from blindformer.parties.transport.memory import memory_pair
from blindformer.protocols.beaver.source import Corrections
from blindformer.protocols.crypten.engine import ManyOnlineEngine
from blindformer.protocols.ring import Ring, sign_extend
from blindformer.protocols.rounds import over_channel
from blindformer.protocols.streams import Stream, new_seed
from torch import Tensor

from .commands import Say, parser, run_command
from .crypten_plain import run_crypten
from .latency import OUTPUT
from .provenance import json_line, provenance
from .workloads import Batch, Workload, WorkloadError, build

SECONDS = 600.0


@dataclass
class Counted:
    """`elements`: truncated; `wrong`: by more than one unit; `outside`: values that leave what a rescale promises to
    take (ours are then no wraps, and meet an exact zero later). `inferences_hit`: with at least one wrong element."""

    name: str
    inferences: int = 0
    truncations: int = 0
    elements: int = 0
    wrong: int = 0
    outside: int = 0
    inferences_hit: int = 0


class Checker:
    """Puts both parties' shares of every rescale, and of what it read, together as they come."""

    def __init__(self, compiled: Compiled, total: Counted) -> None:
        self.instructions, self.total, self.lock = compiled.program.instructions, total, threading.Lock()
        self.readers: dict[int, list[int]] = {}
        for number, item in enumerate(self.instructions):
            if item.op == "rescale":
                self.readers.setdefault(item.args[0], []).append(number)
        self.halves: dict[int, Tensor] = {}
        self.exact: dict[int, Tensor] = {}  # of a value that rescales are still to read

    def observe(self, number: int, value: Any) -> None:
        item = self.instructions[number]
        if number not in self.readers and item.op != "rescale":
            return
        with self.lock:
            if number not in self.halves:
                self.halves[number] = value.tensor.clone()
                return
            whole = self.halves.pop(number) + value.tensor
            if item.op == "rescale":
                self.check(item, whole)
            if number in self.readers:
                self.exact[number] = whole

    def check(self, item: Any, result: Tensor) -> None:
        source, bits, ring = item.args[0], item.attributes["bits"], item.attributes["ring"]
        exact = sign_extend(self.exact[source], ring)
        error = sign_extend(result - (exact >> bits), item.width)
        outside = (exact >= 1 << (ring - 2)) | (exact < -(1 << (ring - 2)))
        wrong = (error != 0) & (error != 1)
        self.total.truncations += 1
        self.total.elements += result.numel()
        self.total.outside += int(outside.sum())
        self.total.wrong += int((wrong & ~outside).sum())


def count_ours(compiled: Compiled, queries: list[Batch], say: Say, seconds: float = math.inf) -> Counted:
    total, end = Counted("blindformer, crypten, exact rescale"), time.monotonic() + seconds
    for number, query in enumerate(queries):
        if time.monotonic() > end:
            break
        say(f"ours: {number + 1}/{len(queries)}, {total.wrong} wrong")
        before = total.wrong
        infer(compiled, query, Checker(compiled, total).observe)
        total.inferences += 1
        total.inferences_hit += total.wrong > before
    return total


def infer(compiled: Compiled, query: Batch, observe: Callable[[int, Any], None]) -> dict[str, Tensor]:
    """One query among two parties and a dealer, each a thread. Returns the ring results of party 1."""
    program, ring, values = compiled.program, Ring(), compiled.encode_inputs(query)
    owners = numbered(2).sources(program)
    correlations = Correlations(program, owners)
    streams = [Stream(new_seed(), "query") for _ in range(2)]
    drawn = Stream(new_seed(), "weights")
    masks = {name: drawn.integers(name, shape) for name, shape in program.weight_shapes().items()}
    masked = {name: compiled.weights[name] - mask for name, mask in masks.items()}
    dealer_end, leader_end = memory_pair("dealer", "alice", SECONDS)
    ends = memory_pair("alice", "bob", SECONDS)
    found: dict[int, dict[str, Tensor]] = {}
    errors: list[BaseException] = []

    def deal() -> None:
        correlations.deal(streams, Corrections(dealer_end, correlations.layout), masks)

    def party(rank: int) -> None:
        if rank == 0:
            tape = correlations.lead(streams[0], Corrections(leader_end, correlations.layout))
        else:
            tape = correlations.follow(streams[1], masked)
        mine = values if rank else compiled.weights
        online = ManyOnlineEngine(rank, tape, ring, mine, compiled.constants, owners=owners)
        found[rank] = interpret(program, online, over_channel(ends[rank]), observe=observe).outputs

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)
            for end in (dealer_end, leader_end, *ends):
                end.close()

    roles = (deal, lambda: party(0), lambda: party(1))
    threads = [threading.Thread(target=guarded, args=(role,), daemon=True) for role in roles]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return found[1]


def count_crypten(work: Workload, queries: list[Batch], timeout: float) -> Counted:
    """Plain CrypTen's, one session for all queries."""
    model: Any = work.model
    with torch.no_grad():
        embedded = torch.stack([model.embeddings(input_ids=query["input_ids"]) for query in queries])
    try:
        run = run_crypten(
            model.state_dict(),
            model.config.to_dict(),
            embedded,
            torch.stack([query["attention_mask"] for query in queries]),
            timeout=timeout,
            count_wraps=True,
        )
    except RuntimeError as error:
        raise WorkloadError(str(error)) from None
    assert run.wraps is not None
    return Counted("crypten, plain, local truncation", len(queries), **run.wraps)


def main(arguments: list[str] | None = None) -> int:
    options = parser("python -m bench.wraps", "Count truncations that go wrong, ours and CrypTen's.")
    options.set_defaults(length=32, timeout=7200.0)
    options.add_argument("--inferences", type=int, default=100, help="consecutive queries (default 100)")
    options.add_argument("--seconds", type=float, default=math.inf, help="begin no inference of ours after so long")
    options.add_argument("--only", choices=["ours", "crypten"], help="one of the two")
    chosen = options.parse_args(arguments)

    def work(say: Say) -> None:
        say("load")
        workload = build(chosen.model, chosen.length, queries=chosen.inferences)
        queries, rows = workload.queries[1:], []
        torch.set_num_threads(1)
        if chosen.only != "crypten":
            compiled = compile(workload.model, workload.calibration, chosen.plan, outputs=[OUTPUT], name=workload.name)
            rows.append(count_ours(compiled, queries, say, chosen.seconds))
        if chosen.only != "ours":
            say("crypten")
            rows.append(count_crypten(workload, queries, chosen.timeout))
        shape = {"model": workload.name, "weights": workload.weights, "length": workload.length, "plan": chosen.plan}
        told = {"rows": [asdict(row) for row in rows], **provenance("crypten")}
        if chosen.format == "json":
            print(json_line(shape | told))
            return
        for row in rows:
            sys.stdout.write(json.dumps(asdict(row)) + "\n")

    return run_command("bench.wraps", work)


if __name__ == "__main__":
    raise SystemExit(main())
