"""Options that mean something only beside others, words that are not UTF-8, and what `--help` says of each."""

from __future__ import annotations

import os
import re
import shutil

import pytest
from blindformer.models.loading import load
from blindformer.parties import retired
from blindformer.parties.cli import chat, compile, estimate, evaluate, query, run, steps
from blindformer.parties.cli.commands import IN_FILE, Needs, Without
from blindformer.parties.config import Settings, key_of
from blindformer.tests.pages import command_line, leaves

CLI = command_line()
COMMANDS = {" ".join(path): command for path, command in leaves().items()}
RULES = [
    pytest.param(name, parameter, rule, other, id=f"{name} {parameter.opts[0]} {other}")
    for name, command in COMMANDS.items()
    for parameter in command.params
    for rule in command.rules[parameter.name]
    for other in (rule.others if isinstance(rule, Without) else rule.others[:1])
]
RETIRED = [(name, option) for name, options in retired.OPTIONS.items() for option in options]


def value(parameter):
    """One that an option takes."""
    choices = getattr(parameter.type, "choices", None) or (parameter.metavar or "").strip("[]").split("|")
    if getattr(parameter.type, "min", None) is not None:
        return str(parameter.type.min or parameter.type.max or 1)
    return choices[-1] if len(choices) > 1 else "3" if parameter.type.name in ("integer", "float") else "a=1"


def words(command, wanted, but=None, also=()):
    """The option `wanted`, and what it needs by its rules, unless by the rule `but`."""
    option, _, given = wanted.partition(" ")
    parameter = next(one for one in command.params if option in one.opts)
    own = [] if getattr(parameter, "is_flag", False) else [given or value(parameter)]
    needs = [rule for rule in command.rules[parameter.name] if isinstance(rule, Needs) and rule is not but]
    added = [words(command, rule.others[0], also=(*also, wanted)) for rule in needs if rule.others[0] not in also]
    return [*(own if option[0] != "-" else [option, *own]), *(word for some in added for word in some)]


@pytest.mark.parametrize(("name", "parameter", "rule", "other"), RULES)
def test_an_option_without_effect_is_refused(refused, name, parameter, rule, other):
    """Each rule of each command, as its help states it."""
    command, option = COMMANDS[name], parameter.opts[0]
    needed = [one for one in command.params if one.required and one is not parameter]
    line = [*name.split(), *(word for one in needed for word in words(command, one.opts[0]))]
    line += words(command, option, but=rule)
    line += words(command, other) if isinstance(rule, Without) else []
    shown = option if option[0] == "-" else option.upper()
    stated = f"{shown}: {'needs' if isinstance(rule, Needs) else f'does not go with {other}; '}"
    assert refused(*line).startswith(f"blindformer: {stated}")
    assert str(rule) in parameter.help


def test_what_the_file_says_counts_as_given(refused, tmp_path):
    file = tmp_path / "blindformer.toml"
    file.write_text('[session]\nprotocol = "ckks"\n[server]\nfolder = "."\n')
    line = refused("serve", "--config", file, "--dealer", "d:1")
    assert line.startswith("blindformer: --dealer: does not go with --protocol ckks; leave --dealer out, ")


@pytest.mark.parametrize("name", IN_FILE)
def test_an_option_that_is_a_key_of_the_file_names_it(refused, name):
    options = {option for parameter in COMMANDS[name].params for option in parameter.opts}
    for section in IN_FILE[name]:
        for key in Settings.model_fields[section].annotation.model_fields:
            if (option := f"--{key.replace('_', '-')}") in options or option in retired.OPTIONS.get(name, {}):
                continue
            line = refused(name, option, "1")
            assert line.startswith(f"blindformer: {option}: is a key of the settings file; write {key} in [")
            assert key_of(option, section) == f"{key} in [{section}]"
    assert refused(name, f"{option}=1") == line


def test_a_value_that_is_called_as_a_key_is_none(call):
    assert call("serve", "store")[2].endswith("store: there is no such folder; give the one that compile wrote\n")


# --- words that are not UTF-8, which the system hands over as surrogates ---------------------------------------------
LATIN = "caf\udce9"


