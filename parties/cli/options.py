"""Command-line options. A shared option is declared once: an Annotated type; a parameter of that type is the option.

A Rule (commands.py) beside an option says which other options it needs or excludes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import BaseModel
from typer import Argument, BadParameter, Exit, Option

from ...errors import BlindformerError
from ...models.loading.packaged import check_name
from ...models.loading.truncation import Truncation
from ..config import ClientSection, GatewaySection, SessionSection
from ..launch import NO_DEALER, check_no_dealer_extra
from ..registry import DEFAULT, find, in_words, priced, runs_here, served
from .commands import Checked, Needs, Without
from .output import note, print_result, table

# Here by name, so that help does not wait for torch; tests hold them to the registries.
PRIVATE_PLANS = ("faithful", "fast", "he")
PLANS = (*PRIVATE_PLANS, "exact")
_PRESET = f"{', '.join(PRIVATE_PLANS)}, or a JSON file"


def one_of(*known: str) -> dict[str, Any]:
    """Settings of an option or argument that takes one of these values: a check, a metavar and completion."""

    def parse(value: str) -> str:
        if value not in known:
            raise BadParameter(f"{value!r} is not one of {', '.join(map(repr, known))}.")
        return value

    return {"parser": parse, "metavar": f"[{'|'.join(known)}]", "autocompletion": lambda: list(known)}


def setting_help(section: type[BaseModel], name: str) -> str:
    """The text of a setting, such as those in the configuration (parties/config.py), with its default. Empty: it has
    none."""
    inherited = [base.model_fields for base in section.__mro__ if issubclass(base, BaseModel)]
    texts = (settings[name].description for settings in inherited if name in settings)
    text, default = " ".join(next(filter(None, texts), "").split()), section.model_fields[name].default
    stated = f"{default:g}" if isinstance(default, float) else str(default)
    return text if not text or "(default: " in text else f"{text[:-1]} (default: {stated})."


# Output.
Form = Annotated[Literal["text", "json"], Option("--format", help="Text, or one JSON object on stdout.")]

# Models and plans.
NAMES_MODEL = Checked(check_name)
Model = Annotated[
    str,
    Argument(
        help="A model's folder, a Hugging Face id, or a packaged model, such as minilm.",
    ),
    NAMES_MODEL,
]
Plan = Annotated[str, Option(help=f"{_PRESET}; `blindformer list plans` shows them.")]
OwnPlan = Annotated[str | None, Option(help=f"{_PRESET} (default: the model's own or faithful).")]
EmbeddingAt = Literal["client", "private"]
Embedding = Annotated[
    EmbeddingAt,
    Option(help="Who holds the embedding block: client: every client; private: the server."),
]
TOKENS = "Tokens of a conversation with answers (default: 256; with --window, the model's maximum)."
By = Annotated[Literal["layer", "operation"] | None, Option(help="One row for each layer (default) or operation.")]
Reveal = Annotated[
    Literal["scores", "token"] | None,
    Option(help="What the client learns per token: all scores (default), or the chosen token."),
]
Window = Annotated[
    int | None,
    Option(
        min=32,
        help="Earlier tokens that a token attends to, besides the prefix (default: all).",
    ),
]
System = Annotated[
    Path | None,
    Option(help="File with the system prompt, which is public and compiled (default: none)."),
]
Seconds = Annotated[
    int | None,
    Option(
        min=1,
        help="Seconds of audio per window of a speech model (default: 5, or its maximum if less).",
    ),
]
Calibrate = Annotated[
    Path | None,
    Option(help="Typical texts, or a folder of images or audio (default: built-in texts)."),
]
Lengths = Annotated[
    str | None,
    Option(help="Padded lengths of texts, with commas (default: 32,64,128)."),
]

# Protocols and parties.
Runs = Annotated[str, Option("--protocol", **one_of(*runs_here()), help=f"{in_words(runs_here())}.")]
Priced = Annotated[str, Option("--protocol", **one_of(*priced()), help=f"{in_words(priced())}.")]
Served = Annotated[
    str | None,
    Option(
        "--protocol",
        **one_of(*served()),
        help=f"{in_words(served(), lambda entry: entry.served.words if entry.served else '')} (default: {DEFAULT}).",
    ),
]
Parties = Annotated[int, Option(help="Number of parties, besides the dealer.")]
Threads = Annotated[int, Option(min=1, help="Threads that compute; training is repeatable only with 1.")]
OwnThreads = Annotated[
    int, Option("--threads", min=1, help="Threads that compute; training is repeatable only with 1.")
]


def among(names: tuple[str, ...]) -> Needs:
    """A rule: the option needs one of these protocols with a free number of parties."""
    return Needs(*(f"--protocol {name}" for name in names if find(name).parties is None))


AMONG = among(runs_here())


# What is asked (InputOptions, in items.py).
Files = Annotated[
    list[Path] | None,
    Option(
        "--file",
        help="Table, texts, images, audio or a folder. May be repeated.",
    ),
]
Field = Annotated[
    str | None,
    Option(help="Column of the texts, or two with a comma (default: as in training, else a usual name)."),
]
RowId = Annotated[
    str | None,
    Option("--id", help="Column that names a row in the answers (default: a usual name: id, key)."),
]
Encoding = Annotated[
    str | None,
    Option(help="Encoding of text files, such as cp1252 (default: UTF-8)."),
]
Truncate = Annotated[
    Truncation, Option(help="Long texts: refuse (off), cut (end, start), or query overlapping windows.")
]
Listen = Annotated[str | None, Option(help=setting_help(GatewaySection, "listen"))]
Pairs = Annotated[
    list[str] | None,
    Option(
        "--pair",
        help="Passage of a question, or second text of a pair, for each text (default: none).",
    ),
]

# A deployment.
Config = Annotated[Path | None, Option(help="The deployment's blindformer.toml (default: none).")]
OwnConfig = Annotated[
    Path | None,
    Option(
        "--config",
        help="A blindformer.toml; read are [prices], [client] pad, memory, [session] timeout (default: none).",
    ),
]
Certs = Annotated[
    Path | None,
    Option(help="Folder with ca.pem and this party's certificate and key (default: certs)."),
]
Local = Annotated[
    str | None, Option("--local", hidden=True, help="Of a launcher on this machine: LocalOptions, as JSON.")
]
_SERVER = "HOST:PORT of the server (default: localhost:7443)"
Server = Annotated[str | None, Option("--server", help=f"{_SERVER}.")]
ServerOrLocal = Annotated[
    str | None,
    Option("--server", help=f"{_SERVER}; or local: on this machine."),
]
Dealer = Annotated[
    str | None,
    Option(
        "--dealer",
        help="HOST:PORT of a dealer; local; none (default: localhost:7444).",
    ),
]
NoDealer = Annotated[str | None, Option("--dealer", metavar="none", help="The two parties do without a dealer.")]
Audits = Annotated[float | None, Option(metavar="RATE", min=0, max=0.75, help=setting_help(SessionSection, "audits"))]

# A client of a deployment.
REMOTE = Without("--server local")
ClientCerts = Annotated[
    Path | None,
    Option("--certs", help="Folder with ca.pem and this party's certificate and key (default: certs)."),
]
Adapter = Annotated[str | None, Option(metavar="NAME", help=setting_help(ClientSection, "adapter"))]
ClientMemory = Annotated[
    str | None, Option("--client-memory", metavar="SIZE", help=setting_help(ClientSection, "memory"))
]
Store = Annotated[Path | None, Option(help=setting_help(ClientSection, "store"))]
Device = Annotated[str | None, Option(metavar="NAME", help=setting_help(ClientSection, "device"))]


@dataclass(frozen=True)
class DeploymentOptions:
    """The options of a client that say where its deployment is. With --server local there is none."""

    dealer: Dealer = None
    certs: Annotated[ClientCerts, REMOTE] = None
    config: Config = None
    device: Device = None

    @property
    def session(self) -> dict[str, Any]:
        """Those that are given, as options of a client."""
        session = {field.name: getattr(self, field.name) for field in fields(DeploymentOptions)}
        session["certificates"] = session.pop("certs")
        return {name: value for name, value in session.items() if value is not None}


def check_no_dealer(dealer: str | None, protocol: str) -> None:
    """`NoDealer`'s value. Errors: BlindformerError."""
    if dealer not in (None, NO_DEALER):
        raise BlindformerError(f"--dealer {dealer}: here it is none, or left out; `query` asks with one elsewhere")
    if dealer and protocol != DEFAULT:
        raise BlindformerError(f"--dealer none: is of protocol {DEFAULT}, and this is {protocol}; leave it out")
    if dealer:
        check_no_dealer_extra()


