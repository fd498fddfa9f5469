"""Others who run the same encoder: our Program among N parties on CrypTen, and SPU. One row each, like everybody's."""

# pyright: reportMissingImports=false
# (the editable install maps `blindformer` to this folder by an import hook, which pyright does not follow)

import json
import re
import statistics
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from blindformer.parties.client.local_n_party import LocalNParty
from blindformer.parties.session.parties import numbered
from torch import Tensor

from .latency import OUTPUT, Latency, deviation, exact
from .spu_plain import PARTIES
from .workloads import Workload, WorkloadError

_SENT = re.compile(r"total send bytes (\d+)")


@dataclass(frozen=True, slots=True)
class ContestantRow:
    """Medians over the queries. Bytes are of all parties, each message once; `rounds` None: not counted there.

    `offline_s` is None where correlations are made on the way, by a party of the computation.
    """

    name: str
    parties: int
    dealer: str
    tls: bool
    online_s: float
    online_s_all: list[float]
    offline_s: float | None
    online_bytes: int
    offline_bytes: int | None
    rounds: int | None
    max_abs_error: float
    cosine_min: float


def of_latency(latency: Latency) -> ContestantRow:
    """The row of protocol `beaver`."""
    return ContestantRow(
        "blindformer, beaver",
        2,
        "of its own",
        True,
        latency.online_s,
        latency.online_s_all,
        latency.offline_s,
        latency.online_bytes,
        latency.offline_bytes,
        latency.rounds,
        latency.max_abs_error,
        latency.cosine_min,
    )


def measure_many(work: Workload, folder: Path, parties: int, *, timeout: float = 600) -> ContestantRow:
    """Our Program on CrypTen's communicator, all queries in one session; the first is a warm-up."""
    with LocalNParty(folder, numbered(parties), timeout=timeout) as session:
        answers = [session.query(query) for query in work.queries]
    errors = [
        deviation(answer.outputs[OUTPUT], exact(work.model, query), query)
        for answer, query in zip(answers, work.queries, strict=True)
    ]
    counted = [answer.timings for answer in answers[1:]]
    online = [timings.online_s for timings in counted]
    return ContestantRow(
        "blindformer, crypten",
        parties,
        "of its own",
        True,
        statistics.median(online),
        online,
        statistics.median(timings.offline_s for timings in counted),
        counted[-1].online.sent,
        counted[-1].offline_bytes,
        counted[-1].rounds,
        max(error for error, _ in errors),
        min(cosine for _, cosine in errors),
    )


def measure_spu(work: Workload, python: str, protocol: str, *, timeout: float = 600) -> ContestantRow:
    """SPU on the encoder, from embedded activations, in one process of `python`. Errors: WorkloadError."""
    model: Any = work.model
    query, spent, errors = work.queries[-1], [], []
    with tempfile.TemporaryDirectory(prefix="blindformer-spu-") as name:
        folder = Path(name)
        _write(folder, model, query)
        for _ in work.queries[1:]:
            command = [python, str(Path(__file__).with_name("spu_plain.py")), str(folder), protocol]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
            except (OSError, subprocess.TimeoutExpired) as error:
                raise WorkloadError(f"spu: {error}") from None
            if done.returncode:
                raise WorkloadError(f"spu: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
            figures = json.loads((folder / "spu.json").read_text())
            output = torch.from_numpy(np.load(folder / "output.npz")["output"])
            spent.append(figures["seconds"])
            errors.append(deviation(output, exact(model, query), query))
            sent = sum(int(count) for count in _SENT.findall(done.stdout + done.stderr))
    maker = {"SEMI2K": "party 0", "ABY3": "none needed"}[protocol]
    return ContestantRow(
        f"spu {figures['version']}, {protocol}",
        PARTIES[protocol],
        maker,
        False,
        statistics.median(spent),
        spent,
        None,
        sent,
        None,
        None,
        max(error for error, _ in errors),
        min(cosine for _, cosine in errors),
    )


def _write(folder: Path, model: Any, query: dict[str, Tensor]) -> None:
    with torch.no_grad():
        embedded = model.embeddings(input_ids=query["input_ids"])
    weights = {
        name: (tensor.t() if tensor.dim() == 2 else tensor).contiguous().float().numpy()
        for name, tensor in model.state_dict().items()
        if name.startswith("encoder.")
    }
    config = {key: getattr(model.config, key) for key in ("num_hidden_layers", "num_attention_heads", "layer_norm_eps")}
    np.savez(folder / "weights.npz", **weights)  # type: ignore[arg-type] - names are keywords
    np.savez(folder / "inputs.npz", embedded=embedded.numpy(), mask=query["attention_mask"].numpy())
    (folder / "config.json").write_text(json.dumps(config))
