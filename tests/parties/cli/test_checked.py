"""Options that mean something only beside others, words that are not UTF-8, and what `--help` says of each."""

from __future__ import annotations

import json
import os
import re
import shutil

import pytest
from blindformer.models.loading import load
from blindformer.parties import retired
from blindformer.parties.cli import compile, estimate, evaluate, generate, query, run, steps, tune
from blindformer.tests.pages import command_line, leaves

CLI = command_line()
COMMANDS = {" ".join(path): command for path, command in leaves().items()}

TALKING = {
    "--parties 3": "--protocol crypten",
    **dict.fromkeys(("--top-p 0.5", "--top-k 3", "--seed 1"), "--temperature"),
    "--helper h:1": "--topology helper",
    "--prices p": "--receipt",
}
# By command: an option, and what it does not go without.
NEEDS = {
    "run": {
        **dict.fromkeys(("--parties 3", "--recipient alice", "--owner a=bob"), "--protocol crypten"),
        "--prices p": "--receipt",
    },
    "chat": TALKING,
    "generate": TALKING,
    "compile": dict.fromkeys(("--system s", "--window 32", "--reveal token"), "--chat"),
    "serve": {
        "--database postgresql://u@h/n": "--spool or --queries-each or --audits",
        "--queries-period 5": "--queries-each",
        "--state s": "--queries-each or --audits",
        **dict.fromkeys(("--keys-gb 1", "--keys-memory-gb 1", "--keys-seconds 1"), "--protocol ckks"),
        **dict.fromkeys(("--weights-memory-gb 1", "--query-processes 2"), "--protocol ckks"),
    },
    "query": {
        "--helper h:1": "--topology helper",
        "--use-spool only": "--spool",
        "--keys k": "--protocol ckks",
        "--prices p": "--receipt",
        "--out o.csv": "--file",
        **dict.fromkeys(("--sessions 2", "--engine ray"), "--out"),
        "--sentinels 0.2": "--known",
        "--known k": "--sentinels",
    },
    "sentinels make": {"--helper h:1": "--topology helper"},
    "distill": {"--texts 9": "--embeddings"},
    "federate": {
        "--sample 0.5": "--dp example",
        "--adaptive": "--dp central",
        "--prices p": "--receipt",
        **dict.fromkeys(("--clip 1", "--noise 1", "--epsilon 8", "--delta 0.1"), "--dp"),
    },
    "evaluate": {
        "--private 9": "--protocol beaver",
        **dict.fromkeys(("--teacher t", "--length 9", "--report r.png", "--seed 1"), "--data"),
        **dict.fromkeys(("--tokens 64", "--window 32", "--system s"), "--text"),
    },
    "estimate": {
        "--parties 3": "--protocol crypten",
        **dict.fromkeys(("--prompt 9", "--window 32", "--reveal token"), "--tokens"),
    },
}
REMOTE = dict.fromkeys(("--dealer d:1", "--topology helper", "--certs c"), "--server local")
OF_TEXTS = {**REMOTE, **dict.fromkeys(("--audits 0.2", "--commitment c"), "--server local")}
# By command: an option, and what it does not go with.
WITHOUT = {
    "chat": REMOTE,
    "generate": REMOTE,
    "compile": dict.fromkeys(("--lengths 8", "--outputs a", "--texts 2", "--seconds 5"), "--chat"),
    "serve": dict.fromkeys(
        ("--dealer d:1", "--topology helper", "--audits 0.2", "--adapter a=a", "--spool s", "--device cuda"),
        "--protocol ckks",
    ),
    "party": dict.fromkeys(
        ("text", "--file f", "--field f", "--encoding e", "--folder f", "--ahead 1"), "--party dealer"
    ),
    "query": {
        **OF_TEXTS,
        "--keys k --protocol ckks": "--server local",
        **dict.fromkeys(("--pair p", "--top 1"), "--out o.csv"),
        "--sentinels 0.2 --known k --out o.csv --file f": "--engine ray",
    },
    "sentinels make": OF_TEXTS,
    "gateway": dict.fromkeys(("--dealer d:1", "--certs c"), "--server local"),
    "up": dict.fromkeys(("--port 1", "--plan fast", "--key-file k", "--threads 2"), "--print-config"),
    "distill": {
        **dict.fromkeys(("--hidden 8", "--teacher-epochs 1", "--logit-epochs 1"), "--embeddings"),
        "--transfer t": "--embeddings",
        **dict.fromkeys(("--embeddings", "--length 9", "--augment 1", "--budget 9MB"), "--teacher vit"),
    },
    "federate": {"--node-config a=1": "--engine ray", "--engine ray": "--deploy"},
    "estimate": {
        **dict.fromkeys(("--length 9", "--calibrate c", "--encoding e", "--by layer", "--audits 0.2"), "--tokens 64"),
        **dict.fromkeys(("--network wan", "--rtt 1", "--bandwidth 1"), "--protocol crypten"),
    },
}
RETIRED = {
    "serve": ("--engine", "--replicas"),
    "dealer": ("--engine", "--replicas"),
    "estimate": ("--users", "--queries", "--peak", "--ahead", "--within", "--cores", "--gb"),
}
# The others change something whatever else is given: by themselves, or over what a file or a default says.
ALWAYS = """
    --adapter --all --alpha --any-ring --assistant --audits --bfloat16 --budget --by --ca --cache --calibrate
    --certs --chat --client-memory --clients --config --data --data-folder --database --days --dealer --deploy --device
    --dp --drafts --dry-run --embedding --encoding --engine --epochs --field --file --force --format --fraction --grace
    --heads --helper --hidden --hidden-epochs --host --html --id --idle --intermediate --keep-ca-key --key-file
    --label-column --layers --length --lengths --lifeline --listen --local --log-format --lora --max-new-tokens
    --memory-gb --metric --metrics --model --name --network --older --out --outputs --pad --pair --party
    --passphrase-file --plan --plot --pool --port --precision --print-config --private-weights --processes
    --protocol --public-weights --queries-each --query-seconds --queue --rate --raw --receipt
    --repetition-penalty --report --reveal --rounds --secagg --seconds --seed --served-model-name --server
    --sessions --share --spool --start --stop --strategy --system --teacher --temperature --text --text-column
    --texts --threads --timeout --tokens --trained --truncate --wait --weights --window --within --workers
"""


