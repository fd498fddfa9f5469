"""Blindformer beside plain CrypTen and SPU: one model, one text, one machine, one run. Needs the extra `crypten`.

    python -m bench.peers --model minilm --length 128

A row each, with medians over the queries. README.md says what each figure means, and in what the set-ups differ.
"""

import argparse
import importlib.util
import json
import re
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from blindformer.parties.client.local_n_party import LocalNParty
from blindformer.parties.session.parties import numbered
from blindformer.versions import versions
from rich.table import Table
from torch import Tensor

from .crypten_plain import run_crypten
from .harness import BenchError, Report, Say, carry_out, columns, model_parser, spread
from .latency import OUTPUT, ask, built, deviation, exact
from .spu_plain import PARTIES
from .workloads import Workload, build

PLAIN = "crypten, plain"
SPU_SKIPPED = (
    "spu was left out: `python3.11 -m venv FOLDER`, `FOLDER/bin/pip install spu==0.9.5 'jax[cpu]'`, then "
    "--spu-python FOLDER/bin/python"
)
NOTES = (
    "INSECURE peer: plain CrypTen is protocol `crypten-insecure`. Its default provider lets party 0, the model's "
    "owner, make every triple, so party 0 can read all that party 1 sends. Its triples cost no traffic, and making "
    "them is part of its online time. SPU's SEMI2K is set up alike.",
    "The peers have no TLS; Blindformer's processes talk over mutual TLS 1.3. SPU's parties are threads of a process.",
    "Blindformer's correlations come from a dealer of its own, offline; the ratios `*_with_offline` count that too.",
    "Plain CrypTen runs CrypTen's own functions and defaults on the encoder, from embedded activations. On the real "
    "MiniLM weights its output diverges (GELU's tanh leaves the range of CrypTen's sigmoid); its time and bytes are "
    "the same for any values.",
    "Bytes of all parties, each message once: at plain CrypTen, TCP payload as the kernel counts it; at SPU, what its "
    "links count; here, the protocol's payload, without framing and TLS. Rounds: exchanges that wait for one another; "
    "at plain CrypTen, calls to its communicator, a batch counting once.",
)
_SENT = re.compile(r"total send bytes (\d+)")


def row_of(
    name: str, parties: int, dealer: str, tls: bool, online_s: list[float], online_bytes: int,
    errors: list[tuple[float, float]], *, offline_s: float | None = None, offline_bytes: int | None = None,
    rounds: int | None = None,
) -> Report:  # fmt: skip
    """Bytes are of all parties, each message once. None: correlations are made on the way, by a party of the
    computation; rounds are not counted there. errors: (largest error, least cosine) of each query."""
    return {
        "name": name,
        "parties": parties,
        "dealer": dealer,
        "tls": tls,
        "online_s": statistics.median(online_s),
        "online_s_all": online_s,
        "offline_s": offline_s,
        "online_bytes": online_bytes,
        "offline_bytes": offline_bytes,
        "rounds": rounds,
        "max_abs_error": max(error for error, _ in errors),
        "cosine_min": min(cosine for _, cosine in errors),
    }


def of_latency(latency: Report) -> Report:
    """The row of protocol `beaver`."""
    spent, moved, errors = latency["online_s_all"], latency["online_bytes"], latency["max_abs_error"]
    costs = {name: latency[name] for name in ("offline_s", "offline_bytes", "rounds")}
    return row_of(
        "blindformer, beaver", 2, "of its own", True, spent, moved, [(errors, latency["cosine_min"])], **costs
    )


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
        "blindformer, crypten", parties, "of its own", True, online, last.online.sent, errors,
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
    row = row_of(PLAIN, 2, "party 0", False, spent, moved, errors, rounds=runs[-1].rounds)
    same = {name: row[name] for name in ("online_bytes", "rounds", "max_abs_error", "cosine_min", "tls")}
    return row, {
        "protocol": "crypten",
        "runs": len(runs),
        **spread("online_s", spent),
        **same,
        "peak_rss_mb": max(run.peak_rss_mb for run in runs),
        "cpu_s": statistics.median(run.cpu_seconds for run in runs),
        "threads": 1,
        "versions": versions("crypten"),
    }


