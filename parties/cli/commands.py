"""Commands: what the help of one shows, and how its options are checked.

A Rule beside an option says which other options it needs or excludes. CheckedCommand adds the rule to the help, and
rejects a command before it begins, since an option that changes nothing would be believed to.
"""

from __future__ import annotations

import inspect
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import typer
from typer.core import TyperCommand, TyperGroup
from typer.models import ParameterInfo

from ...errors import BlindformerError
from .. import retired
from ..config import key_of

# Of commands whose other settings are keys of a file: the sections where an option that they had is a key.
IN_FILE = {
    "serve": ("server", "session", "crypten"),
    "dealer": ("dealer", "session"),
    "helper": ("helper", "session"),
    "gateway": ("gateway", "session"),
    "up": ("gateway",),
    **dict.fromkeys(("query", "chat", "precompute"), ("client", "session")),
}


def named(others: Iterable[str]) -> str:
    """ "--protocol crypten or ckks": of several values of an option its name once."""
    first, *more = others
    *names, last = first, *(other.removeprefix(f"{first.partition(' ')[0]} ") for other in more)
    return f"{', '.join(names)} or {last}" if names else last


class Rule(ABC):
    """In an option's Annotated. `others`: options, "--store", or values of one, "--protocol crypten"."""

    def __init__(self, *others: str) -> None:
        self.others = others

    def within(self, known: Container[str]) -> Rule | None:
        """The rule in a command that has the options `known`."""
        others = [other for other in self.others if other.partition(" ")[0] in known]
        return type(self)(*others) if others else None

    @abstractmethod
    def __str__(self) -> str:
        """The end of the option's help."""

    @abstractmethod
    def fault(self, option: str, given: Callable[[str], bool]) -> str:
        """Why an option is refused; empty: it is not."""


class Needs(Rule):
    """It changes nothing unless one of the others is given. Where "--config" is one, the file may say it."""

    def __str__(self) -> str:
        return f" Needs {named(other for other in self.others if other != '--config')}."

    def fault(self, option: str, given: Callable[[str], bool]) -> str:
        missing = f"{option}:{str(self).lower().rstrip('.')}; add it, or leave {option} out"
        return "" if any(map(given, self.others)) else missing


class Without(Rule):
    """It changes nothing with any of the others."""

    def __str__(self) -> str:
        return f" Not with {named(self.others)}."

    def fault(self, option: str, given: Callable[[str], bool]) -> str:
        against = next(filter(given, self.others), "")
        other, _, value = against.partition(" ")
        remedy = f"leave {option} out, or give another {other}" if value else "leave one of them out"
        return against and f"{option}: does not go with {against}; {remedy}"


@dataclass(frozen=True)
class Checked:
    """In an option's Annotated: what its text must pass before the command runs. Merely parsed words need not."""

    check: Callable[[str], object]


@dataclass(frozen=True)
class CommandEntry:
    """A command of the command line. `example`: its words, in the help; `first`: the options that --help shows, where
    it has more than ten; --help-all shows all."""

    run: Callable[..., None]
    panel: Literal["Try", "Build", "Serve", "Manage"]
    example: str
    first: str = ""

    def settings(self, name: str) -> dict[str, Any]:
        """For typer."""
        command = partial(CheckedCommand, first=self.first.split())
        return {"cls": command, "rich_help_panel": self.panel, "epilog": example(f"{name} {self.example}".rstrip())}


def example(words: str) -> str:
    return f"Example: blindformer {words}"


_ALL = "blindformer.help-all"  # in a context's `meta`


