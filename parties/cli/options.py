"""The options that several commands have, each said once. A parameter's name is its option's, unless one is given."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from typer import Argument, BadParameter, Option

from ..registry import in_words, priced, runs_here, served
from .output import note

# Here by name, so that help does not wait for torch; tests hold them to the registries.
PRIVATE_PLANS = ("faithful", "fast", "he")
PLANS = (*PRIVATE_PLANS, "exact")
_PRESET = f"A preset ({', '.join(PRIVATE_PLANS)}) or a plan's JSON file"


def one_of(*known: str) -> dict[str, Any]:
    """Of an option or an argument that takes these values: what checks, shows and completes them."""

    def parse(value: str) -> str:
        if value not in known:
            raise BadParameter(f"{value!r} is not one of {', '.join(map(repr, known))}.")
        return value

    return {"parser": parse, "metavar": f"[{'|'.join(known)}]", "autocompletion": lambda: list(known)}


# Output.
Form = Annotated[str, Option("--format", **one_of("text", "json"), help="text, or one JSON object on stdout.")]

# Replicas of a server.
Database = Annotated[
    str | None, Option(help="Of replicas: postgresql://USER@HOST/NAME, with the one ledger and count of all.")
]

# Models and plans.
Model = Annotated[str, Argument(help="A model's folder, a Hugging Face id, minilm, minilm-fast or smollm2.")]
Plan = Annotated[str, Option(help=f"{_PRESET}; see `blindformer list plans`.")]
OwnPlan = Annotated[str | None, Option(help=f"{_PRESET} (default: the model's own plan.json, else faithful).")]
Embedding = Annotated[str, Option(help="client: the embedding block is released to it; private: it stays.")]
TOKENS = "Tokens of a conversation, answers included (default: 256; with --window, as many as the model takes)."
By = Annotated[
    str | None,
    Option(**one_of("layer", "operation"), help="A row for each layer (default) or operation."),
]
Reveal = Annotated[
    str | None,
    Option(
        **one_of("scores", "token"),
        help="Of a conversation: scores of all words, the client draws (default); or the next token alone.",
    ),
]
Window = Annotated[
    int | None,
    Option(
        min=32,
        help="Tokens of a conversation that each token reads: itself, those just before it, and the public prefix. "
        "A longer conversation costs no more; what was said before them is lost to the model (default: all are read).",
    ),
]
Calibrate = Annotated[
    Path | None,
    Option(help="Texts to calibrate on, one a line (default: built-in ones); images, sounds: a folder of them."),
]
Outputs = Annotated[str | None, Option(help="Names of outputs to reveal, with commas (default: all).")]

# Protocols and parties.
Runs = Annotated[str, Option("--protocol", **one_of(*runs_here()), help=f"{in_words(runs_here())}.")]
Priced = Annotated[str, Option("--protocol", **one_of(*priced()), help=f"{in_words(priced())}.")]
Served = Annotated[
    str | None,
    Option(
        "--protocol",
        **one_of(*served()),
        help=f"{in_words(served(), lambda entry: entry.served.words if entry.served else '')}.",
    ),
]
Parties = Annotated[int, Option(help="Parties of protocol crypten, besides the dealer.")]
Threads = Annotated[int, Option(min=1, help="Threads of each party.")]
OwnThreads = Annotated[int, Option("--threads", min=1, help="Threads of this side.")]
RepeatableThreads = Annotated[int, Option("--threads", min=1, help="Threads; a run repeats exactly on one.")]
Timeout = Annotated[float, Option(min=1, help="Seconds that a party may be silent.")]

# What is asked (items.py).
Files = Annotated[
    list[Path] | None,
    Option(
        "--file", help="Texts, one a line, or JSON lines; for images and sounds a file or a folder. May be repeated."
    ),
]
Field = Annotated[
    str | None, Option(help="Files hold JSON lines, whose field of this name is the text (of .jsonl: text).")
]
Pairs = Annotated[
    list[str] | None,
    Option("--pair", help="The text that a question is about, or the second of two texts; once for each text."),
]

# A deployment.
Config = Annotated[Path | None, Option(help="The deployment's blindformer.toml.")]
Certs = Annotated[Path | None, Option(help="The folder of ca.pem and this party's certificate and key.")]
Listen = Annotated[str | None, Option(help="HOST:PORT to listen at; port 0 takes a free one.")]
Silence = Annotated[float | None, Option("--timeout", help="Seconds of silence after which a peer counts as dead.")]
Local = Annotated[
    str | None, Option("--local", hidden=True, help="Of a launcher on this machine: LocalOptions, as JSON.")
]
DealtFrom = Annotated[str | None, Option("--dealer", help="HOST:PORT of the dealer.")]

# A client of a deployment.
ClientDealer = Annotated[str | None, Option("--dealer", help="host:port.")]
Helper = Annotated[str | None, Option(help="host:port, with --topology helper.")]
Topology = Annotated[
    str | None,
    Option(
        **one_of("dealer", "helper"),
        help="dealer; or helper: a second server computes, this side splits its data.",
    ),
]
ClientCerts = Annotated[Path | None, Option("--certs", help="The folder with ca.pem, client.pem and client.key.")]
ClientTimeout = Annotated[float | None, Option("--timeout", min=1, help="Seconds that a party may be silent.")]
Cache = Annotated[Path | None, Option(help="Where masked weights are kept.")]
Wait = Annotated[float | None, Option(min=0, help="Seconds to go on asking a server that is busy.")]
AnyRing = Annotated[bool, Option("--any-ring", hidden=True, help="FOR TESTS: below 128 bits.")]

# Labelled examples.
Data = Annotated[
    str, Option(help="A data set's name, a CSV, TSV or JSON-lines file, or a folder that `datasets` wrote.")
]
Seed = Annotated[int, Option(min=0, help="Of the split, and of all else that is drawn.")]
TrainedSeed = Annotated[
    int | None,
    Option("--seed", min=0, help="Of the split, and of all else that is drawn (default: as in training, else 0)."),
]


@dataclass(frozen=True)
class Columns:
    """Where the examples of a data set are found."""

    text_column: Annotated[str | None, Option(help="The column of the texts (default: by its usual names).")] = None
    label_column: Annotated[str | None, Option(help="The column of the labels (default: by its usual names).")] = None
    encoding: Annotated[str, Option(help="Of a file of texts.")] = "utf-8"
    data_folder: Annotated[
        Path | None, Option(help="Where a named data set's files lie, if not in the usual place.")
    ] = None

    def read(self, data: str, seed: int | None, trained: Path | None = None) -> Any:
        """The data set that the options speak of. What they leave open is as the model in `trained` was trained with.

        Errors: DataError.
        """
        from ...models.data import check_unseen, load_as_trained, load_data

        names = {"text_column": "text", "label_column": "label", "encoding": "encoding", "data_folder": "folder"}
        given = {names[item.name]: getattr(self, item.name) for item in fields(self)
                 if getattr(self, item.name) != item.default}  # fmt: skip
        given |= {} if seed is None else {"seed": seed}
        if trained is None:
            dataset = load_data(data, **given)
        else:
            dataset = load_as_trained(data, trained, **given)
            check_unseen(trained, dataset, quiet=True)  # who judges by it says what cannot be known
        if left := ", ".join(f"{count:,} {reason}" for reason, count in dataset.dropped.items() if count):
            note(f"{dataset.name}: rows left out: {left}")
        return dataset

    def again(self, data: str, reading: Any = None) -> list[str]:
        """Options that name the same data: what a command needs that gets the trained model's folder, which holds the
        rest; or all of its `reading`."""
        given: dict[str, Any] = {"--data-folder": self.data_folder}
        if reading is not None:
            encoding = None if reading.encoding == Columns.encoding else reading.encoding
            given |= {"--text-column": reading.text, "--label-column": reading.label, "--encoding": encoding}
            given |= {"--seed": reading.seed or None}
        return ["--data", data, *(word for name, value in given.items() if value for word in (name, str(value)))]


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command with a parameter that is a dataclass: its fields are options in its place."""
    groups: dict[str, Any] = {}
    parameters = []
    for name, parameter in inspect.signature(command, eval_str=True).parameters.items():
        if is_dataclass(kind := parameter.annotation):
            groups[name], hints = kind, get_type_hints(kind, include_extras=True)
            inner = {field.name: field.default for field in fields(kind)}
        else:
            hints, inner = {name: kind}, {name: parameter.default}
        parameters += [
            inspect.Parameter(field, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[field])
            for field, default in inner.items()
        ]

    def run(**values: Any) -> None:
        made = {
            name: kind(**{field.name: values.pop(field.name) for field in fields(kind)})
            for name, kind in groups.items()
        }
        command(**values, **made)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    return run
