"""The commands compile, inspect and query: what they print, and one line for everything that can be asked wrongly."""

from __future__ import annotations

import json
import shutil

import pytest
from blindformer.models.artifacts import load_client, load_programs
from blindformer.models.program.pricing import price
from blindformer.tests.models.loading.test_task import nested
from blindformer.tests.shared.deployment import Deployment

TEXTS = ["how is my password ?", "not good , bad !", "the password is lost .", "what a good red !"]


@pytest.fixture
def compiled(call, known, tiny_classifier, tmp_path_factory):
    """A classifier that the command compiled for two lengths, once."""
    folder = tmp_path_factory.getbasetemp() / "query-compiled"
    if not folder.exists():
        code, _, errors = call(
            "compile", tiny_classifier, "--lengths", "8,16", *known, "--out", folder, "--format", "json"
        )
        assert code == 0, errors
    return folder


@pytest.fixture(scope="module")
def sites():
    """Deployments of this module's folders, by folder."""
    deployments: dict = {}
    yield deployments
    for site in deployments.values():
        site.__exit__()


@pytest.fixture
def ask(call, compiled, sites, tmp_path_factory):
    """`ask(*arguments)` is a query to the classifier's deployment, in the format of one's choice."""
    if "classifier" not in sites:
        sites["classifier"] = Deployment(tmp_path_factory.mktemp("site"), compiled).__enter__()
    site = sites["classifier"]
    config = site.write_config(site.folder / "client.toml", client=f'cache = "{site.folder / "cache"}"\n')
    where = [*site.words(), "--config", config]

    def run(*arguments, stdin: bytes = b"", folder=None) -> tuple[int, str, str]:
        return call("query", folder or compiled / "client", *where, *arguments, stdin=stdin)

    return run


def test_a_folder_of_certs_add_asks_as_it_is(ask, call, sites, tmp_path):
    """Moved to the client's machine, and not touched."""
    answer = ask(TEXTS[0])[1]
    shutil.copytree(sites["classifier"].certificates, tmp_path / "certs")
    assert call("certs", "add", tmp_path / "certs", "client", "--name", "alice")[0] == 0
    shutil.move(tmp_path / "certs" / "alice", tmp_path / "sent")
    code, printed, errors = ask(TEXTS[0], "--certs", tmp_path / "sent")
    assert code == 0, errors
    assert printed.splitlines()[0] == answer.splitlines()[0]


@pytest.mark.parametrize("part", ["", "server", "client"])
def test_inspect_prices_every_layer(call, report_of, compiled, part):
    report = report_of("models", "show", compiled / part)
    assert set(report["parts"]) == {part} if part else {"server", "client"} <= set(report["parts"])
    assert all(row["versions"]["torch"] for row in report["parts"].values())
    assert "bert.embeddings.word_embeddings.weight" in report["released"]
    for item, program in zip(report["lengths"], load_programs(compiled).values(), strict=True):
        cost = price(program)
        assert (item["hash"], item["rounds"], item["macs"]) == (program.hash(), cost.rounds, cost.macs)
        assert sum(row["online_bytes"] for row in item["layers"]) == item["online_bytes"] == cost.online_bytes
        assert sum(row["offline_bytes"] for row in item["layers"]) == item["offline_bytes"] == cost.offline_bytes
        assert sum(row["share"] for row in item["layers"]) == pytest.approx(1)
    assert report["plan"] == "faithful"
    code, out, _ = call("models", "show", compiled / part, "--length", "16")
    assert code == 0
    assert "16 tokens" in out
    assert "8 tokens" not in out
    assert "total" in out


def test_parts_of_different_compilations_are_told_apart(call, refused, compiled, tiny_classifier, known, tmp_path):
    call("compile", tiny_classifier, "--lengths", "9", *known, "--out", tmp_path / "other")
    mixed = shutil.copytree(compiled, tmp_path / "mixed")
    shutil.rmtree(mixed / "client")
    shutil.copytree(tmp_path / "other" / "client", mixed / "client")
    assert "are of different compilations" in refused("models", "show", mixed)


def test_a_question_about_a_text(call, report_of, known, tiny_heads, tmp_path):
    """Compiled, and asked in a session: the span is the one that `run` finds in the clear."""
    asked, text = "how is it ?", "my password is lost ."
    model, folder = tiny_heads("span"), tmp_path / "compiled"
    assert call("compile", model, "--out", folder, "--lengths", "16", *known)[0] == 0
    (result,) = report_of("query", folder, asked, "--server", "local", "--pair", text)["results"]
    clear = ("run", model, asked, "--length", 16, *known, "--protocol", "clear", "--pair", text)
    (expected,) = report_of(*clear)["results"]
    assert (result["text"], result["pair"]) == (asked, text)
    nested(result["answers"], expected["answers"], 5e-3)