@pytest.mark.parametrize(
    "words",
    [
        ("run", "minilm", LATIN),
        ("chat", "smollm2", LATIN),
        ("query", ".", LATIN),
        ("run", LATIN, "a text"),
        ("list", LATIN),
        (LATIN,),
        ("run", "minilm", "--pair", LATIN),
        ("certs", "add", "certs", LATIN),
    ],
)
def test_a_word_that_is_not_utf8_is_one_line(call, words):
    code, out, errors = call(*words)
    assert (code, out) == (1, "") if "is not UTF-8" in errors else code == 2
    assert "Traceback" not in errors
    if code == 1:
        assert errors.endswith("is not UTF-8 text (byte 3), and no file's name; write it in UTF-8, or give a file\n")
        assert errors.count("\n") == 1


def test_a_file_may_have_a_name_that_is_not_utf8(report_of, tiny_classifier, tmp_path):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/d\xe9")
    os.mkdir(folder)
    for name, content in (("texts", "good\nbad\n"), ("known", "how good !\nnot bad .\n")):
        with open(os.path.join(folder, name), "w") as file:
            file.write(content)
    texts, known = (os.path.join(folder, name) for name in ("texts", "known"))
    command = ("run", tiny_classifier, "--protocol", "clear", "--length", 8)
    results = report_of(*command, "--file", texts, "--calibrate", known)["results"]
    assert [row["file"] for row in results] == [texts] * 2


def test_a_model_whose_name_a_library_does_not_take_is_one_line(refused, tiny_classifier, tmp_path):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/m\xe9")
    shutil.copytree(tiny_classifier, folder)
    line = refused("run", folder, "good", "--protocol", "clear", "--length", 8)
    assert "m\\udce9: the model cannot be loaded" in line


# --- before anything is loaded ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("run M", "standard input: holds no texts; write one a line, or give some as arguments"),
        ("run M ./photo.png", "./photo.png: there is no such file; if this word is the text, give `-`"),
        ("run M text --length long", "--length long: give auto, exact or a number of tokens"),
        ("run M text --calibrate absent", "--calibrate absent: cannot be read (No such file or directory)"),
        ("query . text --length exact", "--length exact: give auto or a number of tokens"),
        ("chat M ", "prompt: is empty"),
        ("evaluate M --text absent", "--text absent: cannot be read"),
        ("tune M --data uci --out nowhere/p.json", "--out nowhere/p.json: its folder is not there; make it, or name"),
        ("compile M --out o --calibrate absent", "--calibrate absent: cannot be read"),
        ("compile M --out o --lengths 8,x", "--lengths 8,x: give numbers of tokens with commas"),
    ],
)
def test_what_can_be_seen_before_is_said_before_anything_is_loaded(refused, monkeypatch, tmp_path, words, line):
    """Not even libraries."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(steps, "loading", None)
    for command in (run, query, chat, evaluate, estimate, compile):
        monkeypatch.setattr(command, "loading", None, raising=False)
    assert line in refused(*words.split(" "))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("train {model} --data absent", "absent: no such file or data set"),
        ("train {model} --data uci --out {model}", "holds a model already; give a new folder"),
        ("distill --teacher {model} --data absent --out o", "absent: no such file or data set"),
        ("tune {model} --data absent", "absent: no such file or data set"),
        ("tune {model} --data uci --network moon", "network moon: not known; choose one of loopback, lan, wan"),
        ("evaluate {model} ./absent --data uci", "./absent: there is no such folder"),
        ("evaluate {model} --data uci --teacher ./absent", "./absent: there is no such folder"),
        ("evaluate {model} --data absent", "absent: no such file or data set"),
        ("estimate {model} --network moon", "network moon: not known"),
    ],
)
def test_what_needs_no_model_is_said_before_one_is_loaded(refused, tiny_classifier, monkeypatch, words, line):
    monkeypatch.setattr(load, "_model", None)  # its weights
    assert line in refused(*words.format(model=tiny_classifier).split())


@pytest.mark.parametrize(("name", "option"), RETIRED)
def test_an_option_of_earlier_versions_says_what_to_do_instead(refused, name, option):
    path = next(path.split() for path in COMMANDS if path.split()[-1] == name)
    assert refused(*path, "a", *option.split(), "9") == f"blindformer: {option}: {retired.OPTIONS[name][option]}\n"


@pytest.mark.parametrize("name", retired.COMMANDS)
def test_a_command_of_earlier_versions_says_what_there_is_instead(refused, name):
    line = refused(name, "a", "--b").removeprefix("blindformer: ")
    assert re.search(r"(?:is called|blindformer) (\w+) .*$", line)[1] in CLI.commands
