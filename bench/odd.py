"""Whether a model is right for every text: odd ones through `clear`, some of them in private.

    python -m bench.odd --model minilm --plan faithful --count 1000 --format json

Each text is padded as `blindformer run` pads it, and meets the program that `run` compiles for that length from the
built-in calibration. Longer texts than the longest program takes are cut. An answer is wrong below a cosine of 0.9995
with the float32 model (with the plan's functions, where the model was trained with them); a private one disagrees below
that with `clear`, or where only one of the two is refused.
"""

# pyright: reportMissingImports=false
# (the editable install maps `blindformer` to this folder by an import hook, which pyright does not follow)

import argparse
import random
from dataclasses import dataclass, field
from typing import Any

import torch
from blindformer.approximations import Plan, approximate, restore
from blindformer.models.building import own_plan
from blindformer.models.compile import AnswerOutOfRange, Compiled
from blindformer.models.loading.load import Loaded, load
from blindformer.models.program.interpreter import interpret
from blindformer.parties.client.compare import compile_text
from blindformer.parties.client.protocols import find_local
from blindformer.protocols.clear import ClearEngine
from blindformer.tests.shared.odd_texts import odd_texts
from rich.table import Table
from torch import Tensor

from .commands import Say, publish, run_command
from .provenance import provenance

RIGHT = 0.9995
LONGEST = 128
Outputs = dict[str, Tensor] | None  # None: refused


@dataclass
class Odd:
    """`wrong`, `refused`: of `count` texts through `clear`; `worst`: the text of the least cosine, by kind and number.

    `private`: texts through beaver, of which `private_refused` were refused, and `private_disagree` are not as `clear`
    has them.
    """

    model: str
    plan: str
    count: int
    refused: int
    wrong: int
    cosine_min: float
    worst: str
    private: int
    private_refused: int
    private_disagree: int
    private_cosine_min: float
    failed: list[str] = field(default_factory=list)  # kind, number and what is wrong, of up to twenty
    by_length: dict[int, int] = field(default_factory=dict)
    seed: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    commit: str | None = None
    machine: dict[str, Any] = field(default_factory=dict)


@dataclass
class Asked:
    """One text: its inputs, and what it got. `name`: its kind and number."""

    name: str
    inputs: dict[str, Tensor]
    expected: dict[str, Tensor]
    clear: Outputs = None
    private: Outputs = None


def measure(name: str, plan: str | None, *, count: int, private: int, seed: int, say: Say) -> Odd:
    """Errors: BlindformerError, one line."""
    torch.set_num_threads(1)
    about = provenance()
    say("load")
    loaded = load(name)
    chosen: Plan | str = own_plan(loaded.folder) if plan is None else plan
    trained = chosen if isinstance(chosen, Plan) else None
    by_length: dict[int, list[Asked]] = {}
    most = min(LONGEST, loaded.positions or LONGEST)
    for number, (kind, text) in enumerate(odd_texts(count, seed)):
        length = min(loaded.length_for([text], "auto") if loaded.tokens(text) <= most else most, most)
        inputs = loaded.encode(text, length, truncate=True)
        by_length.setdefault(length, []).append(Asked(f"{kind} {number}", inputs, {}))
    asked = [item for length in by_length for item in by_length[length]]
    chance = random.Random(seed)
    sampled = {id(item) for item in chance.sample(asked, min(private, len(asked)))}
    done = 0
    for length in sorted(by_length):
        say(f"compile for {length} tokens")
        compiled = compile_text(loaded, length, chosen)
        _expect(loaded, compiled, by_length[length], trained)
        for item in by_length[length]:
            item.clear = _clear(compiled, item.inputs)
            done += 1
            say(f"clear: {done}/{count}, {100 * done // count} %")
        _privately(compiled, [item for item in by_length[length] if id(item) in sampled], say)
    return judged(
        Odd(
            model=loaded.name,
            plan=chosen if isinstance(chosen, str) else chosen.name,
            count=len(asked),
            refused=0,
            wrong=0,
            cosine_min=1.0,
            worst="",
            private=len(sampled),
            private_refused=0,
            private_disagree=0,
            private_cosine_min=1.0,
            by_length={length: len(items) for length, items in sorted(by_length.items())},
            seed=seed,
            **about,
        ),
        asked,
        [item for item in asked if id(item) in sampled],
    )


