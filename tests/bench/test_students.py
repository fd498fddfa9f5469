"""Students beside their teacher: costs are the price, worth is through the fixed point, ratios are to the first."""

import random
import shutil

import pytest
from blindformer.approximations import Plan, calibrate
from blindformer.bench import students
from blindformer.models.loading.load import load

WORDS = ["the", "a", "is", "it", "not", "what", "how", "good", "bad", "my", "your", "lost", "found", "red", "blue"]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    draw, file = random.Random(0), tmp_path_factory.mktemp("data") / "texts.csv"
    texts = {" ".join(draw.choices(WORDS, k=draw.randint(4, 9))) for _ in range(200)}
    file.write_text("text,label\n" + "".join(f"{text},{'yes' if 'good' in text else 'no'}\n" for text in sorted(texts)))
    return file


@pytest.fixture(scope="module")
def folders(tiny_encoder, tmp_path_factory):
    """The encoder as a student of itself, on all tokens and on half of them; nobody trained it."""
    kept = []
    for name, pool in (("whole", ()), ("halved", (0,))):
        folder = shutil.copytree(tiny_encoder, tmp_path_factory.mktemp("students") / name)
        loaded = load(folder)
        batches = loaded.examples(["how is my password", "not good it is bad", "what a good red"], 16)
        calibrate(loaded.model, batches, Plan.preset("faithful").replace(pool=pool)).save(folder)
        kept.append(folder)
    return kept


def test_each_student_is_priced_and_judged_by_two_kinds_of_text(measured, tiny_encoder, table, folders, monkeypatch):
    options = ["--data", table, "--count", 24, "--length", 16, "--heads", table]
    monkeypatch.setattr(students, "judging_texts", lambda name: [f"{word} {name} film" for word in WORDS * 2])
    report = measured(students, *folders, "--teacher", tiny_encoder, *options)
    whole, halved = report["students"]
    assert (whole["pool"], halved["pool"]) == ([], [0])
    assert set(whole["over_first"].values()) == {1.0}
    assert halved["over_first"]["online_bytes"] == halved["online_bytes"] / whole["online_bytes"] < 1
    own, other = whole["own_kind"], whole["other_kind"]
    assert own["spearman_random"] > max(0.99, halved["own_kind"]["spearman_random"])
    assert min(own["same_nearest"], own["cosine"], other["cosine"]) > 0.95
    assert (own["refused"], report["texts"], report["other"]) == (0, 24, "imdb")
    (head,) = whole["heads"].values()
    assert abs(head["teacher"] - head["student"]) < 0.1
    costs, worth, heads = students.show(report)
    assert (len(costs.rows), len(worth.rows), len(heads.rows)) == (2, 4, 2)


def test_texts_that_are_not_there_are_one_line(measured, tiny_encoder, table, folders, capsys):
    arguments = [str(folders[0]), "--teacher", str(tiny_encoder), "--data", str(table), "--other", "", "--least", "500"]
    assert students.main(arguments) == 1
    assert "0 texts have 500 tokens; ask for fewer with --least" in capsys.readouterr().err
