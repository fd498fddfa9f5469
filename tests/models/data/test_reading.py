"""A file means the same to every command: what is a table, where its texts are, how its rows are counted."""

from __future__ import annotations

import io
import json
import sys
import tracemalloc
from functools import partial
from pathlib import Path

import pytest
from blindformer.models.data import DataError, load_texts
from blindformer.models.data.files import read_file
from blindformer.models.data.reading import TABLES, columns, rows, text_lines, text_rows, whole_text


def write(file: Path, text: str, encoding: str = "utf-8") -> Path:
    file.write_bytes(text.encode(encoding))
    return file


def parquet(file: Path, **values: list) -> Path:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table(values), file, row_group_size=2)
    return file


def read(file: Path, *fields: str, **options: str) -> list[tuple]:
    """(line, text or error, id) of each row."""
    return [(row.line, str(row.error) if row.error else row.text, row.id) for row in text_rows(file, fields, **options)]


# Kinds of files.


@pytest.mark.parametrize(
    ("name", "content", "first"),
    [
        ("a.csv", "id,text\n7,good\n8,bad\n", 2),
        ("a.CSV", "id;text\n7;good\n8;bad\n", 2),
        ("a.csv", "id\ttext\n7\tgood\n8\tbad\n", 2),
        ("a.csv", "id|text\n7|good\n8|bad\n", 2),
        ("a.csv", '"a, b, c";id;text\n;7;good\n;8;bad\n', 2),
        ("a.tsv", "id\ttext\n7\tgood\n8\tbad\n", 2),
        ("a.tab", "id\ttext, and more;\ttext\n7\t\tgood\n8\t\tbad\n", 2),
        ("a.jsonl", '{"id": 7, "text": "good"}\n{"id": 8, "text": "bad"}\n', 1),
        ("a.ndjson", '{"id": 7, "text": "good"}\n{"id": 8, "text": "bad"}', 1),
    ],
)
def test_a_table_is_known_by_its_ending_and_its_separator_by_the_header(tmp_path, name, content, first):
    table = read(write(tmp_path / name, content))
    assert [(line, text, str(number)) for line, text, number in table] == [
        (first, "good", "7"),
        (first + 1, "bad", "8"),
    ]


def test_parquet_has_no_lines_so_its_rows_are_counted(tmp_path):
    file = parquet(tmp_path / "a.parquet", id=[7, None, 2**63 - 1], text=["good", None, " bad "], n=[1, 2, 3])
    empty = "a text is empty: write something, or leave it out"
    assert read(file) == [(1, "good", 7), (2, empty, None), (3, "bad", 2**63 - 1)]
    assert read(file, "n")[0][1] == "has a number in field 'n'; it has id, n: name one with --field"
    assert [row.values for row in rows(file, names=["n"])] == [{"n": 1}, {"n": 2}, {"n": 3}]


def test_only_parquet_needs_pyarrow(tmp_path, monkeypatch):
    file = parquet(tmp_path / "a.parquet", text=["good"])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"Parquet needs pyarrow; run: pip install 'blindformer\[scale\]'"):
        read(file)
    assert read(write(tmp_path / "a.csv", "text\ngood\n")) == [(2, "good", None)]


def test_other_files_hold_texts_or_with_a_field_json_lines(tmp_path):
    file = write(tmp_path / "a.txt", "\ufeffgood, but\n\n  bad \u2028 blue\r\n")
    assert read(file) == [(1, "good, but", None), (3, "bad \u2028 blue", None)]
    lines = b'{"body": "good", "id": 5}\n'
    (row,) = text_lines("standard input", lambda: io.BytesIO(lines), ["body"])
    assert (row.text, row.id) == ("good", 5)