def _expect(loaded: Loaded, compiled: Compiled, items: list[Asked], trained: Plan | None) -> None:
    """What the float32 model answers, with the plan's functions if it was trained with them."""
    if trained is not None:
        approximate(loaded.model, trained)
    try:
        with torch.no_grad():
            for item in items:
                outputs = loaded.model(**item.inputs)
                item.expected = {name: outputs[name] for name in compiled.program.outputs}
    finally:
        if trained is not None:
            restore(loaded.model)


def _clear(compiled: Compiled, inputs: dict[str, Tensor]) -> Outputs:
    values = {**compiled.encode_inputs(inputs), **compiled.weights, **compiled.constants}
    try:
        return compiled.decode(interpret(compiled.program, ClearEngine(values)).outputs)
    except AnswerOutOfRange:
        return None


def _privately(compiled: Compiled, items: list[Asked], say: Say) -> None:
    """Server, client and dealer as processes of this machine, over TLS."""
    if not items:
        return
    with find_local("beaver").open(compiled) as session:
        for number, item in enumerate(items, start=1):
            say(f"private: {number}/{len(items)} of this length")
            try:
                item.private = session.query(item.inputs).outputs
            except AnswerOutOfRange:
                item.private = None


def judged(report: Odd, asked: list[Asked], private: list[Asked]) -> Odd:
    for item in asked:
        close = _cosine(item.clear, item.expected)
        if close is None:
            report.refused += 1
        elif not close >= RIGHT:
            report.wrong += 1
        if close is not None and not close >= report.cosine_min:
            report.cosine_min, report.worst = close, item.name
        if close is None or not close >= RIGHT:
            report.failed.append(f"{item.name}: {'refused' if close is None else f'cosine {close:.5f}'}")
    for item in private:
        report.private_refused += item.private is None
        close = _cosine(item.private, item.clear)
        alike = close >= RIGHT if close is not None else item.private is item.clear
        report.private_disagree += not alike
        if close is not None:
            report.private_cosine_min = min(report.private_cosine_min, close)
        if not alike:
            report.failed.append(f"{item.name}: private and clear disagree")
    report.failed = report.failed[:20]
    return report


def _cosine(outputs: Outputs, expected: Outputs) -> float | None:
    """The least over the outputs; None where one of both was refused."""
    if outputs is None or expected is None:
        return None
    pairs = [(outputs[name].double().flatten(), expected[name].double().flatten()) for name in expected]
    return min(float(torch.cosine_similarity(a, b, 0)) for a, b in pairs)


def table(report: Odd) -> Table:
    grid = Table(title=f"{report.model}, plan {report.plan}: {report.count} odd texts", show_header=False)
    rows = {
        "refused": str(report.refused),
        "wrong": str(report.wrong),
        "least cosine": f"{report.cosine_min:.6f} ({report.worst})",
        "in private": str(report.private),
        "refused in private": str(report.private_refused),
        "not as clear": str(report.private_disagree),
        "least cosine with clear": f"{report.private_cosine_min:.6f}",
    }
    for name, value in rows.items():
        grid.add_row(name, value)
    return grid


def main(arguments: list[str] | None = None) -> int:
    options = argparse.ArgumentParser(prog="python -m bench.odd", description="Ask odd texts.")
    options.add_argument("--model", default="minilm", help="a folder, or minilm (default %(default)s)")
    options.add_argument("--plan", help="a preset (default: the model's own plan, else faithful)")
    options.add_argument("--count", type=int, default=1000, help="texts (default %(default)s)")
    options.add_argument("--private", type=int, default=100, help="of them in private, too (default %(default)s)")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--format", choices=["table", "json"], default="table")
    chosen = options.parse_args(arguments)

    def work(say: Say) -> None:
        report = measure(
            chosen.model, chosen.plan, count=chosen.count, private=chosen.private, seed=chosen.seed, say=say
        )
        publish(report, chosen.format, table, *report.failed)

    return run_command("bench.odd", work)


if __name__ == "__main__":
    raise SystemExit(main())
