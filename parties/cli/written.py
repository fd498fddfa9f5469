"""What `run` does with a model that writes about what it reads: translations, summaries, transcripts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from typer import Exit, Option

from ...models.loading.truncation import IN_COMMANDS
from ...versions import versions
from ..launch import LOCAL
from ..registry import find_talking
from .items import InputItem, complain, raise_if_all
from .output import answer_table, asked, console, cuts, finish_of, note_unfinished, print_result, row_of
from .progress import Phases
from .steps import cache_folder, compiling, read_texts, warn_untrained

Seconds = Annotated[
    int | None,
    Option(
        min=1,
        help="Seconds of audio per window of a speech model (default: 5, or its maximum if less).",
    ),
]


@dataclass(frozen=True)
class Written:
    """`result`: for JSON. `costs`: of all answers, in a line. `receipt`: if `prices` asked for one, or its error."""

    result: dict[str, Any]
    answers: list[Any]
    costs: str
    receipt: Any = None


COSTS = ("offline_s", "online_s", "offline_bytes", "online_bytes", "rounds")


def written(
    phases: Phases,
    local: Any,
    model: str,
    loaded: Any,
    items: Sequence[InputItem],
    *,
    length: str,
    truncate: Any,
    timeout: float,
    threads: int,
    device: str,
    calibrate: Path | None,
    encoding: str | None,
    plan: Any,
    adapter: Path | None = None,
    pad: bool = False,
    client_memory: str | None = None,
    prices: Any = None,
    **options: Any,
) -> Written:
    """The answers of a model that is compiled into the cache, or anew where it is calibrated on somebody's own.
    `adapter`: that it is loaded with; `options`: of `compile_seq2seq_folder`. Errors: BlindformerError."""
    from ...approximations import Plan
    from ...models.cached import cached, marks_of
    from ...models.delegated.building import found_or_delegated
    from ...models.generation.folder import compile_seq2seq_folder
    from ..client.client import open_here
    from ..client.result import Result
    from ..receipts.receipt import asked_for

    find_talking(local.entry.name)
    sizes = _lengths(loaded, items, length, truncate)  # before anything is compiled
    with TemporaryDirectory(prefix="blindformer-") as kept:
        with compiling(phases) as progress:
            if local.entry.prepare:
                known = None if adapter else loaded  # an adapter is in no folder
                folder = found_or_delegated(
                    model, cache_folder(), plan=plan, progress=progress, loaded=known, seconds=options["seconds"]
                )
            elif calibrate is None:
                options |= {"lengths": sizes, "progress": progress}
                make = lambda folder, plan, kept: compile_seq2seq_folder(  # noqa: E731
                    loaded, folder, plan=plan, kept=kept, **options
                )
                named = {"writes": loaded.kind, **marks_of(adapter)}
                named |= {name: options[name] for name in ("lengths", "weights", "embedding", "seconds")}
                folder = cached(model, cache_folder(), make, plan, named, progress)
            else:
                options |= {"lengths": sizes, "progress": progress}
                own = [calibrate] if loaded.task.medium is not None else read_texts(calibrate, encoding)
                folder = compile_seq2seq_folder(loaded, Path(kept) / "model", plan=plan, calibration=own, **options)
        if not local.entry.prepare:
            warn_untrained(Plan.load(folder / "server"), loaded.plan())
        phases.begin("query", 1)
        chosen: dict[str, Any] = {"timeout": timeout, "threads": threads, "progress": phases.step}
        chosen |= {"device": device} if device != "cpu" else {}
        chosen |= {"truncate": truncate} if truncate != "off" else {}
        if local.entry.prepare:
            chosen |= {"adapter": adapter, "pad": pad, "client_memory": client_memory}
        with open_here(local, folder, LOCAL, **chosen) as client:
            client.ways = IN_COMMANDS
            asking = [index for index, item in enumerate(items) if item.error is None]
            answers = {
                n: Result(item.value, error=item.error) for n, item in enumerate(items) if item.error is not None
            }
            asked_of = client.stream([items[index].value for index in asking])
            answers |= {asking[place]: result for place, result in asked_of}
            in_order = [answers[index] for index in range(len(items))]
            reports = [answer.report for answer in in_order if answer.report is not None]
            costs = client.costs(reports) if reports else ""
            receipt = asked_for(client.receipt, prices)
    raise_if_all(list(items), {n: answer.error for n, answer in enumerate(in_order) if answer.error is not None})
    task, last = loaded.task.pipeline, reports[-1]
    result = {
        "model": model,
        "task": task,
        "plan": last.plan,
        "protocol": last.protocol,
        "results": [
            {
                **item.place,
                **asked(task, item.value),
                **({"length": answer.length} if answer.length else {}),
                **({"truncated": answer.truncated} if truncate != "off" else {}),
                **row_of(task, answer),
                **finish_of(answer),
                **({name: getattr(answer.report, name) for name in COSTS} if answer.report else {}),
            }
            for item, answer in zip(items, in_order, strict=True)
        ],
        "learned": last.learned,
        "versions": versions(),
    }
    return Written(result, in_order, costs, receipt)


def _lengths(loaded: Any, items: Sequence[InputItem], length: str, truncate: Any) -> list[int] | None:
    """What texts are padded to; None: each to the least of the usual lengths, or they are sounds. Errors:
    BlindformerError, also where no item can be asked."""
    from ...models.building import default_lengths
    from ...models.generation.seq2seq import prefixes
    from ..client.compare import encode_each

    before = prefixes(loaded.model.config).get(loaded.task.pipeline, "") if loaded.task.medium is None else ""
    given = {
        n: before + item.value if before and isinstance(item.value, str) else item.value
        for n, item in enumerate(items)
        if item.error is None
    }
    size, _, refused = encode_each(loaded, given, length, truncate)
    raise_if_all(list(items), {n: item.error for n, item in enumerate(items) if item.error is not None} | refused)
    usual = loaded.task.medium is not None or (length == "auto" and size <= max(default_lengths(loaded)))
    return None if usual else [size]


def show_written(form: Any, setting: str, items: Sequence[InputItem], shown: Written) -> None:
    """`setting`: who computed it, in a line. Errors: typer's Exit, where some have no answer."""
    result, answers = shown.result, shown.answers

    def show() -> None:
        out = console()
        out.print(f"{setting}\nmodel {result['model']}   {result['task']}\n")
        out.print(answer_table(result["task"], answers, [], cut=cuts(answers)))
        out.print(f"\n{shown.costs}")

    print_result(form, result, show)
    note_unfinished(answers)
    errors = {index: answer.error for index, answer in enumerate(answers) if answer.error is not None}
    for index, error in errors.items():
        complain(list(items), index, error)
    if errors:
        raise Exit(1)
