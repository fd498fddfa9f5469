"""Blindformer beside plain CrypTen and SPU: one model, one text, one machine, one run. Needs the extra `crypten`.

    python -m bench.peers --model minilm --length 128
    python -m bench.peers --layers 1 --length 32 --without-dealer --product 128 768 768 --spu-python PATH

A row each, with medians over the queries. README.md says what each figure means, and in what the set-ups differ.
"""

import argparse
import importlib.util
import json
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from blindformer.parties.client.local_n_party import LocalNParty
from blindformer.parties.launch import NO_DEALER
from blindformer.parties.session.parties import numbered
from blindformer.protocols.homomorphic.lattice import LatticeKey, LatticePublic, random_words
from blindformer.protocols.homomorphic.linear import LinearClient, LinearServer
from blindformer.versions import versions
from rich.table import Table
from torch import Tensor

from .crypten_plain import run_crypten
from .harness import BenchError, Report, Say, carry_out, columns, model_parser, spread
from .latency import OUTPUT, ask, built, deviation, exact
from .spu_plain import PARTIES
from .workloads import Workload, build

PLAIN = "crypten, plain"
CHEETAH = "CHEETAH"
SHARED = -1  # as an owner, to SPU
WEIGHT, BOTH = "shared x a party's own", "shared x shared"
FIRST = ("first_offline_s", "first_offline_bytes")
MEASURED = ("offline_s", "offline_bytes", *FIRST, "rounds", "cpu_s", "setup_s", "setup_bytes")
SPU_SKIPPED = (
    "spu was left out: `python3.11 -m venv FOLDER`, `FOLDER/bin/pip install spu==0.9.5 'jax[cpu]'`, then "
    "--spu-python FOLDER/bin/python"
)
NOTES = (
    "INSECURE peer: plain CrypTen's default provider lets party 0, the model's "
    "owner, make every triple, so party 0 can read all that party 1 sends. Its triples cost no traffic, and making "
    "them is part of its online time. SPU's SEMI2K is set up alike.",
    "The peers have no TLS; Blindformer's processes talk over mutual TLS 1.3. SPU's parties are threads of a process.",
    "Blindformer's correlations come from a dealer of its own, offline; the ratios `*_with_offline` count that too. "
    "Without a dealer its two parties make them. SPU's CHEETAH needs none either: party 0 owns the weights.",
    "Plain CrypTen runs CrypTen's own functions and defaults on the encoder, from embedded activations. On the real "
    "MiniLM weights its output diverges (GELU's tanh leaves the range of CrypTen's sigmoid); its time and bytes are "
    "the same for any values.",
    "Bytes of all parties, each message once: at plain CrypTen, TCP payload as the kernel counts it; at SPU, what its "
    "links count; here, the protocol's payload, without framing and TLS. Rounds: exchanges that wait for one another; "
    "at plain CrypTen, calls to its communicator, a batch counting once.",
)
_SENT = re.compile(r"total send bytes (\d+)")


def row_of(
    name: str, parties: int, dealer: str, online_s: list[float], online_bytes: int, errors: list[tuple[float, float]],
    *, tls: bool = False, **measured: float,
) -> Report:  # fmt: skip
    """Bytes are of all parties, each message once. errors: (largest error, least cosine) of each query. measured: of
    MEASURED what is known; without an offline phase, correlations are made on the way."""
    return {
        "name": name,
        "parties": parties,
        "dealer": dealer,
        "tls": tls,
        "online_s": statistics.median(online_s),
        "online_s_all": online_s,
        "online_bytes": online_bytes,
        **{key: measured.get(key) for key in MEASURED},
        "max_abs_error": max(error for error, _ in errors),
        "cosine_min": min(cosine for _, cosine in errors),
    }


def of_latency(latency: Report, name: str, dealer: str) -> Report:
    """The row of a session that `latency.ask` measured."""
    spent, moved, errors = latency["online_s_all"], latency["online_bytes"], latency["max_abs_error"]
    costs = {key: latency[key] for key in MEASURED}
    return row_of(name, 2, dealer, spent, moved, [(errors, latency["cosine_min"])], tls=True, **costs)


