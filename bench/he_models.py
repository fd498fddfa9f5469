"""A compact model on ciphertexts: accuracy, answers beside `clear`, time by layer, levels, precision, bytes.

    python -m bench.he_models runs/uci-0-he-1 --data uci --rows 4 --count 50 --format json

Test texts (or images) that training never saw. `rows` of them share a request. Accuracy in torch and in fixed point is
judged on all of them, CKKS on the first `--count`. Client and server are one process and one thread: `cpu_s` is what a
request takes on a quiet core, `wall_s` what it took here.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from blindformer.approximations import approximate, restore
from blindformer.models.compile import Compiled, compile, decode_outputs
from blindformer.models.data import Dataset, Examples, load_data
from blindformer.models.distillation.batches import pixels
from blindformer.models.encrypted import Encrypted, real_values
from blindformer.models.judging.evaluation import OUTPUT, encode, wilson
from blindformer.models.loading.calibration_texts import calibration_texts
from blindformer.models.loading.load import Loaded, load
from blindformer.models.program.interpreter import interpret
from blindformer.protocols.ckks.sealed import to_bytes
from blindformer.protocols.clear import ClearEngine
from rich.table import Table
from torch import Tensor

from .harness import Report, Say, carry_out, columns, parser

CALIBRATION = 64  # examples beside the built-in texts
Batch = dict[str, Tensor]


def batches(loaded: Loaded, examples: Examples, rows: int, length: int) -> Iterator[tuple[Batch, int]]:
    """(inputs of `rows` examples, how many of them are not repetitions), in order."""
    images = None if loaded.kind != "image" else pixels(examples)
    for at in range(0, len(examples), rows):
        places = list(range(at, min(at + rows, len(examples))))
        filled = (places * rows)[:rows]
        if images is not None:
            yield images.batch(filled), len(places)
        else:
            yield encode(loaded, [examples.texts[i] for i in filled], length), len(places)


def compiled_for(loaded: Loaded, data: Dataset, rows: int, length: int) -> Compiled:
    plan, few = loaded.plan(), data.train.subset(CALIBRATION)
    if loaded.kind != "image":
        few = Examples([*few.texts, *calibration_texts()], [0] * (len(few) + len(calibration_texts())))
    examples = [batch for batch, _ in batches(loaded, few, rows, length)]
    return compile(loaded.model, examples, plan or "he", outputs=[OUTPUT], name=loaded.name)


def clear(compiled: Compiled, batch: Batch) -> Tensor:
    sources = {**compiled.encode_inputs(batch), **compiled.weights, **compiled.constants}
    return decode_outputs(compiled.program, interpret(compiled.program, ClearEngine(sources)).outputs)[OUTPUT]


def accuracies(loaded: Loaded, compiled: Compiled, data: Dataset, rows: int, length: int, say: Say) -> dict[str, Any]:
    """Of the student with its plan, in torch and on `clear`, on all test examples."""
    plan, labels = loaded.plan(), torch.tensor(data.test.labels)
    predictions: dict[str, list[Tensor]] = {"torch": [], "clear": []}
    for batch, count in batches(loaded, data.test, rows, length):
        if plan is not None:
            approximate(loaded.model, plan)
        with torch.no_grad():
            predictions["torch"].append(loaded.model(**batch).logits[:count].argmax(-1))
        restore(loaded.model)
        predictions["clear"].append(clear(compiled, batch)[:count].argmax(-1))
        say(f"accuracy {sum(len(p) for p in predictions['clear'])}/{len(labels)}")
    hits = {name: int((torch.cat(parts) == labels).sum()) for name, parts in predictions.items()}
    scores = {name: wilson(n, len(labels)) for name, n in hits.items()}
    return {name: {"value": round(s.value, 4), "low": s.low, "high": s.high} for name, s in scores.items()}


def exactly(folder: Path, data: Dataset, rows: int) -> float | None:
    """The test accuracy of the teacher beside the student: float32, with torch's own functions."""
    if not (folder / "teacher").is_dir():
        return None
    teacher, labels = load(folder / "teacher"), torch.tensor(data.test.labels)
    with torch.no_grad():
        predictions = [teacher.model(**b).logits[:n].argmax(-1) for b, n in batches(teacher, data.test, rows, 64)]
    return float((torch.cat(predictions) == labels).float().mean())


