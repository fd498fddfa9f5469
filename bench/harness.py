"""Public harnesses through the gateway, as their users run them, beside the same harness on the float32 model.

    python -m venv evaluating && evaluating/bin/pip install 'lm-eval[api,hf]' mteb openai
    python -m bench.harness lm-eval --python evaluating/bin/python --count 40
    python -m bench.harness mteb --python evaluating/bin/python --count 60

lm-eval: sentences of film reviews, and which of two words is the likelier after each (`local-completions`, prompts as
tokens). mteb: headings of this project's pages, each of which is to find its section; and the sentences, classified by
their embeddings. Neither asks the Hub for anything.
"""

# pyright: reportMissingImports=false
# (the editable install maps `blindformer` to this folder by an import hook, which pyright does not follow)

import argparse
import copy
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from blindformer.errors import BlindformerError
from blindformer.models.data import Dataset, Examples, load_data
from blindformer.models.generation.chat import prefix_ids
from blindformer.models.generation.decoder import causal_model
from blindformer.models.loading.huggingface import huggingface
from blindformer.models.loading.load import Loaded, load
from rich.table import Table

from .commands import Say, publish, repeated, run_command
from .gateway import NAME, gateway_of
from .provenance import ROOT, Measured, provenance

TASK, LENGTH = "blindformer_reviews", 256
ASKER = Path(__file__).with_name("mteb_asker.py")
YAML = """task: {task}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: multiple_choice
test_split: test
description: {description}
doc_to_text: "Review: {{{{text}}}}\\nThe review is"
doc_to_choice: [" negative", " positive"]
target_delimiter: ""
doc_to_target: label
metric_list: [{{metric: acc}}]
"""


@dataclass(frozen=True, slots=True)
class Harness(Measured):
    """`private`, `clear`: the harness' scores through the gateway and of the float32 model; `requests`: texts that were
    asked. Of lm-eval: `same`, the share of texts with the same answer; `apart`: by how much log-likelihoods of answers
    differ, in nats, on average and at most."""

    harness: str
    version: str
    model: str
    data: str
    requests: int
    private: dict[str, float]
    clear: dict[str, float]
    private_s: float
    clear_s: float
    same: float | None
    apart: tuple[float, float] | None
    command: str