# Encodings.


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_an_encoding_is_seen_by_a_files_first_bytes(tmp_path, encoding):
    assert read(write(tmp_path / "a.tsv", "id\ttext\r\n1\tGrüße\r\n", encoding)) == [(2, "Grüße", "1")]
    assert whole_text("--text", write(tmp_path / "a.txt", "Grüße\r\naus\n", encoding)) == "Grüße\naus\n"
    big_endian = b"\xfe\xff" + "text\nGrüße\n".encode("utf-16-be")
    (tmp_path / "b.csv").write_bytes(big_endian)
    assert read(tmp_path / "b.csv") == [(2, "Grüße", None)]


def test_another_encoding_is_never_guessed(tmp_path):
    file = write(tmp_path / "a.csv", "id;text\n1;good\n2;Grüße\n", "cp1252")
    problem = r"a.csv, line 3: is not utf-8; name the file's encoding with --encoding cp1252"
    for reader in (read, read_file, partial(whole_text, "--text")):
        with pytest.raises(DataError, match=problem):
            reader(write(tmp_path / "a.csv", "id;text;label\n1;good;1\n2;Grüße;0\n", "cp1252"))
    assert read(file, encoding="cp1252") == [(2, "good", "1"), (3, "Grüße", "2")]
    with pytest.raises(DataError, match="--encoding klingon: is not known; give utf-8"):
        read(file, encoding="klingon")


def test_of_a_given_encoding_a_line_that_is_not_is_an_error_of_its_row(tmp_path):
    file = write(tmp_path / "a.csv", 'id;text\n1;good\n2;"two\nGrüße"\n3;bad\n', "cp1252")
    wrong = "is not utf-8; name the file's encoding with --encoding cp1252, or convert it"
    assert [row[:2] for row in read(file, encoding="utf-8")] == [(2, "good"), (3, wrong), (5, "bad")]
    with pytest.raises(DataError, match="line 4: is not utf-8"):
        whole_text("--text", file, "utf-8")
    cut = write(tmp_path / "b.csv", "text\ngood\n", "utf-16")
    cut.write_bytes(cut.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"b.csv, after line \d: is not utf-16"):
        read(cut)


def test_what_is_no_text_is_refused(tmp_path):
    for encoding in (None, "latin-1"):
        with pytest.raises(DataError, match=r"line 1: is not text in .*; name its encoding with --encoding utf-16"):
            list(rows(write(tmp_path / "a.csv", "text\n", "utf-16-le"), encoding))
    for name, problem in (("", "Is a directory"), ("none.csv", "No such file"), ("none.parquet", "No such file")):
        with pytest.raises(DataError, match=f"cannot be read .*{problem}"):
            read(tmp_path / name)


# Rows.


def test_a_row_is_named_by_the_line_on_which_it_begins(tmp_path):
    content = 'id,text\r\n1,"He said ""hi, you"""\r\n\r\n2,"two\r\nlines, here"\r\n,\r\n3,last'
    file = write(tmp_path / "a.csv", content)
    assert read(file) == [(2, 'He said "hi, you"', "1"), (4, "two\r\nlines, here", "2"), (7, "last", "3")]


def test_of_two_columns_of_one_name_none_is_taken(tmp_path):
    for header, field in (("text,label,text", None), ("id,mail,mail", "mail")):
        file = write(tmp_path / "a.csv", f"{header}\na,b,c\n")
        with pytest.raises(DataError, match=rf"has 2 columns '{field or 'text'}'; rename all but one"):
            read(file, *([field] if field else []))
    assert read(write(tmp_path / "a.csv", "text,x,x\na,b,c\n")) == [(2, "a", None)]