# --- query -----------------------------------------------------------------------------------------------------------
def test_a_query_in_every_format(ask, tiny_classifier):
    from transformers import pipeline

    expected = pipeline("text-classification", str(tiny_classifier))(TEXTS[:2], top_k=None)
    code, out, _ = ask(*TEXTS[:2], "--format", "json")
    assert code == 0
    reply = json.loads(out)
    assert (reply["model"], reply["task"], reply["plan"]) == (tiny_classifier.name, "text-classification", "faithful")
    assert [row["text"] for row in reply["results"]] == TEXTS[:2]
    for row, labels in zip(reply["results"], expected, strict=True):
        nested(row["labels"], labels, 2e-3)
        assert row["length"] == 8
        assert row["rounds"] > 0
    assert "learns nothing" in reply["learned"]["server"]

    code, out, _ = ask(*TEXTS[:2], "--top", 1, "--length", 16, "--format", "jsonl")
    assert code == 0
    rows = [json.loads(line) for line in out.splitlines()]
    assert [(row["number"], row["text"], row["length"]) for row in rows] == [(1, TEXTS[0], 16), (2, TEXTS[1], 16)]
    assert [len(row["labels"]) for row in rows] == [1, 1]

    code, out, errors = ask(TEXTS[0])
    assert (code, errors) == (0, "")
    assert expected[0][0]["label"] in out
    assert "padded to 8 tokens" in out
    assert "protocol beaver: two parties and an offline dealer" in out
    assert "plan faithful" in out


def test_texts_from_files_and_standard_input(ask, tmp_path):
    file = tmp_path / "texts"
    file.write_text("\ufeffgood\n\n bad blue \n", encoding="utf-8")
    for arguments, stdin, texts in (
        (["--file", file, "red"], b"ignored", ["red", "good", "bad blue"]),
        (["-"], b"good\r\nbad\n", ["good", "bad"]),
        ([], b"good\n", ["good"]),
        (["red", "-"], b"good\n", ["red", "good"]),
    ):
        code, out, errors = ask(*arguments, "--format", "jsonl", stdin=stdin)
        assert code == 0, errors
        assert [json.loads(line)["text"] for line in out.splitlines()] == texts


def test_one_bad_text_leaves_the_others_and_all_keep_their_numbers(ask, tmp_path):
    plain, table = tmp_path / "texts", tmp_path / "more.jsonl"
    plain.write_text(f"good\n\n{'good ' * 20}\nbad\u2028blue\n")
    table.write_text('{"text": "red"}\n\nred\n{"words": "blue"}\n{"text": " "}\n{"text": "blue"}')
    code, out, errors = ask("--file", plain, "--file", table, "how", "--format", "jsonl")
    assert code == 1
    rows = {row["number"]: row for row in map(json.loads, out.strip().split("\n"))}
    assert list(rows) == sorted(rows), "in the order of what was asked"
    assert [rows[n]["text"] for n in (1, 2, 4, 5, 9)] == ["how", "good", "bad\u2028blue", "red", "blue"]
    assert all("labels" in rows[n] for n in (1, 2, 4, 5, 9))
    assert [rows[n]["line"] for n in sorted(rows) if "line" in rows[n]] == [1, 3, 4, 1, 3, 4, 5, 6]
    bad = {3: (plain, 3, "text has 22"), 6: (table, 3, "is not JSON"), 7: (table, 4, "has no text in field 'text'"),
           8: (table, 5, "a text is empty")}  # fmt: skip
    first, *others = errors.splitlines()
    assert "texts from text, not from words" in first
    assert len(others) == len(bad)
    for number, (file, line, words) in bad.items():
        assert (rows[number]["file"], rows[number]["line"]) == (str(file), line)
        assert rows[number]["error"].startswith(words)
        assert f"blindformer: {file}, line {line}: {rows[number]['error']}" in errors.splitlines()
    code, out, errors = ask("good", "", "--format", "json")
    assert [row.get("error", "")[:15] for row in json.loads(out)["results"]] == ["", "a text is empty"]
    assert (code, errors) == (1, "blindformer: input 2: a text is empty: write something, or leave it out\n")


def test_what_was_cut_is_said_in_every_format(ask):
    texts = ["good " * 20, "good"]
    for form in ("json", "jsonl"):
        code, out, errors = ask(*texts, "--truncate", "end", "--format", form)
        assert (code, errors) == (0, "")
        rows = json.loads(out)["results"] if form == "json" else map(json.loads, out.splitlines())
        counts = {row["text"]: (row["length"], row["truncated"]) for row in rows}
        assert counts == {texts[0]: (16, 6), texts[1]: (8, 0)}
    code, out, _ = ask(*texts, "--truncate", "start")
    assert code == 0
    assert out.count("cut to 16 of 22 tokens") == 1
    code, out, _ = ask("good", "--truncate", "end")
    assert "cut to" not in out
    _, out, _ = ask("good", "--format", "json")
    assert "truncated" not in out