def measure_many(work: Workload, folder: Path, parties: int, *, timeout: float = 600) -> Report:
    """Our Program on CrypTen's communicator, all queries in one session; the first is a warm-up."""
    with LocalNParty(folder, numbered(parties), timeout=timeout) as session:
        answers = [session.query(query) for query in work.queries]
    errors = [
        deviation(answer.outputs[OUTPUT], exact(work.model, query), query)
        for answer, query in zip(answers, work.queries, strict=True)
    ]
    counted = [answer.timings for answer in answers[1:]]
    last, online = counted[-1], [timings.online_s for timings in counted]
    return row_of(
        "blindformer, crypten", parties, "of its own", online, last.online.sent, errors, tls=True,
        offline_s=statistics.median(timings.offline_s for timings in counted), offline_bytes=last.offline_bytes,
        rounds=last.rounds,
    )  # fmt: skip


def measure_crypten(work: Workload, *, timeout: float = 600) -> tuple[Report, Report]:
    """The workload's queries, all but the warm-up, under plain CrypTen, each in two fresh processes: a row, and more
    figures. Errors: BenchError, one line."""
    model: Any = work.model
    runs, errors = [], []
    for query in work.queries[1:]:
        mask = query["attention_mask"]
        try:
            run = run_crypten(
                model.state_dict(), model.config.to_dict(), embedded_of(model, query), mask, timeout=timeout
            )
        except RuntimeError as error:
            raise BenchError(str(error)) from None
        runs.append(run)
        errors.append(deviation(run.output, exact(model, query), query))
    spent, moved = [run.seconds for run in runs], round(statistics.median(run.bytes_both_ways for run in runs))
    cpu, rounds = statistics.median(run.cpu_seconds for run in runs), runs[-1].rounds
    row = row_of(PLAIN, 2, "party 0", spent, moved, errors, rounds=rounds, cpu_s=cpu)
    same = {name: row[name] for name in ("online_bytes", "rounds", "max_abs_error", "cosine_min", "tls", "cpu_s")}
    return row, {
        "protocol": "crypten",
        "runs": len(runs),
        **spread("online_s", spent),
        **same,
        "peak_rss_mb": max(run.peak_rss_mb for run in runs),
        "threads": 1,
        "versions": versions("crypten"),
    }


def measure_spu(work: Workload, python: str, protocol: str, *, timeout: float = 600) -> Report:
    """SPU on the encoder, from embedded activations, in one process of `python`. Errors: BenchError."""
    model: Any = work.model
    query, owner = work.queries[-1], 0 if protocol == CHEETAH else SHARED
    weights = {
        name: (tensor.t() if tensor.dim() == 2 else tensor).contiguous().float()
        for name, tensor in model.state_dict().items()
        if name.startswith("encoder.")
    }
    inputs = {"embedded": embedded_of(model, query), "mask": query["attention_mask"]}
    config = {key: getattr(model.config, key) for key in ("num_hidden_layers", "num_attention_heads", "layer_norm_eps")}
    runs = [run_spu(python, protocol, inputs, weights, owner, timeout, **config) for _ in work.queries[1:]]
    maker = {"SEMI2K": "party 0", "ABY3": "none needed", CHEETAH: NO_DEALER}[protocol]
    return row_of(
        f"spu {runs[-1].version}, {protocol}", PARTIES[protocol], maker, [run.seconds for run in runs],
        runs[-1].bytes, [deviation(run.output, exact(model, query), query) for run in runs],
        **{key: statistics.median(getattr(run, key) for run in runs) for key in ("cpu_s", "setup_s", "setup_bytes")},
    )  # fmt: skip


class SpuRun(NamedTuple):
    """Bytes are of all parties; set-up is a warm-up, in which parties exchange keys."""

    output: Tensor
    bytes: int
    setup_bytes: int
    seconds: float
    cpu_s: float
    setup_s: float
    version: str


def run_spu(
    python: str,
    protocol: str,
    inputs: dict[str, Tensor],
    weights: dict[str, Tensor],
    weights_owner: int,
    timeout: float,
    **config: float,
) -> SpuRun:
    """spu_plain.py, once. Errors: BenchError."""
    with tempfile.TemporaryDirectory(prefix="blindformer-spu-") as name:
        folder = Path(name)
        for file, tensors in {"inputs": inputs, "weights": weights}.items():
            arrays: dict[str, Any] = {key: tensor.numpy() for key, tensor in tensors.items()}
            np.savez(folder / f"{file}.npz", **arrays)
        (folder / "config.json").write_text(json.dumps({**config, "weights_owner": weights_owner}))
        command = [python, str(Path(__file__).with_name("spu_plain.py")), str(folder), protocol]
        sent = [int(count) for count in _SENT.findall(_output(command, "spu", timeout))]
        output = torch.from_numpy(np.load(folder / "output.npz")["output"])
        parties, figures = PARTIES[protocol], json.loads((folder / "spu.json").read_text())
        return SpuRun(output, sum(sent[parties:]), sum(sent[:parties]), **figures)