def pairs(table):
    return [pytest.param(name, *row, id=f"{name} {row[0]}") for name, rows in table.items() for row in rows.items()]


def beside(name, options):
    """A command's words that it takes with these options: all that it asks for is there."""
    needed = [p for p in COMMANDS[name].params if p.required]
    words = [word for p in needed for word in ((p.opts[0], "a") if p.opts[0][0] == "-" else ("a",))]
    return [*name.split(), *words, *options.split()]


@pytest.mark.parametrize(("name", "option", "other"), pairs(NEEDS))
def test_an_option_that_needs_another_says_which(call, name, option, other):
    code, out, errors = call(*beside(name, option))
    assert (code, out) == (1, "")
    assert errors.startswith(f"blindformer: {option.split()[0]}: needs {other}")
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize(("name", "option", "other"), pairs(WITHOUT))
def test_an_option_that_does_not_go_with_another_is_refused(call, name, option, other):
    file = "--file f" if "--out" in other else ""
    code, out, errors = call(*beside(name, f"{option} {other} {file}"))
    assert (code, out) == (1, "")
    shown = other.removesuffix(" o.csv").removesuffix(" 64")
    first = option.split()[0]
    assert errors.startswith(f"blindformer: {first if first[0] == '-' else 'TEXT'}: does not go with {shown}; ")
    assert len(errors.splitlines()) == 1


def test_every_option_says_what_it_needs_or_always_counts():
    for name, command in COMMANDS.items():
        options = {option.split()[0] for table in (NEEDS, WITHOUT) for option in table.get(name, ())}
        ruled = {p.opts[0] for p in command.params if command.rules[p.name] and p.param_type_name == "option"}
        assert ruled == {option for option in options if option[0] == "-"}, name
        free = {p.opts[0] for p in command.params if p.param_type_name == "option"} - ruled
        assert free <= set(ALWAYS.split()), name


def test_what_the_file_says_counts_as_given(call, tmp_path):
    """And where it says another thing, the line is the same."""
    file = tmp_path / "blindformer.toml"
    file.write_text('[session]\nprotocol = "ckks"\n[server]\nfolder = "."\n')
    code, _, errors = call("serve", "--config", file, "--spool", "s")
    assert (code, errors) == (
        1,
        "blindformer: --spool: does not go with --protocol ckks; leave --spool out, or give another --protocol\n",
    )
    file.write_text('[server]\nfolder = "."\n')
    code, _, errors = call("serve", "--config", file, "--keys-gb", 2)
    assert (code, errors.split(";")[0]) == (1, "blindformer: --keys-gb: needs --protocol ckks")


# --- words that are not UTF-8, which the system hands over as surrogates ---------------------------------------------
LATIN = "caf\udce9"


