"""What `--help` shows: few options, and an example that is accepted."""

from __future__ import annotations

import re

import pytest
from blindformer.federated.settings import FederateSettings
from blindformer.models.distillation_settings import DistillSettings
from blindformer.parties.cli.app import app
from blindformer.tests.pages import command_line, leaves
from typer.testing import CliRunner

COMMANDS = {" ".join(path): command for path, command in leaves().items()}


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
    assert [(one.opts[0], text) for one in command.params if len(text := getattr(one, "help", None) or "") > 100] == []
    words = command.epilog.removeprefix("Example: ")
    assert words.startswith(f"blindformer {name.removesuffix(' list')}")
    parse(words)


def test_there_are_few_commands_and_options():
    """Of the panels, with groups as one; options by command. `pytest -s` prints them."""
    slots = {name: sum(one.param_type_name == "option" for one in command.params) for name, command in COMMANDS.items()}
    panels = command_line().commands
    print(f"{len(panels)} commands, {sum(slots.values())} options: {slots}")
    assert len(panels) <= 24
    assert sum(slots.values()) <= 300


@pytest.mark.parametrize(("name", "settings"), [("distill", DistillSettings), ("federate", FederateSettings)])
def test_each_setting_has_an_option_or_is_listed_with_its_text(call, name, settings):
    options = {parameter.name for parameter in COMMANDS[name].params}
    renamed = {"text": "text_column", "label": "label_column"}
    code, listed, errors = call(name, "--set", "help")
    assert (code, errors) == (0, "")
    for setting, field in settings.model_fields.items():
        shown = re.search(rf"^{setting} .*$", listed, re.MULTILINE)
        assert bool(shown) != (renamed.get(setting, setting) in options), setting
        assert not shown or (field.description or "").split()[0] in shown[0]