def embedded_of(model: Any, query: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model.embeddings(input_ids=query["input_ids"])


def _output(command: list[str], name: str, timeout: float) -> str:
    """What a peer's process prints. Errors: BenchError."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BenchError(f"{name}: {error}") from None
    if done.returncode:
        raise BenchError(f"{name}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return done.stderr + done.stdout


def measure_product(shape: Sequence[int], python: str | None, timeout: float) -> list[Report]:
    """A B modulo 2^64 without a dealer: A [rows, inner], B [inner, columns] of `shape`. Once B is a weight that one
    party knows, once both are shared. Set-up: what serves any number of products. Errors: BenchError."""
    values, (rows, inner, columns) = torch.Generator().manual_seed(0), shape
    a, b = (torch.randint(-99, 100, size, generator=values) for size in ((rows, inner), (inner, columns)))
    keys, weight, product = crossed(a, b)
    _, *other = crossed(b.t().contiguous(), a.t().contiguous())
    reports = [
        {"name": "blindformer", "factors": WEIGHT, **product, **_setup(keys, weight)},
        {"name": "blindformer", "factors": BOTH, **_total(weight, product, *other), **_setup(keys)},
    ]
    for factors, owner in {WEIGHT: 0, BOTH: SHARED}.items() if python else ():
        run = run_spu(python or "", CHEETAH, {"a": a.int()}, {"b": b.int()}, owner, timeout)
        if not torch.equal(run.output.long(), a @ b):
            raise BenchError(f"spu, {CHEETAH}: its product is wrong")
        costs = {key: getattr(run, key) for key in ("seconds", "cpu_s", "bytes", "setup_s", "setup_bytes")}
        reports.append({"name": f"spu {run.version}, {CHEETAH}", "factors": factors, **costs})
    return reports


def crossed(left: Tensor, right: Tensor) -> list[Report]:
    """What shares of the client's matrix times the server's cost: keys, encrypting `right`, and the product. Both
    parties are this thread. Errors: BenchError."""
    shape, share = (1, *right.shape), torch.from_numpy(random_words(len(left) * right.shape[1]).view(np.int64).copy())
    marks = [(time.perf_counter(), time.process_time())]
    key = LatticeKey()
    public = LatticePublic(sent_key := key.public())
    marks.append((time.perf_counter(), time.process_time()))
    server = LinearServer(key, shape)
    client = LinearClient(public, setup := server.setup(right), shape)
    marks.append((time.perf_counter(), time.process_time()))
    reply = client.reply(left, share := share.view(len(left), -1))
    product = server.shares(reply, len(left))[0] + share
    marks.append((time.perf_counter(), time.process_time()))
    if not torch.equal(product, left @ right):
        raise BenchError("protocols/homomorphic/linear.py: its product is wrong")
    return [
        {"seconds": end[0] - start[0], "cpu_s": end[1] - start[1], "bytes": len(message)}
        for (start, end), message in zip(pairwise(marks), (sent_key, setup, reply), strict=True)
    ]


def _total(*costs: Report) -> Report:
    return {key: sum(cost[key] for cost in costs) for key in costs[0]}


def _setup(*costs: Report) -> Report:
    total = _total(*costs)
    return {"setup_s": total["seconds"], "setup_bytes": total["bytes"]}


def ratios(ours: Report, peer: Report) -> dict[str, float]:
    """The peer's figure over ours: above 1, ours is smaller."""
    whole, moved = ours["online_s"] + (ours["offline_s"] or 0), ours["online_bytes"] + (ours["offline_bytes"] or 0)
    figures = {
        "time": peer["online_s"] / ours["online_s"],
        "time_with_offline": peer["online_s"] / whole,
        "bytes": peer["online_bytes"] / ours["online_bytes"],
        "bytes_with_offline": peer["online_bytes"] / moved,
    }
    return figures | ({"rounds": peer["rounds"] / ours["rounds"]} if peer["rounds"] and ours["rounds"] else {})


def measure(chosen: argparse.Namespace, say: Say) -> Report:
    """Everybody on one workload, one after the other, never at once: parties have two cores."""
    say("load")
    if importlib.util.find_spec("crypten") is None:
        raise BenchError("crypten is not installed; run: pip install -e '.[crypten]'")
    work = build(chosen.model, chosen.length, queries=chosen.repeat, layers=chosen.layers)
    with built(work, chosen.plan, say) as compiled:
        ours = ask(work, chosen.plan, compiled, chosen.timeout, say)
        rows = [of_latency(ours, "blindformer, beaver", "of its own")]
        if chosen.without_dealer:
            alone = ask(work, chosen.plan, compiled, chosen.timeout, say, dealer=NO_DEALER)
            rows.append(of_latency(alone, "blindformer, no dealer", NO_DEALER))
        for count in chosen.parties:
            say(f"crypten, {count} parties")
            rows.append(measure_many(work, compiled[0], count, timeout=chosen.timeout))
    say(PLAIN)
    peer, plain = measure_crypten(work, timeout=chosen.timeout)
    rows.append(peer)
    for protocol in [name for name in PARTIES if chosen.without_dealer or name != CHEETAH] if chosen.spu_python else ():
        say(f"spu, {protocol}")
        rows.append(measure_spu(work, chosen.spu_python, protocol, timeout=chosen.timeout))
    own = [row for row in rows if row["offline_s"] is not None]
    report = {key: ours[key] for key in ("model", "weights", "length", "batch", "plan")}
    report |= {
        "layers": len(list(work.model.get_submodule("encoder.layer").children())),
        "rows": rows,
        "ratios": [
            {"name": row["name"], "parties": row["parties"], "peer": peer["name"], **ratios(row, peer)}
            for row in own
            for peer in rows
            if peer not in own
        ],
        "product": chosen.product and measure_product(chosen.product, chosen.spu_python, chosen.timeout),
        "blindformer": ours,
        "crypten": plain,
        "notes": list(NOTES),
        "skipped": None if chosen.spu_python else SPU_SKIPPED,
    }
    return report


def _title(report: Report) -> str:
    sizes = f"{report['layers']} layers, length {report['length']}"
    return f"{report['model']}, {sizes}, {report['weights']} weights, plan {report['plan']}"


def show(report: Report) -> list[Table | str]:
    """Ratios: plain CrypTen's figure over the row's."""
    names = ("parties", "dealer", "TLS", "online", "offline", "CPU", "MB online", "MB offline", "rounds", "error")
    table = columns(_title(report), "", *names, "time", "traffic")
    peer = next(row for row in report["rows"] if row["name"] == PLAIN)
    for row in report["rows"]:
        ratio = ratios(row, peer)
        cells = [row["name"], str(row["parties"]), row["dealer"], "yes" if row["tls"] else "no"]
        cells += ["" if row[key] is None else f"{row[key]:.2f} s" for key in ("online_s", "offline_s", "cpu_s")]
        cells += ["" if size is None else f"{size / 1e6:.1f}" for size in (row["online_bytes"], row["offline_bytes"])]
        cells += [str(row["rounds"] or ""), f"{row['max_abs_error']:.1e}"]
        table.add_row(*cells, f"{ratio['time']:.1f}", f"{ratio['bytes']:.1f}")
    notes = [*report["notes"], *([report["skipped"]] if report["skipped"] else [])]
    return [table, *_products(report["product"] or []), *(f"- {note}" for note in notes)]


def _products(rows: list[Report]) -> list[Table]:
    table = columns("One product without a dealer", "", "factors", "seconds", "CPU", "MB", "set-up", "MB of set-up")
    for row in rows:
        seconds = [f"{row[key]:.2f} s" for key in ("seconds", "cpu_s", "setup_s")]
        moved = [f"{row[key] / 1e6:.1f}" for key in ("bytes", "setup_bytes")]
        table.add_row(row["name"], row["factors"], *seconds[:2], moved[0], seconds[2], moved[1])
    return [table] if rows else []


def main(arguments: list[str] | None = None) -> int:
    options = model_parser("peers", "Measure Blindformer, plain CrypTen and SPU side by side.")
    options.add_argument("--repeat", type=int, default=1, help="queries of ours and runs of the peers' (default 1)")
    options.add_argument("--parties", type=int, nargs="*", default=[2, 3], help="of protocol crypten (default 2 3)")
    options.add_argument("--layers", type=int, help="the model's first ones (default: all)")
    options.add_argument("--without-dealer", action="store_true", help="also no dealer: ours, SPU's Cheetah (slow)")
    shape = ("ROWS", "INNER", "COLUMNS")
    options.add_argument("--product", type=int, nargs=3, metavar=shape, help="also one product without a dealer")
    options.add_argument("--spu-python", metavar="PATH", help="a Python with spu 0.9.5 and jax (default: without SPU)")
    return carry_out(options, arguments, measure, show, packages=["crypten"])


if __name__ == "__main__":
    raise SystemExit(main())