def measure_spu(work: Workload, python: str, protocol: str, *, timeout: float = 600) -> Report:
    """SPU on the encoder, from embedded activations, in one process of `python`. Errors: BenchError."""
    model: Any = work.model
    query, spent, errors, sent = work.queries[-1], [], [], 0
    with tempfile.TemporaryDirectory(prefix="blindformer-spu-") as name:
        folder = Path(name)
        _write(folder, model, query)
        for _ in work.queries[1:]:
            command = [python, str(Path(__file__).with_name("spu_plain.py")), str(folder), protocol]
            printed = _output(command, "spu", timeout)
            output = torch.from_numpy(np.load(folder / "output.npz")["output"])
            spent.append(json.loads((folder / "spu.json").read_text())["seconds"])
            errors.append(deviation(output, exact(model, query), query))
            sent = sum(int(count) for count in _SENT.findall(printed))
        version = json.loads((folder / "spu.json").read_text())["version"]
    maker = {"SEMI2K": "party 0", "ABY3": "none needed"}[protocol]
    return row_of(f"spu {version}, {protocol}", PARTIES[protocol], maker, False, spent, sent, errors)


def _write(folder: Path, model: Any, query: dict[str, Tensor]) -> None:
    weights = {
        name: (tensor.t() if tensor.dim() == 2 else tensor).contiguous().float().numpy()
        for name, tensor in model.state_dict().items()
        if name.startswith("encoder.")
    }
    config = {key: getattr(model.config, key) for key in ("num_hidden_layers", "num_attention_heads", "layer_norm_eps")}
    np.savez(folder / "weights.npz", **weights)  # type: ignore[arg-type] - names are keywords
    np.savez(folder / "inputs.npz", embedded=embedded_of(model, query).numpy(), mask=query["attention_mask"].numpy())
    (folder / "config.json").write_text(json.dumps(config))


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
    work = build(chosen.model, chosen.length, queries=chosen.repeat)
    with built(work, chosen.plan, say) as compiled:
        ours = ask(work, chosen.plan, compiled, chosen.timeout, say)
        rows = [of_latency(ours)]
        for count in chosen.parties:
            say(f"crypten, {count} parties")
            rows.append(measure_many(work, compiled[0], count, timeout=chosen.timeout))
    say(PLAIN)
    peer, plain = measure_crypten(work, timeout=chosen.timeout)
    rows.append(peer)
    for protocol in PARTIES if chosen.spu_python else ():
        say(f"spu, {protocol}")
        rows.append(measure_spu(work, chosen.spu_python, protocol, timeout=chosen.timeout))
    own = [row for row in rows if row["offline_s"] is not None]
    report = {key: ours[key] for key in ("model", "weights", "length", "batch", "plan")}
    report |= {
        "rows": rows,
        "ratios": [{"name": row["name"], "parties": row["parties"], **ratios(row, peer)} for row in own],
        "blindformer": ours,
        "crypten": plain,
        "notes": list(NOTES),
        "skipped": None if chosen.spu_python else SPU_SKIPPED,
    }
    return report


def _title(report: Report) -> str:
    return f"{report['model']}, length {report['length']}, {report['weights']} weights, plan {report['plan']}"


def show(report: Report) -> list[Table | str]:
    """Ratios: plain CrypTen's figure over the row's."""
    names = ("parties", "dealer", "TLS", "online", "offline", "MB online", "MB offline", "rounds", "error", "cosine")
    table = columns(_title(report), "", *names, "time", "traffic")
    peer = next(row for row in report["rows"] if row["name"] == PLAIN)
    for row in report["rows"]:
        ratio = ratios(row, peer)
        cells = [row["name"], str(row["parties"]), row["dealer"], "yes" if row["tls"] else "no"]
        cells += [f"{row['online_s']:.2f} s", "" if row["offline_s"] is None else f"{row['offline_s']:.2f} s"]
        cells += ["" if size is None else f"{size / 1e6:.1f}" for size in (row["online_bytes"], row["offline_bytes"])]
        cells += [str(row["rounds"] or ""), f"{row['max_abs_error']:.1e}", f"{row['cosine_min']:.5f}"]
        table.add_row(*cells, f"{ratio['time']:.1f}", f"{ratio['bytes']:.1f}")
    notes = [*report["notes"], *([report["skipped"]] if report["skipped"] else [])]
    return [table, *(f"- {note}" for note in notes)]


def main(arguments: list[str] | None = None) -> int:
    options = model_parser("peers", "Measure Blindformer, plain CrypTen and SPU side by side.")
    options.add_argument("--repeat", type=int, default=1, help="queries of ours and runs of the peers' (default 1)")
    options.add_argument("--parties", type=int, nargs="*", default=[2, 3], help="of protocol crypten (default 2 3)")
    options.add_argument("--spu-python", metavar="PATH", help="a Python with spu 0.9.5 and jax (default: without SPU)")
    return carry_out(options, arguments, measure, show, packages=["crypten"])


if __name__ == "__main__":
    raise SystemExit(main())