def test_a_bad_row_is_one_error_in_its_place(tmp_path):
    file = write(tmp_path / "a.csv", 'id,text\n1,good\n2\n3,a,b\n4," "\n5,bad,,\n6,"open\n7,lost\n')
    assert [(line, text[:15]) for line, text, _ in read(file)] == [
        (2, "good"),
        (3, "has no text in "),
        (4, "has more fields"),
        (5, "a text is empty"),
        (6, "bad"),
        (7, "has a quote tha"),
    ]
    lines = [{"id": 1, "text": "good"}, [1], {"id": 3}, {"id": True, "text": 5}, {"id": {"a": 1}, "text": None},
             {"id": "x\ud800", "text": "\ud800"}]  # fmt: skip
    file = write(tmp_path / "a.jsonl", "no\n\n" + "\n".join(map(json.dumps, lines)))
    assert [(line, text[:23], number) for line, text, number in read(file)] == [
        (1, "is not JSON; write an o", None),
        (3, "good", 1),
        (4, "is no JSON object; writ", None),
        (5, "has no text in field 't", 3),
        (6, "has a number in field '", "True"),
        (7, "a text is empty: write ", "{'a': 1}"),
        (8, "a text holds half of a ", "x?"),
    ]


def test_training_names_a_bad_row_by_the_same_line_and_refuses_it(tmp_path):
    head = 'text,label\n"two\nlines",1\n\n'
    for row, problem in (("a,b,c", "has more fields"), ("a,", "lacks 'text' or 'label'"), ('"a', "has a quote")):
        file = write(tmp_path / "a.csv", f"{head}{row}\n")
        with pytest.raises(DataError, match=f"a.csv, line 5: {problem}"):
            read_file(file)
        assert read(file)[-1][0] == 5


def test_training_names_all_bad_rows_at_once_or_leaves_them_out(tmp_path):
    lines = ["text,label", "good,1", "lost", "a,b,c", "bad,0", "lost", *["none,"] * 12]
    file = write(tmp_path / "a.csv", "\n".join(lines) + "\n")
    with pytest.raises(DataError) as error:
        read_file(file)
    assert str(error.value) == (
        f"{file}: 15 bad rows: lines 3, 6, 7, 8, 9, 10, 11, 12, 13: lacks 'text' or 'label'; line 4: has more fields "
        "than the first line has names; and 5 more; repair them, or give --skip-bad"
    )
    rest = read_file(file, skip_bad=True)
    assert (rest.inputs, rest.bad) == (["good", "bad"], 15)


def test_columns_of_a_text_are_joined(tmp_path):
    file = write(tmp_path / "a.csv", 'subject,body,"to,me",queue\nHi,there,x,a\n,alone,y,b\nshort\n')
    rows = read_file(file, "subject, body", "queue", skip_bad=True)
    assert (rows.inputs, rows.columns, rows.bad) == (["Hi\nthere", "alone"], ("subject,body", "queue"), 1)
    assert read_file(file, "to,me", "queue", skip_bad=True).inputs == ["x", "y"]
    with pytest.raises(DataError, match="has no column 'words'; it has subject, body"):
        read_file(file, "subject,words", "queue")


def test_tables_larger_than_memory_are_read_in_pieces(tmp_path):
    file = tmp_path / "a.csv"
    with file.open("w") as stream:
        stream.write("id,text\n")
        stream.writelines(f"{number},{'good ' * 200}\n" for number in range(20_000))
    tracemalloc.start()
    try:
        assert sum(1 for _ in text_rows(file)) == 20_000
        assert tracemalloc.get_traced_memory()[1] < file.stat().st_size / 10
    finally:
        tracemalloc.stop()


# Columns.


def test_columns_are_found_by_their_usual_names_named_or_asked_for(tmp_path):
    file = write(tmp_path / "a.csv", "Nr,Name,Review,other\n1,a,b,c\n")
    assert read(file) == [(2, "b", "1")]
    assert read(file, "other", row_id="Name") == [(2, "c", "a")]
    assert read(file, "Name", "other") == [(2, ("a", "c"), "1")]
    file = write(tmp_path / "b.csv", "Title,body,label,topic\n1,2,3,4\n")
    for reader in (read, read_file):
        with pytest.raises(DataError, match=r"b.csv: which column is the text\? Title or body; name one with --"):
            reader(file)
    with pytest.raises(DataError, match=r"b.csv: which column is the label\? label or topic; name one with --label-"):
        read_file(file, "Title")
    file = write(tmp_path / "b.csv", "when,how\n1,2\n")
    for reader in (read, read_file):
        with pytest.raises(DataError, match=r"b.csv: which column is the text\? It has when, how; name one with --"):
            reader(file)
    with pytest.raises(DataError, match="has no column 'what'; it has when, how: name one with --field"):
        read(file, "what")
    with pytest.raises(DataError, match="has no column 'what'; it has when, how: name one with --id"):
        read(file, "how", row_id="what")
    with pytest.raises(DataError, match="3 columns are named; name one, or two"):
        read(file, "how", "when", "how")