def _show_all(ctx: Any, parameter: Any, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        ctx.meta[_ALL] = True
        print(ctx.get_help())
        ctx.exit()


class CheckedCommand(TyperCommand):
    """A command whose options are checked, together, before it runs."""

    def get_params(self, ctx: typer.Context) -> list[Any]:
        more: Any = copy(self.get_help_option(ctx))  # whose class differs between versions of typer
        more.name, more.opts, more.secondary_opts = "help_all", ["--help-all"], []
        more.help, more.hidden, more.callback = "Show all options and exit.", not self.first, _show_all
        return [*super().get_params(ctx), more]

    def format_help(self, ctx: typer.Context, formatter: Any) -> None:
        shown = copy(self)
        if self.first and not ctx.meta.get(_ALL):
            shown.params = [one for one in self.params if one.opts[0] in self.first or one.opts[0][0] != "-"]
        super(CheckedCommand, shown).format_help(ctx, formatter)

    def __init__(self, *given: Any, first: Sequence[str] = (), **named: Any) -> None:
        super().__init__(*given, **named)
        self.first = first
        self.help = re.sub(r"(?<!\n)\n(?!\n)", " ", self.help or "")  # lines of our code are none of a terminal
        self.rules: dict[str, list[Rule]] = {}
        self.checks: dict[str, list[Callable[[str], object]]] = {}
        known = {option for parameter in self.params for option in parameter.opts}
        declared = inspect.signature(self.callback or (lambda: None), eval_str=True).parameters
        for parameter in self.params:
            metadata = get_args(declared[str(parameter.name)].annotation)
            rules = [rule.within(known) for rule in metadata if isinstance(rule, Rule)]
            rules = [rule for rule in rules if rule is not None]
            self.rules[str(parameter.name)] = rules
            self.checks[str(parameter.name)] = [one.check for one in metadata if isinstance(one, Checked)]
            # Of an argument, too: click 8.5 forgets what typer 0.20 says of one.
            text = next((one.help for one in metadata if isinstance(one, ParameterInfo)), None)
            parameter.help = (text or "") + "".join(map(str, rules))  # type: ignore[attr-defined]

        self._run, self.callback = self.callback or (lambda **_: None), self._run_checked

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        words = args[: args.index("--")] if "--" in args else args
        retired.refuse_retired(self.name, words)
        known = {option for parameter in self.params for option in parameter.opts}
        for option in (word.partition("=")[0] for word in words):
            if (
                option[:2] == "--"
                and option not in known
                and (key := key_of(option, *IN_FILE.get(self.name or "", ())))
            ):
                raise BlindformerError(f"{option}: {retired.key(key)}")
        return super().parse_args(ctx, args)

    def invoke(self, ctx: typer.Context) -> Any:
        check(ctx)
        return super().invoke(ctx)

    def _run_checked(self, **given: Any) -> Any:
        for name, checks in self.checks.items():
            for text in _texts(given.get(name)):
                for passes in checks:
                    passes(text)
        return self._run(**given)


class CommandLine(TyperGroup):
    """All commands. One of an earlier version is answered with the command that is there now."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        retired.refuse_retired_command(args[0])
        return super().resolve_command(ctx, args)


def check(ctx: typer.Context, **settled: Any) -> None:
    """`settled`: values of options, by parameter, that other sources than the command line have settled meanwhile.

    Errors: BlindformerError, a line that names the option.
    """
    command: Any = ctx.command
    by_option = {option: parameter for parameter in command.params for option in parameter.opts}
    values = {**ctx.params, **settled}

    def given(wanted: str) -> bool:
        option, _, value = wanted.partition(" ")
        parameter = by_option[option]
        now = values[parameter.name]
        return value in str(now).split(",") if value else bool(now) and now != parameter.default

    for parameter in command.params:
        if (source := ctx.get_parameter_source(parameter.name)) is None or source.name != "COMMANDLINE":
            continue
        name = parameter.opts[0] if parameter.param_type_name == "option" else _shown(parameter)
        for text in _texts(ctx.params[parameter.name]):
            if (place := _not_utf8(text)) is not None and not os.path.lexists(text):
                raise BlindformerError(
                    f"{name}: is not UTF-8 text (byte {place}), and no file's name; write it in UTF-8, or give a file"
                )
        for rule in command.rules[str(parameter.name)]:
            if fault := rule.fault(name, given):
                raise BlindformerError(fault)


def _shown(argument: Any) -> str:
    """An argument's name in help. Newer versions of typer have no `human_readable_name`."""
    return argument.metavar or str(argument.name).upper()


def _texts(value: Any) -> Iterator[str]:
    """Those that are no paths yet: a path may have any name."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _not_utf8(text: str) -> int | None:
    """The first byte of an argument that is none; None: all of it is."""
    try:
        os.fsencode(text).decode()
    except UnicodeDecodeError as error:
        return error.start
    return None