AnyRing = Annotated[bool, Option("--any-ring", hidden=True, help="For tests: take parameters below 128 bits.")]


class SettingsOption:
    """`--set NAME=VALUE`: the settings of a model that have no option of their own. `options`: those that have one.
    `--set help` lists them with their texts and defaults."""

    def __init__(self, settings: type[BaseModel], *options: str) -> None:
        self.settings = settings
        self.names = [name for name in settings.model_fields if name not in options]

    def option(self, example: str) -> Any:
        text = f"A setting of training, such as {example}; --set help lists all (default: none). May be repeated."
        return Option("--set", metavar="NAME=VALUE", callback=self._list, is_eager=True, help=text)

    def read(self, given: list[str] | None) -> dict[str, str]:
        """Errors: BlindformerError for what is no setting, or has an option of its own."""
        values = {}
        for item in given or []:
            name, equals, value = item.partition("=")
            if name not in self.names or not equals:
                raise BlindformerError(f"--set {item}: give NAME=VALUE; --set help lists the settings")
            values[name] = value
        return values

    def _list(self, given: list[str] | None) -> list[str] | None:
        if given and "help" in given:
            rows = []
            for name in self.names:
                field = self.settings.model_fields[name]
                default = "" if field.default is None else field.default
                rows.append((name, default, " ".join((field.description or "").split())))
            print_result("text", {}, table("setting", "default", "what", rows=rows))
            raise Exit
        return given


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command with options in groups: in place of a parameter that is a dataclass, its fields."""
    groups: dict[str, tuple[Any, list[str]]] = {}
    parameters = []
    for name, parameter in inspect.signature(command, eval_str=True).parameters.items():
        kind = parameter.annotation
        if is_dataclass(kind):
            hints, inner = get_type_hints(kind, include_extras=True), {item.name: item.default for item in fields(kind)}
            groups[name] = kind, [*inner]
        else:
            hints, inner = {name: kind}, {name: parameter.default}
        parameters += [
            inspect.Parameter(field, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[field])
            for field, default in inner.items()
        ]

    def run(**values: Any) -> None:
        grouped_values = {
            name: kind(**{field: values.pop(field) for field in inner}) for name, (kind, inner) in groups.items()
        }
        command(**values, **grouped_values)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    return run


Data = Annotated[
    str,
    Option(help="Labelled examples: a data set (or NAME=FOLDER), or a table."),
]
Seed = Annotated[int, Option(min=0, help="Seed of the split and of all randomness.")]
TrainedSeed = Annotated[
    int | None,
    Option(
        "--seed",
        min=0,
        help="Seed of the split and of all randomness (default: as in training, else 0).",
    ),
]


@dataclass(frozen=True)
class Columns:
    """Where the examples of a data set are found."""

    text_column: Annotated[
        str | None,
        Option(help="Column of the texts, or several with commas, joined (default: a usual name)."),
    ] = None
    label_column: Annotated[str | None, Option(help="The column of the labels (default: by its usual names).")] = None
    encoding: Encoding = None
    skip_bad: Annotated[
        bool, Option("--skip-bad", help="Leave out rows that cannot be read, such as those without a label.")
    ] = False

    @property
    def of_table(self) -> dict[str, Any]:
        """Those that say how a table is read, as arguments of `load_data`."""
        columns = {"text": self.text_column, "label": self.label_column, "encoding": self.encoding}
        return {**columns, "skip_bad": self.skip_bad}

    def read(self, data: str, seed: int | None, trained: Path | None = None) -> Any:
        """The data set that the options speak of. What they leave open is as the model in `trained` was trained with.

        Errors: DataError.
        """
        from ...models.data import check_unseen, load_as_trained, load_data

        given = {name: value for name, value in self.of_table.items() if value}
        given |= {} if seed is None else {"seed": seed}
        if trained is None:
            dataset = load_data(data, **given)
        else:
            dataset = load_as_trained(data, trained, **given)
            check_unseen(trained, dataset, quiet=True)  # who judges by it says what cannot be known
        return self.noted(dataset)

    def noted(self, dataset: Any) -> Any:
        """The data set, after a line each on columns that were not named and on rows that were left out."""
        reading = dataset.reading
        if reading is not None and reading.text and not (self.text_column and self.label_column):
            note(f"{dataset.name}: texts from {reading.text}, labels from {reading.label}")
        if left := ", ".join(f"{count:,} {reason}" for reason, count in dataset.dropped.items() if count):
            note(f"{dataset.name}: rows left out: {left}")
        return dataset

    def again(self, data: str, reading: Any = None) -> list[str]:
        """Options that name the same data: what a command needs that gets the trained model's folder, which holds the
        rest; or all of its `reading`."""
        options: dict[str, Any] = {}
        if reading is not None:
            encoding = None if reading.encoding == Columns.encoding else reading.encoding
            options |= {"--text-column": reading.text, "--label-column": reading.label, "--encoding": encoding}
            options |= {"--seed": reading.seed or None}
        words = [word for name, value in options.items() if value for word in (name, str(value))]
        return ["--data", data, *words, *["--skip-bad"] * (reading is not None and reading.skip_bad)]
