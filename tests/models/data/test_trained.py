"""A model is judged by rows that it was not trained on: its folder says how they were divided."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import pytest
from blindformer.models.data import (
    DataError,
    RawExamples,
    TestRowsWarning,
    check_unseen,
    keep_reading,
    load_as_trained,
    load_data,
)
from blindformer.models.data.dataset import FILE, reading_of
from blindformer.models.data.load import split


def table(path, count=60, head="body,queue,late,urgent"):
    rows = [
        f"mail number {i},{['paid', 'sent', 'lost'][i % 3]},{['no', 'yes'][i // 3 % 2]},note {i}" for i in range(count)
    ]
    path.write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def mails(tmp_path):
    return table(tmp_path / "mails.csv")


@pytest.fixture
def folder(mails, tmp_path):
    """Of a model that was trained on mails, divided with seed 3."""
    model = tmp_path / "model"
    model.mkdir()
    keep_reading(load_data(mails, seed=3, label="queue"), model)
    return model


def quietly(*arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_unseen(*arguments)


def test_data_is_read_again_as_it_was(folder, mails):
    again, trained = load_as_trained(mails, folder), load_data(mails, seed=3, label="queue")
    assert (again.labels, again.test.texts) == (("lost", "paid", "sent"), trained.test.texts)
    assert again.reading == trained.reading == reading_of(folder)
    quietly(folder, again)


def test_the_folder_tells_no_text_and_no_place(folder, mails):
    kept = (folder / FILE).read_text()
    assert "mail number" not in kept
    assert str(mails.parent) not in kept
    assert json.loads(kept)["name"] == "mails.csv"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"seed": 0}, "with seed 0 rows are tested that .* was trained on; give seed 3, as in training"),
        ({"label": "late"}, "with label column late rows .*; give label column queue, as in training"),
        ({"seed": 1, "test": 0.5}, "with seed 1 and test 0.5 rows .*; give seed 3 and test 0.2, as in training"),
        (
            {"text": "urgent", "label": "queue"},
            "with text column urgent rows .*; give text column body, as in training",
        ),
    ],
)
def test_another_division_of_the_same_file_is_refused(folder, mails, given, words):
    with pytest.raises(DataError, match=words):
        check_unseen(folder, load_as_trained(mails, folder, **given))


def test_the_columns_that_were_read_and_what_was_left_out_are_kept(mails, tmp_path):
    """Bad rows are left out again, and the columns are those of training, whatever they are called."""
    mails.write_text(mails.read_text() + "short\n")
    keep_reading(load_data(mails, text="body,urgent", label="queue", skip_bad=True), tmp_path)
    kept = json.loads((tmp_path / FILE).read_text())
    assert (kept["text"], kept["label"], kept["skip_bad"]) == ("body,urgent", "queue", True)
    again = load_as_trained(mails, tmp_path)
    assert "note" in again.test.texts[0]
    assert again.dropped["bad"] == 1
    keep_reading(load_data(table(tmp_path / "usual.csv"), label="queue"), tmp_path)
    assert json.loads((tmp_path / FILE).read_text())["text"] == "body"


def test_a_file_with_a_split_of_its_own_has_the_same_test_rows_with_any_seed(folder, tmp_path):
    rows = [f"mail {i},{'ab'[i % 2]},{['train', 'test'][i // 2 % 2]}" for i in range(80)]
    file = tmp_path / "split.csv"
    file.write_text("\n".join(["text,label,split", *rows]) + "\n")
    keep_reading(load_data(file, seed=0), folder)
    quietly(folder, load_data(file, seed=1))


def test_of_another_file_it_is_said_that_rows_may_be_known(folder, tmp_path):
    other = load_as_trained(table(tmp_path / "june.csv", 90), folder)
    with pytest.warns(TestRowsWarning, match="june.csv: .* was trained on other data .mails.csv."):
        check_unseen(folder, other)


def test_a_folder_from_before_is_taken_and_it_is_said(folder, mails):
    (folder / FILE).unlink()
    quietly(folder, load_data(mails, label="queue"))  # nobody of ours trained it
    (folder / "head.json").write_text("{}")
    with pytest.warns(TestRowsWarning, match="does not name its seed"):
        check_unseen(folder, load_as_trained(mails, folder, label="queue"))


def test_a_data_set_made_in_memory_is_known_again(folder):
    rows = RawExamples([f"mail {i}" for i in range(40)], [i % 2 for i in range(40)], ("a", "b"))
    keep_reading(split("mine", rows, 1), folder)
    quietly(folder, split("mine", rows, 1))
    with pytest.raises(DataError, match="give seed 1"):
        check_unseen(folder, split("mine", rows, 2))
    quietly(folder, replace(split("mine", rows, 2), reading=None))


def test_a_damaged_record_is_an_error(folder, mails):
    (folder / FILE).write_text("[1")
    with pytest.raises(DataError, match=r"data\.json: is damaged .*; copy the folder again, or train again"):
        load_as_trained(mails, folder)
