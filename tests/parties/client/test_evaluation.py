"""A model judged in torch, in fixed point and in private sessions, and the page that shows it."""

import json

import pytest
import torch
from blindformer.approximations import calibrate
from blindformer.models.compile import AnswerOutOfRange
from blindformer.models.data import Dataset, Examples
from blindformer.models.judging.evaluation import EvaluationError, encode
from blindformer.models.loading.load import load
from blindformer.parties.client.evaluation import evaluate
from blindformer.parties.client.local import ClearSession
from blindformer.parties.registry import ProtocolEntry, protocols
from blindformer.tests.shared.tiny import save_tokenizer, tiny_config

WORDS = ["the", "a", "is", "it", "not", "what", "my", "password", "lost", "found", "red", "blue"]


def examples(count, seed):
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(0, len(WORDS), (count, 5), generator=generator)
    return Examples([" ".join(WORDS[i] for i in draw) for draw in draws], [i % 2 for i in range(count)])


@pytest.fixture(scope="module")
def data():
    return Dataset("words", "text", ("negative", "positive"), examples(40, 0), examples(8, 1), examples(20, 2), {})


def classifier(folder, labels, seed):
    from transformers import BertForSequenceClassification

    torch.manual_seed(seed)
    config = tiny_config(num_labels=2, id2label=labels, initializer_range=0.3)
    BertForSequenceClassification(config).save_pretrained(folder)
    save_tokenizer(folder)
    return load(folder)