def test_a_table_is_asked_by_its_column_and_its_rows_have_one_name_everywhere(ask, tmp_path):
    """With --out and without: the same errors at the same lines, the rows' own names, and exit code 1."""
    table, out = tmp_path / "t.csv", tmp_path / "out.jsonl"
    rows = ["id;Text", '7;"good\n(é)"', "8;bad", "9;", '10;"red";x', '11;"blue"']
    table.write_text("\n".join(rows), encoding="cp1252")
    asked = ("--file", table, "--encoding", "cp1252")
    code, printed, errors = ask(*asked, "--format", "jsonl")
    assert code == 1
    plain = sorted(map(json.loads, printed.splitlines()), key=lambda row: row["number"])
    assert [(row["number"], row["line"], row["id"]) for row in plain] == [
        *((1, 2, "7"), (2, 4, "8"), (3, 5, "9"), (4, 6, "10"), (5, 7, "11")),
    ]
    assert [row["text"] for row in plain] == ["good\n(é)", "bad", "", "", "blue"]
    assert errors.splitlines() == [f"blindformer: {table}, line {row['line']}: {row['error']}" for row in plain[2:4]]
    code, _, errors = ask(*asked, "--out", out)
    assert (code, errors) == (1, "")
    bulk = [json.loads(line) for line in out.read_text().splitlines()]
    for name in ("line", "id", "error"):
        assert [row.get(name) for row in bulk] == [row.get(name) for row in plain]
    assert [row.get("label") for row in bulk] == [
        row["labels"][0]["label"] if "labels" in row else None for row in plain
    ]


def test_a_column_of_pairs_is_no_place_for_pairs(ask, tmp_path):
    (tmp_path / "t.csv").write_text("a,b\ngood,bad\n")
    code, _, errors = ask("--file", tmp_path / "t.csv", "--field", "a, b", "--pair", "red")
    assert code == 1
    assert errors.startswith("blindformer: --pair: --field names two columns, which are pairs already")


@pytest.mark.parametrize(
    ("arguments", "stdin", "words"),
    [
        (
            ["good " * 20],
            b"",
            "tokens, the model is compiled for 16 at most: give --truncate end or windows, compile with --lengths 8,",
        ),
        (["-", "--field", "text"], b"good\n", 'standard input, line 1: is not JSON; write an object such as {"text"'),
        (
            ["good " * 9, "--length", "8"],
            b"",
            "the length asked for is 8: give --truncate end or windows or --length 16, shorten",
        ),
        (["good", "--config", "/no/such.toml"], b"", "there is no such file"),
    ],
)
def test_mistakes_are_one_line(ask, arguments, stdin, words):
    code, out, errors = ask(*arguments, stdin=stdin)
    assert (code, out) == (1, "")
    assert len(errors.strip().splitlines()) == 1
    assert errors.startswith("blindformer: ")
    assert words in errors


def test_the_folder_may_be_the_configurations(ask, call, refused, sites, compiled, tmp_path, monkeypatch):
    ask("good")  # the deployment runs
    site = sites["classifier"]
    file = site.write_config(tmp_path / "blindformer.toml", f'cache = "{site.folder / "cache"}"\n')
    for words, stdin in (
        (["good // bad", "red"], b""),
        ([compiled / "client", "good // bad", "red"], b""),
        ([], b"good // bad\nred\n"),
        (["-", "red"], b"good // bad"),
    ):
        code, out, errors = call("query", *words, "--config", file, "--format", "jsonl", stdin=stdin)
        assert code == 0, errors
        assert [json.loads(line)["text"] for line in out.splitlines()] == ["good // bad", "red"]
    code, _, errors = call("query", stdin=b"good")
    assert (code, "or --config FILE that names it" in errors) == (1, True)
    monkeypatch.chdir(compiled.parent)
    near = f"did you mean {compiled.name}?"
    for command, words, message in (
        ("query", ["./zz", "good"], "./zz: there is no such folder; give the folder that compile wrote"),
        ("query", [compiled.name[:-1], "good"], f"{compiled.name[:-1]}: there is no such folder; {near}"),
        ("precompute", [compiled.name[:-1], "1"], f"{compiled.name[:-1]}: there is no such folder; {near}"),
        ("precompute", ["./zz", "1"], "./zz: there is no such folder"),
        ("precompute", ["ten"], "ten: is no number of queries"),
        ("precompute", ["1"], "preprocessed correlations need a folder on this side"),  # so the model's was found
        ("query", ["good " * 999], "text has 1001 tokens"),  # longer than any file's name
    ):
        assert message in refused(command, *words, "--config", file)


