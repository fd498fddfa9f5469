"""What `--help` says of every argument and option: a phrase of its own, with the default where there is one."""

from __future__ import annotations

import re

import pytest
from blindformer.federated.settings import BY_KIND, FederateSettings
from blindformer.models.distillation.teacher import IMAGES
from blindformer.models.distillation_settings import COMPACT, EMBEDDINGS, DistillSettings
from blindformer.models.generation import encoder_decoder
from blindformer.models.generation.chat import SLOTS
from blindformer.models.generation.drafts import DRAFTS
from blindformer.models.loading import answers
from blindformer.parties.cli import query
from blindformer.parties.cli.app import app
from blindformer.parties.config import load_settings
from blindformer.tests.pages import command_line, leaves
from typer.testing import CliRunner

COMMANDS = {" ".join(path): command for path, command in leaves().items()}


@pytest.mark.parametrize("name", COMMANDS)
def test_each_help_is_a_sentence_that_states_the_default(name):
    for parameter in COMMANDS[name].params:
        text = getattr(parameter, "help", None) or ""
        line = f"{name} {parameter.opts[0]}: {text}"
        assert len(text.split()) >= 3, line
        assert text[0].isupper(), line
        assert text.endswith("."), line
        open_ended = parameter.required or parameter.default is not None or parameter.opts[0] in ("--file", "--field")
        stated = "default" in text or "nothing is given" in text
        assert open_ended or getattr(parameter, "hidden", False) or stated, line


@pytest.mark.parametrize("name", COMMANDS)
def test_a_terminal_of_80_columns_shows_all_of_it(name):
    asked = "--help-all" if COMMANDS[name].first else "--help"
    shown = CliRunner().invoke(app, [*name.split(), asked], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"}).output
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    unwrapped = re.sub(r"[\s│]+", "", shown)
    for parameter in COMMANDS[name].params:
        if not getattr(parameter, "hidden", False):
            assert "".join(parameter.help.split()[-2:]) in unwrapped, parameter.opts


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_ten_options_at_most_and_an_example_that_is_accepted(name, parse):
    command = COMMANDS[name]
    options = [one for one in command.params if one.param_type_name == "option" and not getattr(one, "hidden", False)]
    names = {one.opts[0] for one in options}
    assert len(command.first or names) <= 10
    assert set(command.first) <= names
    shown = CliRunner().invoke(app, [*name.split(), "--help"], env={"COLUMNS": "400", "TERMINAL_WIDTH": "400"}).output
    listed = set(re.findall(r"(?<=[│*] )\s*(--[\w-]+)", shown)) - {"--help", "--help-all"}
    assert {one.strip() for one in listed} == (set(command.first) or names)
    words = command.epilog.removeprefix("Example: ")
    assert words.startswith(f"blindformer {name.removesuffix(' list')}")
    parse(words)


def test_there_are_few_commands_and_options():
    """Of the panels, with groups as one; options by command. `pytest -s` prints them."""
    slots = {name: sum(one.param_type_name == "option" for one in command.params) for name, command in COMMANDS.items()}
    panels = command_line().commands
    print(f"{len(panels)} commands, {sum(slots.values())} options: {slots}")
    assert len(panels) <= 24
    assert sum(slots.values()) <= 366


def stated(name: str, option: str) -> list[float]:
    """The numbers of what an option's help says of its default."""
    (parameter_of_option,) = [parameter for parameter in COMMANDS[name].params if option in parameter.opts]
    (default,) = re.findall(r"\(default: ([^)]*)\)", parameter_of_option.help)
    default = default.replace("127.0.0.1", "").replace("a day", "86400")
    return [float(number) for number in re.findall(r"(?<![\w-])\d[\d.]*(?:e-\d+)?(?!\w)", default)]


def test_the_default_of_the_gateway_is_that_of_the_configuration():
    settings = load_settings()
    assert f"{settings.gateway.listen}" in next(p.help for p in COMMANDS["gateway"].params if p.name == "listen")


def test_defaults_of_other_options_are_what_they_do():
    assert stated("distill", "--heads") == [COMPACT["heads"]] == [IMAGES["heads"]]
    for option in ("length", "teacher_epochs", "hidden_epochs", "logit_epochs", "augment"):
        own = [DistillSettings.model_fields[option].default]
        others = {kind[option] for kind in (COMPACT, EMBEDDINGS, IMAGES) if option in kind} - {*own}
        wanted = {*own, *(others if option != "augment" else others - {IMAGES[option]} | {EMBEDDINGS[option]})}
        assert set(stated("distill", f"--{option.replace('_', '-')}")) == wanted, option
    for option in ("epochs", "clip", "epsilon", "delta"):
        assert stated("federate", f"--{option}") == [FederateSettings.model_fields[option].default]
    assert set(stated("federate", "--rounds")) == {kind["rounds"] for kind in BY_KIND.values()}
    assert stated("federate", "--lora") == [BY_KIND["text"]["lora"]]
    assert stated("compile", "--tokens") == [SLOTS, encoder_decoder.SLOTS]
    assert f" {DRAFTS} tokens" in next(p.help for p in COMMANDS["chat"].params if p.name == "assistant")
    assert query.NEXT_TOKENS == answers.NEXT_TOKENS
