"""What is asked of a command's options before it begins. What an option needs is said where the option is, goes into
its help, and is refused here when it is missing: an option that changes nothing would be believed to."""

from __future__ import annotations

import inspect
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, get_args

import typer
from typer.core import TyperCommand
from typer.models import ParameterInfo

from ...errors import BlindformerError


class Rule(ABC):
    """In an option's Annotated. `others`: options, "--users", or values of one, "--protocol crypten"."""

    def __init__(self, *others: str) -> None:
        self.others = others

    @abstractmethod
    def __str__(self) -> str:
        """The end of the option's help."""

    @abstractmethod
    def fault(self, option: str, given: Callable[[str], bool]) -> str:
        """Why an option is refused; empty: it is not."""


class Needs(Rule):
    """It changes nothing unless one of the others is given. Where "--config" is one, the file may say it."""

    def __str__(self) -> str:
        return f" Needs {self._named}."

    def fault(self, option: str, given: Callable[[str], bool]) -> str:
        missing = f"{option}: needs {self._named}; add it, or leave {option} out"
        return "" if any(map(given, self.others)) else missing

    @property
    def _named(self) -> str:
        return " or ".join(other for other in self.others if other != "--config")


class Without(Rule):
    """It changes nothing with any of the others."""

    def __str__(self) -> str:
        return f" Not with {' or '.join(self.others)}."

    def fault(self, option: str, given: Callable[[str], bool]) -> str:
        against = next(filter(given, self.others), "")
        other, _, value = against.partition(" ")
        remedy = f"leave {option} out, or give another {other}" if value else "leave one of them out"
        return against and f"{option}: does not go with {against}; {remedy}"


class CheckedCommand(TyperCommand):
    """A command whose options are checked, together, before it runs."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.help = re.sub(r"(?<!\n)\n(?!\n)", " ", self.help or "")  # lines of our code are none of a terminal
        self.rules: dict[str, list[Rule]] = {}
        declared = inspect.signature(self.callback or (lambda: None), eval_str=True).parameters
        for parameter in self.params:
            said = get_args(declared[str(parameter.name)].annotation)
            rules = [one for one in said if isinstance(one, Rule)]
            self.rules[str(parameter.name)] = rules
            # Of an argument, too: click 8.5 forgets what typer 0.20 says of one.
            text = next((one.help for one in said if isinstance(one, ParameterInfo)), None)
            parameter.help = (text or "") + "".join(map(str, rules))  # type: ignore[attr-defined]

    def invoke(self, ctx: typer.Context) -> Any:
        check(ctx)
        return super().invoke(ctx)


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
        found = values[parameter.name]
        return value in str(found).split(",") if value else bool(found) and found != parameter.default

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
