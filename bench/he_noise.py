"""How far a reply's own noise drowns what the computation leaves in it of the weights, and what more of it costs.

    python -m bench.he_noise [FOLDER --data digits --rows 8]

Without a folder: a text classifier of one layer, 64 wide, of seeded weights. A row for each choice of ring and scale:
that of `compile`, the scale of 40 bits, and the next ring. `computed`: root of the mean square of what the slots of
the computation miss the exact circuit by, the largest of `--requests`; `bits`: by how many the noise that is added
exceeds it; `nats`: a reply's divergence, at most (protocols/ckks/hiding.py); `advantage`: of whoever tells a reply, or
1000, from such as depend on the answers alone, at most; `answers`: their largest error. CPU seconds are one thread's.
"""

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from blindformer.models.compile import Compiled, compile
from blindformer.models.data import load_data
from blindformer.models.encrypted import Encrypted, circuit_for, real_values
from blindformer.models.loading.load import load
from blindformer.protocols.ckks.exact import Exact
from blindformer.protocols.ckks.hiding import divergence, hide
from blindformer.protocols.ckks.parameters import DEVIATION, MOST_BITS, CkksError, Parameters
from rich.table import Table

from .harness import Report, Say, carry_out, columns, parser
from .he_models import Batch, batches, compiled_for

TOKENS, WIDTH, TEXTS = 32, 64, 4


def seeded(requests: int) -> tuple[str, Compiled, list[Batch]]:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=1000, hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=4, intermediate_size=2 * WIDTH,
        max_position_embeddings=TOKENS, initializer_range=0.1,
    )  # fmt: skip
    model = BertForSequenceClassification._from_config(config, attn_implementation="sdpa").eval()
    shape = (TEXTS, TOKENS)
    inputs = [
        {"input_ids": torch.randint(3, 1000, shape), "attention_mask": torch.ones(shape, dtype=torch.int64)}
        for _ in range(requests + 8)
    ]
    return "one layer of 64, seeded", compile(model, inputs[requests:], "he"), inputs[:requests]


def trained(folder: Path, data_name: str, rows: int, requests: int) -> tuple[str, Compiled, list[Batch]]:
    loaded = load(folder)
    data = load_data(data_name, seed=0).matched(loaded.labels)
    test = data.test.take(range(rows * requests))
    return folder.name, compiled_for(loaded, data, rows, TOKENS), [b for b, _ in batches(loaded, test, rows, TOKENS)]


def choices(compiled: Compiled) -> Iterator[tuple[Any, Parameters]]:
    """(circuit, parameters): what compile takes, a scale of 40 bits, the next ring."""
    circuit, chosen = circuit_for(compiled)
    yield circuit, chosen
    if chosen.scale_bits > 40:
        yield circuit, Parameters(chosen.degree, 40, chosen.levels)
    if 2 * chosen.degree in MOST_BITS:
        yield circuit_for(compiled, 2 * chosen.degree)


def row_of(encrypted: Encrypted, requests: list[Batch]) -> Report:
    keys, parameters, ring = encrypted.keys, encrypted.parameters, encrypted.evaluator.ring
    squares, worst, largest, seconds = [], 0.0, 0.0, []
    for batch in requests:
        values = real_values(encrypted.compiled.program, encrypted.compiled.encode_inputs(batch))
        exact = Exact(encrypted.circuit, values)
        expected, began = exact.run(), time.process_time()
        answers = encrypted.evaluator.run(keys.encrypt(values), keys.evaluation)
        seconds.append(time.process_time() - began)
        for number, slots in keys.slots(answers).items():
            error = np.abs(slots - exact.held[number])
            squares.append(float((error**2).mean()))
            worst = max(worst, float(error.max()))
        for name, answer in keys.decrypt(hide(ring, answers, keys.evaluation)).items():
            largest = max(largest, float(np.abs(answer - expected[name]).max()))
    computed = math.sqrt(max(squares))
    nats = divergence(computed, parameters.slots)
    return {
        "degree": parameters.degree,
        "scale_bits": parameters.scale_bits,
        "levels": parameters.levels,
        "modulus_bits": sum(parameters.prime_bits),
        "last_prime_bits": parameters.prime_bits[0],
        "computed": computed,
        "computed_worst": worst,
        "bits": math.log2(DEVIATION / computed),
        "nats": nats,
        "advantage": math.sqrt(nats / 2),
        "answer_error": largest,
        "keys_mb": sum(map(len, keys.sealed_evaluation())) / 1e6,
        "cpu_s": min(seconds),
    }


def measure(chosen: argparse.Namespace, say: Say) -> Report:
    torch.set_num_threads(1)
    source = (Path(chosen.folder), chosen.data, chosen.rows, chosen.requests) if chosen.folder else None
    name, compiled, requests = trained(*source) if source else seeded(chosen.requests)
    rows: list[Report] = []
    try:
        for choice in choices(compiled):
            say(f"N = {choice[1].degree}, scale {choice[1].scale_bits}")
            rows.append(row_of(Encrypted(compiled, choice), requests))
    except CkksError as error:
        say(str(error))
    return {"model": name, "deviation": DEVIATION, "rows": rows}


def show(report: Report) -> list[Table]:
    names = ("N", "scale", "levels", "modulus", "last prime", "computed", "bits", "nats", "advantage", "of 1000")
    title = f"{report['model']}: noise of deviation 2^{math.log2(DEVIATION):.0f} in each slot of a reply"
    table = columns(title, *names, "answers", "keys MB", "CPU s")
    for row in report["rows"]:
        counts = (row[name] for name in ("degree", "scale_bits", "levels", "modulus_bits", "last_prime_bits"))
        table.add_row(
            *map(str, counts), f"2^{math.log2(row['computed']):.1f}", f"{row['bits']:.1f}",
            f"{row['nats']:.1g}", f"{min(1.0, row['advantage']):.1g}",
            f"{min(1.0, math.sqrt(1000) * row['advantage']):.1g}", f"{row['answer_error']:.1e}",
            f"{row['keys_mb']:.0f}", f"{row['cpu_s']:.1f}",
        )  # fmt: skip
    return [table]


def main(arguments: list[str] | None = None) -> int:
    options = parser("he_noise", (__doc__ or "").splitlines()[0])
    options.add_argument("folder", nargs="?", help="a student distilled with plan he (default: seeded weights)")
    options.add_argument("--data", default="uci")
    options.add_argument("--rows", type=int, default=4, help="texts or images in a request (default 4)")
    options.add_argument("--requests", type=int, default=3)
    return carry_out(options, arguments, measure, show, packages=["tenseal"])


if __name__ == "__main__":
    raise SystemExit(main())