def ask(encrypted: Encrypted, loaded: Loaded, data: Dataset, rows: int, length: int, count: int, say: Say
        ) -> dict[str, Any]:  # fmt: skip
    """`count` test examples by way of ciphertexts, beside `clear`."""
    steps = encrypted.circuit.steps
    same, done, largest, walls, cpus = 0, 0, 0.0, [], []
    layers: dict[str, float] = {}
    for batch, here in batches(loaded, data.test.take(range(count)), rows, length):
        values = real_values(encrypted.compiled.program, encrypted.compiled.encode_inputs(batch))
        request = encrypted.keys.encrypt(values)
        sent = sum(map(len, encrypted.keys.sealed_request(values)))
        layers, began = {}, [time.process_time()]

        def mark(number: int, total: int, layers: dict[str, float] = layers, began: list[float] = began) -> None:
            now, path = time.process_time(), steps[number - 1].path
            layers[path] = round(layers.get(path, 0.0) + now - began[0], 3)
            began[0] = now

        wall, cpu = time.perf_counter(), time.process_time()
        reply = encrypted.reply(request, mark)
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
        got, expected = encrypted.decode(reply)[OUTPUT][:here], clear(encrypted.compiled, batch)[:here]
        same += int((got.argmax(-1) == expected.argmax(-1)).sum())
        largest, done = max(largest, float((got - expected).abs().max())), done + here
        say(f"ckks {done}/{count}")
    sizes = {"request": sent, "reply": sum(len(to_bytes(item)) for item in reply.values())}
    return {
        "asked": done,
        "same_as_clear": same,
        "largest_error": largest,
        "first_cpu_s": round(cpus[0], 2),  # encodes the weights
        "cpu_s": round(median(cpus[1:] or cpus), 2),
        "wall_s": round(median(walls[1:] or walls), 2),
        "cpu_s_by_layer": layers,
        "bytes": {**sizes, "keys": sum(map(len, encrypted.keys.sealed_evaluation()))},
        "mb_a_text": round(sum(sizes.values()) / rows / 1e6, 2),
    }


def measure(chosen: argparse.Namespace, say: Say) -> Report:
    torch.set_num_threads(1)
    folder = Path(chosen.folder)
    loaded, data = load(folder), load_data(chosen.data, seed=chosen.seed)
    data = data.matched(loaded.labels)
    compiled = compiled_for(loaded, data, chosen.rows, chosen.length)
    encrypted = Encrypted(compiled)
    first, _ = next(batches(loaded, data.test, chosen.rows, chosen.length))
    asked = ask(encrypted, loaded, data, chosen.rows, chosen.length, chosen.count, say)
    precision = encrypted.precision_by_layer(first) if chosen.precision else []
    return {
        "model": folder.name,
        "data": data.name,
        "seed": chosen.seed,
        "test": len(data.test),
        "rows": chosen.rows,
        "degree": encrypted.parameters.degree,
        "scale_bits": encrypted.parameters.scale_bits,
        "levels": encrypted.circuit.levels,
        "levels_by_layer": {path: used for path, used, _ in encrypted.circuit.by_path()},
        "rotation_keys": len(encrypted.circuit.rotations()),
        "accuracy": accuracies(loaded, compiled, data, chosen.rows, chosen.length, say),
        "teacher_accuracy": exactly(folder, data, chosen.rows),
        "ckks": asked,
        "precision_bits_by_layer": {row.path: round(row.bits, 1) for row in precision},
    }


def show(report: Report) -> list[Table | str]:
    title = f"{report['model']}: N = {report['degree']}, {report['levels']} levels, {report['rows']} a request"
    table = columns(title, "module", "levels", "CPU seconds", "bits right")
    spent, bits = report["ckks"]["cpu_s_by_layer"], report["precision_bits_by_layer"]
    for path, levels in report["levels_by_layer"].items():
        table.add_row(path, *(str(cell) for cell in (levels, spent.get(path, ""), bits.get(path, ""))))
    return [table, *(f"{name}  {report[name]}" for name in ("accuracy", "teacher_accuracy", "ckks"))]


def main(arguments: list[str] | None = None) -> int:
    options = parser("he_models", (__doc__ or "").splitlines()[0])
    options.add_argument("folder", help="a student distilled with plan he")
    options.add_argument("--data", default="uci")
    options.add_argument("--seed", type=int, default=0, help="of the data's split")
    options.add_argument("--rows", type=int, default=4, help="texts or images in a request (default 4)")
    options.add_argument("--length", type=int, default=32, help="tokens of a text (default 32)")
    options.add_argument("--count", type=int, default=50, help="asked on ciphertexts (default 50)")
    options.add_argument("--precision", action="store_true", help="one more request: what CKKS loses, by layer")
    return carry_out(options, arguments, measure, show, packages=["tenseal"])


if __name__ == "__main__":
    raise SystemExit(main())