def outside(words: list[str], given: str | None = None, **more: str) -> tuple[str, float]:
    """What a command of the other Python prints, and the seconds it took. Errors: BlindformerError."""
    started = time.perf_counter()
    here = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **more}
    done = subprocess.run(words, input=given, env=here, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        raise BlindformerError(f"{Path(words[0]).name}: {last[:300]}; --python names the one with lm-eval and mteb")
    return done.stdout, time.perf_counter() - started


# --- lm-eval ----------------------------------------------------------------------------------------------------------
def lm_eval(chosen: argparse.Namespace, data: Dataset, say: Say) -> dict[str, Any]:
    loaded = load(chosen.model)
    with tempfile.TemporaryDirectory() as work:
        folder, clear = Path(work), Path(work) / "clear"
        _write(loaded, clear)
        rows = [{"text": t, "label": n} for t, n in _short(loaded, data, chosen.count)]
        (folder / "rows.json").write_text("\n".join(map(json.dumps, rows)))
        prefix = loaded.processor.decode(prefix_ids(loaded.processor, None))
        say("in the clear")
        hf = {"pretrained": clear, "dtype": "float32"}
        there = _run(chosen.python, folder / "a", "hf", hf, folder / "rows.json", prefix)
        say("start the gateway")
        with gateway_of(chosen.compiled or chosen.model) as (listening, key, _):
            say("through the gateway")
            api = {"model": NAME, "base_url": f"{listening.url}/v1/completions", "tokenizer": clear}
            api |= {"max_length": LENGTH, "tokenizer_backend": "huggingface"}
            private = _run(chosen.python, folder / "b", "local-completions", api, folder / "rows.json", "", key)
    pairs = [(private[2][at], there[2][at]) for at in sorted(there[2])]
    apart = torch.tensor([[x - y for x, y in zip(*pair, strict=True)] for pair in pairs]).abs()
    same = sum((one[0] < one[1]) == (other[0] < other[1]) for one, other in pairs) / len(pairs)
    return {
        "version": _version(chosen.python, "lm_eval"),
        "requests": 2 * len(pairs),
        "private": private[0],
        "clear": there[0],
        "private_s": private[1],
        "clear_s": there[1],
        "same": same,
        "apart": (float(apart.mean()), float(apart.max())),
    }


def _write(loaded: Loaded, folder: Path) -> None:
    """The model as the harness loads it: in float32, whatever file its weights came from."""
    model = causal_model(loaded)
    config = copy.deepcopy(model.config)
    vars(config).pop("quantization_config", None)
    plain = type(model)(config)
    plain.load_state_dict(model.state_dict())
    with huggingface():
        plain.save_pretrained(folder)
        loaded.processor.save_pretrained(folder)


def _run(
    python: str, folder: Path, kind: str, options: Mapping[str, Any], rows: Path, description: str, key: str = ""
) -> tuple[dict[str, float], float, dict[int, list[float]]]:
    """Scores, seconds, and log-likelihoods of both answers by text. `description`: what stands before each text: the
    model's prefix, which the gateway's model has in any case."""
    (folder / "tasks").mkdir(parents=True)
    text = YAML.format(task=TASK, file=json.dumps(str(rows)), description=json.dumps(description))
    (folder / "tasks" / "reviews.yaml").write_text(text)
    words = [python, "-m", "lm_eval", "--model", kind, "--model_args", ",".join(f"{k}={v}" for k, v in options.items())]
    words += ["--tasks", TASK, "--include_path", str(folder / "tasks"), "--output_path", str(folder / "out")]
    _, seconds = outside([*words, "--log_samples", "--batch_size", "1", "--device", "cpu"], OPENAI_API_KEY=key)
    (results,) = (folder / "out").rglob("results_*.json")
    (samples,) = (folder / "out").rglob("samples_*.jsonl")
    scores = json.loads(results.read_text())["results"][TASK]
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    likely = {row["doc_id"]: [float(answer[0][0]) for answer in row["resps"]] for row in lines}
    return {"acc": scores["acc,none"], "acc_stderr": scores["acc_stderr,none"]}, seconds, likely


def _short(loaded: Loaded, data: Dataset, count: int) -> Iterator[tuple[str, int]]:
    """Held-out texts that a pass of 64 tokens holds, prompt included."""
    fitting = (row for row in _rows(data.test) if len(loaded.processor(row[0])["input_ids"]) <= 50)
    yield from islice(fitting, count)


def _rows(part: Examples) -> Iterator[tuple[str, int]]:
    """Texts and labels, one of each label after the other."""
    by_label = [[(t, n) for t, n in zip(part.texts, part.labels, strict=True) if n == label] for label in (0, 1)]
    return chain.from_iterable(zip(*by_label, strict=False))


def _version(python: str, package: str) -> str:
    script = f"from importlib.metadata import version; print(version({package!r}))"
    return outside([python, "-c", script])[0].strip()


# --- mteb -------------------------------------------------------------------------------------------------------------
def mteb(chosen: argparse.Namespace, data: Dataset, say: Say) -> dict[str, Any]:
    loaded = load(chosen.model)
    sections = dict(list(_sections(loaded))[: chosen.count])
    ids = {heading: f"d{number}" for number, heading in enumerate(sections)}
    parts = {"train": data.train, "test": data.test}
    half = {name: list(islice(_rows(part), chosen.count)) for name, part in parts.items()}
    request = {
        "model": NAME,
        "retrieval": {
            "corpus": {ids[heading]: {"text": text} for heading, text in sections.items()},
            "queries": {f"q{name}": heading for heading, name in ids.items()},
            "relevant": {f"q{name}": name for name in ids.values()},
        },
        "classification": {
            name: {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
            for name, rows in half.items()
        },
    }
    asked = json.dumps(request)
    say("in the clear")
    there, clear_s = outside([chosen.python, str(ASKER), str(loaded.folder)], asked)
    say("start the gateway")
    with gateway_of(chosen.compiled or chosen.model) as (listening, key, _):
        say("through the gateway")
        private, private_s = outside([chosen.python, str(ASKER), listening.url], asked, OPENAI_API_KEY=key)
    one, other = (json.loads(reply.splitlines()[-1]) for reply in (private, there))
    return {
        "version": one["version"],
        "requests": 2 * len(sections) + sum(map(len, half.values())),
        "private": one["scores"],
        "clear": other["scores"],
        "private_s": private_s,
        "clear_s": clear_s,
        "same": None,
        "apart": None,
    }


def _sections(loaded: Loaded) -> Iterator[tuple[str, str]]:
    """Headings of our pages, each once, and the first words of what stands below them, as many as 128 tokens hold."""
    seen = set[str]()
    for page in sorted((ROOT / "docs").glob("*.md")):
        plain = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for heading, text in re.findall(r"^##+ (.+)\n+((?:(?!#).+\n+)+)", plain, re.MULTILINE):
            words = text.split()[:100]
            while words and loaded.task.tokens(" ".join(words)) > 128:
                words.pop()
            if len(words) > 15 and heading not in seen:
                seen.add(heading)
                yield heading, " ".join(words)


HARNESSES = {"lm-eval": (lm_eval, "smollm2"), "mteb": (mteb, "minilm")}


def main(arguments: list[str] | None = None) -> int:
    options = argparse.ArgumentParser("python -m bench.harness", description="Public harnesses through the gateway.")
    options.add_argument("harness", choices=list(HARNESSES))
    options.add_argument(
        "--python", required=True, help="a Python that has lm-eval (extras api, hf), or mteb and openai"
    )
    options.add_argument("--model", help="default: smollm2 for lm-eval, minilm for mteb")
    options.add_argument("--compiled", help="the model as compile wrote it (default: compiled into the cache)")
    options.add_argument("--data", default="rotten_tomatoes", help="labelled sentences (default rotten_tomatoes)")
    options.add_argument("--data-folder", default=None, help="where they lie, if not in the usual place")
    options.add_argument("--count", type=int, default=40, help="texts (mteb: of each kind; default 40)")
    options.add_argument("--format", choices=["table", "json"], default="table")
    chosen, command = options.parse_args(arguments), repeated("bench.harness", arguments)

    def work(say: Say) -> None:
        about, (measure, model) = provenance(), HARNESSES[chosen.harness]
        chosen.model = chosen.model or model
        data = load_data(chosen.data, folder=chosen.data_folder)
        figures = measure(chosen, data, say)
        report = Harness(
            harness=chosen.harness, model=chosen.model, data=data.name, command=command, **figures, **about
        )  # fmt: skip
        publish(report, chosen.format, table)

    return run_command("bench.harness", work)


def table(report: Harness) -> Table:
    grid = Table(box=None, title=f"{report.harness} {report.version}, {report.model}, {report.requests} texts asked")
    grid.add_column("score")
    for name in ("in the clear", "through the gateway"):
        grid.add_column(name, justify="right")
    for name, score in report.clear.items():
        grid.add_row(name, f"{score:.4f}", f"{report.private[name]:.4f}")
    grid.add_row("seconds", f"{report.clear_s:.1f}", f"{report.private_s:.1f}")
    if report.same is not None and report.apart is not None:
        grid.add_row("same answers", "", f"{report.same:.1%}")
        grid.add_row("log-likelihoods apart, mean and most", "", f"{report.apart[0]:.4f}, {report.apart[1]:.4f}")
    return grid


if __name__ == "__main__":
    sys.exit(main())