@pytest.fixture(scope="module")
def found(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("judged")
    student = classifier(folder / "student", {0: "negative", 1: "positive"}, 0)
    teacher = classifier(folder / "teacher", {1: "negative", 0: "positive"}, 0)  # the same, with the classes exchanged
    head = teacher.model.classifier
    with torch.no_grad():
        head.weight.copy_(head.weight.flip(0))
        head.bias.copy_(head.bias.flip(0))
    options = {"plan": "faithful", "teacher": teacher, "protocols": ("torch", "clear", "beaver"), "private": 4}
    return evaluate(student, data, longest=16, **options)


def test_classes_are_compared_by_their_names(found):
    """The teacher is the student with its classes exchanged: they agree on every text, in every protocol."""
    for row in found.rows[1:]:
        assert row.agreement["teacher"].value == 1.0
        assert row.agreement["teacher"].low < 1.0
    assert found.row("approximated", "beaver").agreement["clear"].value == 1.0
    assert found.row("teacher", "torch").accuracy == found.row("approximated", "clear").accuracy


def test_private_texts_are_stratified_and_timed(found):
    private = found.row("approximated", "beaver")
    assert [sum(row) for row in private.confusion] == [2, 2]
    assert private.seconds["online"] > 0
    assert private.seconds["offline"] > 0
    assert private.refused == 0


def test_a_student_is_held_against_itself_with_its_plan(tmp_path, data):
    """Its weights mean nothing with exact functions, which it was not trained with."""
    student = classifier(tmp_path / "student", {0: "negative", 1: "positive"}, 0)
    calibrate(student.model, [encode(student, data.train.items, 16)], "fast").save(tmp_path / "student")
    result = evaluate(student, data, protocols=("clear",), longest=16)
    assert [(row.name, row.protocol) for row in result.rows] == [("approximated", "torch"), ("approximated", "clear")]
    assert [list(row.agreement) for row in result.rows] == [[], ["torch"]]
    assert result.row("approximated", "clear").agreement["torch"].value >= 0.9
    given = evaluate(student, data, plan="faithful", protocols=("clear",), longest=16)
    assert [row.name for row in given.rows] == ["float32", "approximated"]


def recorded(asked, refused=None):
    """The entry of a protocol whose queries take three texts, computed on `clear`. It refuses a certain input; `asked`
    has what each query was asked."""

    class Recorded(ClearSession):
        @classmethod
        def texts_of_query(cls, compiled):
            return 3

        def _ask(self, inputs, more):
            asked.append(inputs["input_ids"])
            reply = super()._ask(inputs, more)
            reply.answer.timings.online_s = 3.0
            read = reply.read

            def refusing(rows):
                if refused is not None and any(torch.equal(row, refused) for row in inputs["input_ids"][rows]):
                    raise AnswerOutOfRange("out of range")
                return read(rows)

            reply.read = refusing
            return reply

    return ProtocolEntry("crypten", "", parties=2, local=Recorded)


def test_queries_are_filled_with_texts(monkeypatch, tiny_classifier, data):
    asked = []
    monkeypatch.setitem(protocols(), "crypten", recorded(asked))
    loaded = load(tiny_classifier)
    labels = Dataset("words", "text", tuple(loaded.labels.values()), data.train, data.validation, data.test, {})
    evaluation = evaluate(loaded, labels, protocols=("clear", "crypten"), private=8, longest=16)
    row = evaluation.row("approximated", "crypten")
    assert (row.count, row.refused, row.agreement["clear"].value) == (8, 0, 1.0)
    assert [tuple(ids.shape) for ids in asked] == [(3, 16)] * 3
    assert torch.equal(asked[2][1], asked[2][2]), "the last text fills the last query"
    assert row.seconds == {"online": 1.0}, "of one text"


def test_an_answer_out_of_range_is_of_its_own_text_alone(monkeypatch, tiny_classifier, data):
    loaded = load(tiny_classifier)
    labels = Dataset("words", "text", tuple(loaded.labels.values()), data.train, data.validation, data.test, {})
    refused = encode(loaded, [data.test.items[0]], 16)["input_ids"][0]
    monkeypatch.setitem(protocols(), "crypten", recorded([], refused))
    evaluation = evaluate(loaded, labels, protocols=("clear", "crypten"), private=len(data.test), longest=16)
    row = evaluation.row("approximated", "crypten")
    assert (row.count, row.refused) == (20, 1)
    assert row.agreement["clear"].value == 19 / 20


def test_what_cannot_be_judged(tiny_encoder, tiny_classifier, data):
    with pytest.raises(EvaluationError, match="choose among torch, clear, beaver"):
        evaluate(load(tiny_classifier), data, protocols=("morse",))
    with pytest.raises(EvaluationError, match="no classifier"):
        evaluate(load(tiny_encoder), data)


@pytest.fixture
def mails(tmp_path):
    path = tmp_path / "mails.csv"
    path.write_text("id,what,queue\n" + "".join(f"{i},my {'the ' * i},{'ab'[i * i % 5 % 2]}\n" for i in range(60)))
    return path


@pytest.fixture
def trained(report_of, tiny_encoder, mails, tmp_path):
    """A trained folder, and what its command printed."""
    options = ("--text-column", "what", "--label-column", "queue", "--seed", "3")
    report = report_of("train", tiny_encoder, "--data", mails, *options, "--out", tmp_path / "out")
    return tmp_path / "out", report


def test_a_trained_folder_is_judged_by_the_rows_that_it_was_not_trained_on(call, refused, trained, mails):
    folder, report = trained
    judge = ("evaluate", folder, "--data", mails, "--protocol", "torch", "--format", "json")
    code, printed, errors = call(*judge)
    assert (code, errors) == (0, "note: mails.csv: texts from what, labels from queue\n")
    (evaluation,) = json.loads(printed)["evaluations"]
    assert evaluation["seed"] == 3
    assert evaluation["rows"][0]["accuracy"]["value"] == pytest.approx(report["accuracy"]["test"])
    assert call(*judge, "--seed", 3)[0] == 0
    why = f"mails.csv: with seed 0 rows are tested that {folder} was trained on; give seed 3, as in training"
    assert refused(*judge, "--seed", 0) == f"blindformer: {why}\n"
    assert call(*judge, "--label-column", "id")[0] == 1