def test_a_model_is_compiled_with_the_plan_it_was_trained_for(report_of, known, tiny_classifier, tmp_path):
    from blindformer.approximations import Plan

    student = shutil.copytree(tiny_classifier, tmp_path / "student")
    Plan.preset("fast").replace(name="for this student").save(student)
    options = ["--lengths", "8", *known, "--out", tmp_path / "out"]
    for words, plan in (([], "for this student"), (["--plan", "faithful"], "faithful")):
        assert report_of("compile", student, *options, *words)["plan"] == plan
    assert report_of("estimate", student, "--length", 8, *known)["plan"] == "for this student"


# --- canary queries --------------------------------------------------------------------------------------------------
def test_known_answers_are_made_mixed_in_and_reported(ask, report_of, refused, compiled, tmp_path):
    """A file of others ends with 1, in a line; the answers are there, and marked."""
    (texts := tmp_path / "texts").write_text("\n".join(TEXTS))
    file, out = tmp_path / "known.jsonl", tmp_path / "out.jsonl"
    written = report_of("query", compiled, "--server", "local", "--file", texts, "--write-known", file)
    assert written["answers"] == 8, "four texts at two lengths"
    mix = ("--canaries", "0.25", "--known", file)
    code, printed, errors = ask("--file", texts, *mix, "--format", "json")
    reply = json.loads(printed)
    assert (code, reply["canaries"]["asked"], reply["canaries"]["canaries"]) == (0, 6, 2), errors
    assert [row["text"] for row in reply["results"]] == TEXTS
    line = (
        "1 canary query among 3 queries: all as known; a server that falsifies one query in ten would have been found"
    )
    assert f"{line} with probability 10 %" in " ".join(ask(*TEXTS[:2], *mix)[1].split())

    rows = [json.loads(row) for row in file.read_text().splitlines()]
    for row in rows:
        row["outputs"]["logits"][0][1] += 1
    file.write_text("\n".join(map(json.dumps, rows)))
    code, printed, errors = ask("--file", texts, *mix, "--format", "jsonl")
    *answers, last = map(json.loads, printed.splitlines())
    assert (code, len(answers), len(last["canaries"]["unlike"])) == (1, 4, 2)
    assert all(row["labels"] and row["distrusted"] for row in answers)
    assert errors.startswith(
        "blindformer: canaries: 2 canary queries among 6 queries: 2 not as known (known.jsonl, line "
    )
    code, _, errors = ask("--file", texts, *mix, "--out", out)
    assert (code, errors.count("\n")) == (1, 1)
    assert "4 rows are beside a wrong canary answer: do not trust them" in errors
    assert all(json.loads(row)["distrusted"] for row in out.read_text().splitlines())
    line = refused("query", compiled, "--server", "local", "--file", texts, "--write-known", file)
    assert f"--write-known {file}: is there already; give another name, or remove it" in line


def test_a_few_words_compile_once_the_one_length_that_they_need(report_of, tiny_encoder, tmp_path, monkeypatch):
    """Asked by services of this machine."""
    monkeypatch.setenv("HOME", str(tmp_path))
    longer = "how " * 40  # beyond 32 tokens
    for texts in (["good"], ["not bad", "good"], ["good", longer]):
        assert len(report_of("query", tiny_encoder, *texts, "--server", "local")["results"][0]["embedding"]) == 32
    cache = tmp_path / ".cache/blindformer/compiled"
    assert sorted(load_client(folder).about["lengths"] for folder in cache.iterdir()) == [[32], [64]]


def test_a_table_is_read_before_a_model_is_compiled_for_it(refused, tiny_encoder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (table := tmp_path / "a.csv").write_text("id,other\n1,good\n")
    words = ("query", tiny_encoder, "--server", "local", "--file", table)
    assert "has no column 'body'" in refused(*words, "--field", "body")
    table.write_text("")
    assert "holds no texts" in refused(*words)
    assert not (tmp_path / ".cache/blindformer/compiled").exists()


def test_one_length_is_found_in_a_folder_of_all(report_of, tiny_encoder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("good\n")
    for asked in (["--file", tmp_path / "a.txt"], ["good"], ["good", "--length", "32"]):
        report_of("query", tiny_encoder, *asked, "--server", "local")
    (folder,) = (tmp_path / ".cache/blindformer/compiled").iterdir()
    assert load_client(folder).about["lengths"] == [32, 64]