def test_json_lines_have_the_fields_of_their_first_objects(tmp_path):
    file = write(tmp_path / "a.jsonl", 'no\n{"id": 1}\n{"text": "good"}\n')
    assert columns(file) == ["id", "text"]
    with pytest.raises(DataError, match="line 1: is not JSON"):
        columns(write(file, "no\n[]\n"))


@pytest.mark.parametrize("ending", [ending for ending in TABLES if ending != ".parquet"])
def test_an_empty_file_holds_no_texts(tmp_path, ending):
    with pytest.raises(DataError, match="holds no texts"):
        read(write(tmp_path / f"a{ending}", ""))
    with pytest.raises(DataError, match="holds no examples"):
        read_file(tmp_path / f"a{ending}")
    with pytest.raises(DataError, match=r"a.txt: is no table of texts and labels; give one that ends in .csv, .tsv"):
        read_file(write(tmp_path / "a.txt", "good\n"))


def test_what_was_joined_in_training_is_joined_again(tmp_path):
    table = write(tmp_path / "a.csv", "nr,subject,body,text\n1,lost,my parcel,x\n2,,late,x\n3,,,x\n")
    training = write(tmp_path / "b.csv", "subject,body,label\nlost,my parcel,a\n,late,b\n")
    taught = read_file(training, "subject,body").inputs
    empty = "a text is empty: write something, or leave it out"
    whole = [(2, "lost\nmy parcel", "1"), (3, "late", "2"), (4, empty, "3")]
    assert [text for _, text, _ in whole[:2]] == taught
    assert read(table, trained="subject,body") == read(table, "subject", "body", trained="subject,body") == whole
    assert read(table, "body", "subject", trained="subject,body")[0][1] == "my parcel\nlost"
    assert read(table, "body", trained="subject,body")[0][1] == "my parcel"
    assert read(table, "subject", "body", trained="body")[0][1] == ("lost", "my parcel")
    assert read(table, trained="body")[0][1] == "my parcel"
    assert read(write(tmp_path / "c.csv", "text\nx\n"), trained="body") == [(2, "x", None)]
    with pytest.raises(DataError, match="has no column 'subject'; it has body: name one with --field"):
        read(write(tmp_path / "d.csv", "body\nx\n"), trained="subject,body")
    lines = b'{"subject": "lost", "body": "my parcel"}\n'
    (row,) = text_lines("standard input", lambda: io.BytesIO(lines), ["subject", "body"], trained="subject,body")
    assert row.text == "lost\nmy parcel"


def test_texts_to_transfer_need_no_labels(tmp_path):
    table = write(tmp_path / "a.csv", "what,body\nlost,my parcel\nLost!,x\nlate,\n")
    assert load_texts(table, text="what").train.texts == ["lost", "late"]
    assert load_texts(write(tmp_path / "b.txt", "one\n\ntwo\n")).train.texts == ["one", "two"]
    with pytest.raises(DataError, match=r"a.csv, line 4: a text is empty.*, or give --skip-bad"):
        load_texts(table, text="lines")
    left = load_texts(table, text="lines", skip_bad=True)
    assert (left.train.texts, left.dropped["bad"]) == (["my parcel", "x"], 1)
    joined = load_texts(table, text="what,body", skip_bad=True)
    assert joined.train.texts == ["lost my parcel", "Lost! x", "late"]
    with pytest.raises(DataError, match=r"which column is the text.*name one with --text-column"):
        load_texts(write(tmp_path / "c.csv", "what,why\na,b\n"))