@pytest.mark.parametrize(
    "words",
    [
        ("run", "minilm", LATIN),
        ("generate", "smollm2", LATIN),
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


def test_a_file_may_have_a_name_that_is_not_utf8(call, tiny_classifier, tmp_path):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/d\xe9")
    os.mkdir(folder)
    for name, content in (("texts", "good\nbad\n"), ("known", "how good !\nnot bad .\n")):
        with open(os.path.join(folder, name), "w") as file:
            file.write(content)
    code, out, errors = call(
        *("run", tiny_classifier, "--protocol", "clear", "--format", "json", "--length", 8),
        *("--file", os.path.join(folder, "texts"), "--calibrate", os.path.join(folder, "known")),
    )
    assert code == 0, errors
    assert [row["file"] for row in json.loads(out)["results"]] == [os.path.join(folder, "texts")] * 2


def test_a_model_whose_name_a_library_does_not_take_is_one_line(call, tiny_classifier, tmp_path):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/m\xe9")
    shutil.copytree(tiny_classifier, folder)
    code, out, errors = call("run", folder, "good", "--protocol", "clear", "--length", 8)
    assert (code, out, errors.count("\n")) == (1, "", 1)
    assert "m\\udce9: the model cannot be loaded" in errors


# --- before anything is loaded ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("run M", "standard input: holds no texts; write one a line, or give some as arguments"),
        ("run M -", "standard input: holds no texts"),
        ("run M ./photo.png", "./photo.png: there is no such file; if this word is the text, give `-`"),
        ("run M --file absent", "absent: cannot be read (No such file or directory)"),
        ("run M text --length long", "--length long: give auto, exact or a number of tokens"),
        ("run M text --calibrate absent", "--calibrate absent: cannot be read (No such file or directory)"),
        ("query .", "standard input: holds no texts"),
        ("query . --file absent", "absent: cannot be read"),
        ("query . text --length exact", "--length exact: give auto or a number of tokens"),
        ("chat M --system absent", "--system absent: cannot be read"),
        ("generate M text --system absent", "--system absent: cannot be read"),
        ("generate M ", "prompt: is empty"),
        ("evaluate M --text absent", "--text absent: cannot be read"),
        ("evaluate M --text . --system absent", "--system absent: cannot be read"),
        ("evaluate M --data uci --report r.pdf", "--report r.pdf: is a page or a picture; name a .html or .png file"),
        ("evaluate M --data uci --report nowhere/r.png", "--report nowhere/r.png: its folder is not there; make it,"),
        ("tune M --data uci --report r.pdf", "--report r.pdf: is a picture; name a .png file"),
        ("tune M --data uci --out nowhere/p.json", "--out nowhere/p.json: its folder is not there; make it, or name"),
        ("estimate M --calibrate absent", "--calibrate absent: cannot be read"),
        ("compile M --out o --calibrate absent", "--calibrate absent: cannot be read"),
        ("compile M --out o --lengths 8,x", "--lengths 8,x: give numbers of tokens with commas"),
        ("compile M --out o --chat --system absent", "--system absent: cannot be read"),
        ("federate --data digits --out o --plot p.pdf", "--plot p.pdf: is a picture; name a .png file"),
    ],
)
def test_what_can_be_seen_before_is_said_before_anything_is_loaded(call, monkeypatch, tmp_path, words, line):
    """Not even libraries."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(steps, "loading", None)
    for command in (run, query, generate, evaluate, tune, estimate, compile):
        monkeypatch.setattr(command, "loading", None, raising=False)
    code, out, errors = call(*words.split(" "))
    assert (code, out, errors.count("\n")) == (1, "", 1)
    assert line in errors


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("train {model} --data absent", "absent: no such file or folder, and no data set of that name"),
        ("train {model} --data uci --out {model}", "holds a model already; give a new folder"),
        ("distill --teacher {model} --data absent --out o", "absent: no such file or folder"),
        ("tune {model} --data absent", "absent: no such file or folder"),
        ("tune {model} --data uci --network moon", "network moon: not known; choose one of loopback, lan, wan"),
        ("evaluate {model} ./absent --data uci", "./absent: there is no such folder"),
        ("evaluate {model} --data uci --teacher ./absent", "./absent: there is no such folder"),
        ("evaluate {model} --data absent", "absent: no such file or folder"),
        ("estimate {model} --network moon", "network moon: not known"),
        ("compile {model} --network moon --out o", "network moon: not known"),
    ],
)
def test_what_needs_no_model_is_said_before_one_is_loaded(call, tiny_classifier, monkeypatch, words, line):
    monkeypatch.setattr(load, "_model", None)  # its weights
    code, out, errors = call(*words.format(model=tiny_classifier).split())
    assert (code, out, errors.count("\n")) == (1, "", 1), errors
    assert line in errors


@pytest.mark.parametrize(("name", "option"), [(name, option) for name, some in RETIRED.items() for option in some])
def test_an_option_of_earlier_versions_says_what_to_do_instead(call, name, option):
    for words in ((option, "9"), (f"{option}=9",)):
        code, out, errors = call(name, "a", *words)
        assert (code, out, errors.count("\n")) == (1, "", 1)
        assert re.match(rf"blindformer: {option}: .*: leave it out, and ", errors), errors


@pytest.mark.parametrize("name", retired.COMMANDS)
def test_a_command_of_earlier_versions_says_what_there_is_instead(call, name):
    code, out, errors = call(name, "a", "--b")
    assert (code, out, errors.count("\n")) == (1, "", 1)
    assert set(re.findall(r"is called (\w+) now", errors)) <= set(CLI.commands)
