"""make_private: the model's own face, the right answer, a report, and teaching errors."""

from __future__ import annotations

import shutil
import warnings
from importlib.util import find_spec

import blindformer as bf
import pytest
import torch
from blindformer.parties.client.private import PrivateError
from blindformer.tests.shared.threads import in_threads
from blindformer.tests.shared.tiny import tiny_config
from torch.utils import _pytree as pytree
from transformers import BertModel

TEXTS = ("how is my password ?", "not good , bad !", "the password is lost .", "what a good red !")


@pytest.fixture(scope="module")
def batches(loaded):
    return [loaded.encode(text, 16) for text in TEXTS]


@pytest.mark.parametrize("protocol", ["clear", "beaver"])
def test_it_answers_like_the_model(loaded, batches, protocol):
    with bf.make_private(loaded.model, protocol=protocol, calibration=batches) as private:
        for batch in batches[:2]:
            answer = private(**batch)
            with torch.no_grad():
                expected = loaded.model(**batch)
            assert type(answer) is type(expected)
            torch.testing.assert_close(answer.logits, expected.logits, atol=0.02, rtol=0)
        report = private.report
    assert report.protocol == protocol
    assert report.to_dict()["online_s"] > 0
    assert "known" not in str(report)
    if protocol == "beaver":
        assert report.rounds > 0
        assert sum(layer.online_bytes for layer in report.layers) == report.online_bytes
        assert sum(layer.offline_bytes for layer in report.layers) == report.offline_bytes
        estimate = bf.estimate(private.compiled, "wan")
        assert (estimate.rounds, estimate.online_bytes) == (report.rounds, report.online_bytes)
        assert estimate.offline_bytes == report.offline_bytes
        assert {"server", "dealer", "client", "public"} <= set(report.learned)
        assert "bert" in str(report)


class Several(torch.nn.Module):
    """Places, bits, and one number, beside what they are of."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([0.5, -1.0, 0.25]))

    def forward(self, x):
        h = x * self.weight
        return {
            "h": h,
            "place": h.argmax(-1),
            "mask": h > 0,
            "sum": h.sum(),
            "any": (h > 9).any(),
            "first": h[0].argmax(),
        }


@pytest.mark.parametrize("protocol", ["clear", "beaver", "crypten"])
def test_outputs_keep_their_type_and_may_be_one_number(protocol):
    inputs = [{"x": torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))} for seed in range(3)]
    private = bf.make_private(Several(), protocol=protocol, calibration=inputs)
    with in_threads(private) if protocol == "beaver" else private:
        answer = private(**inputs[1])
    for name, expected in Several()(**inputs[1]).items():
        assert (answer[name].dtype, answer[name].shape) == (expected.dtype, expected.shape)
        assert (answer[name].float() - expected.float()).abs().max() < 2.0**-10


@pytest.mark.slow
@pytest.mark.skipif(find_spec("crypten") is None, reason="crypten is not installed")
def test_it_answers_among_several_parties(loaded, batches):
    private = bf.make_private(loaded.model, protocol="crypten", parties=3, calibration=batches)
    with private:
        answer = private(**batches[0])
        pids = private._session.processes  # pyright: ignore
    with torch.no_grad():
        torch.testing.assert_close(answer.logits, loaded.model(**batches[0]).logits, atol=0.02, rtol=0)
    assert private.report.protocol == "crypten"
    assert len(pids) == 4


class Nested(torch.nn.Module):
    """Two linear maps, in a form of its own, of which a part is lost when it is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = torch.nn.Linear(4, 3), torch.nn.Linear(4, 2)

    def forward(self, x):
        outputs = {"scores": {"one": self.one(x), "two": self.two(x)}, "both": (self.one(x), [self.two(x)]), "width": 4}
        if torch.compiler.is_exporting():
            outputs["both"] = None
        return outputs


def same(answer, expected):
    assert pytree.tree_structure(answer) == pytree.tree_structure(expected)
    for one, other in zip(pytree.tree_leaves(answer), pytree.tree_leaves(expected), strict=True):
        if isinstance(other, torch.Tensor):
            torch.testing.assert_close(one, other, atol=0.02, rtol=0)
        else:
            assert one == other


def test_the_answer_has_the_models_own_form():
    """Hidden states and attentions are tuples; each tensor is in its place."""
    torch.manual_seed(0)
    model = BertModel(tiny_config(attn_implementation="eager")).eval()
    ids = torch.tensor([[2, 7, 9, 8, 3, 0]])
    batch = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    batch |= {"output_hidden_states": True, "output_attentions": True}
    private = in_threads(bf.make_private(model, calibration=[batch, batch]))
    with private, torch.no_grad():
        same(private(**batch), model(**batch))
    assert list(private.compiled.program.outputs) == [
        *("last_hidden_state", "pooler_output", "hidden_states.0", "hidden_states.1", "attentions.0")
    ]
    chosen = bf.make_private(model, protocol="clear", calibration=[batch, batch], outputs=["hidden_states.1"])
    answer = chosen(**batch)
    assert list(answer) == ["hidden_states"]
    assert answer.hidden_states[0] is None
    assert answer.hidden_states[1].shape == (1, 6, 32)


def test_nested_answers_are_whole_or_refused():
    torch.manual_seed(0)
    model, batches = Nested(), [{"x": torch.randn(2, 4)} for _ in range(4)]

    def private(**options):
        return bf.make_private(model, protocol="clear", calibration=batches, **options)(**batches[0])

    with torch.no_grad():
        same(private(outputs=["scores"]), {"scores": model(**batches[0])["scores"], "width": 4})
    lost = r"^output both\.0: is not computed .* leave it out: outputs=\['scores.one', 'scores.two'\]$"
    with pytest.raises(bf.BlindformerError, match=lost):
        private()
    with pytest.raises(bf.BlindformerError, match=r"^output score: the model returns scores\.one, .*both\.1\.0"):
        private(outputs=["score"])


@pytest.mark.parametrize("where", ["calibration", "query"])
def test_ids_outside_the_vocabulary_are_named(loaded, batches, where):
    wrong = {**batches[0], "input_ids": batches[0]["input_ids"] + 1000}
    private = bf.make_private(loaded.model, protocol="clear", calibration=[batches[1], wrong][: 2 - (where == "query")])
    with pytest.raises(bf.BlindformerError, match=r"^inputs: .*id .* own tokenizer"):
        private(**wrong)


def test_one_example_is_thin_and_said_so(loaded, batches):
    with pytest.warns(UserWarning, match="calibrating on one example"):
        private = bf.make_private(loaded.model, protocol="clear", example=batches[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        private(**batches[0])  # compiled already


def test_wrong_wishes_are_explained(loaded, batches):
    with pytest.raises(bf.BlindformerError, match="choose one of"):
        bf.make_private(loaded.model, protocol="magic")
    with pytest.raises(bf.BlindformerError, match=r"^3 parties: protocol beaver has 2; use protocol crypten$"):
        bf.make_private(loaded.model, parties=3)
    with pytest.raises(bf.BlindformerError, match=r"^parties: 1 are named"):
        bf.make_private(loaded.model, protocol="crypten", parties=1)
    with pytest.raises(PrivateError, match="dealer none: is of protocol beaver"):
        bf.make_private(loaded.model, protocol="ckks", dealer="none")
    with pytest.raises(PrivateError, match="generation: is for a language model"):
        bf.make_private(loaded.model, generation={"slots": 32})
    with pytest.raises(PrivateError, match="tokenizer: is for a bare module"):
        bf.make_private(loaded, tokenizer=loaded.processor)
    private = bf.make_private(loaded.model, protocol="clear", calibration=batches)
    good = loaded.encode("good", 16)
    for words, inputs in {
        "pad both to one length": loaded.encode("good", 8),
        "calibrate on batches of 2 rows": {name: torch.cat([value] * 2) for name, value in good.items()},
        "attention_mask: is missing, and the calibration": {"input_ids": good["input_ids"]},
        "output_attentions: no calibration batch has it": {**good, "output_attentions": True},
        "input_ids: is a list; give a tensor": {**good, "input_ids": good["input_ids"].tolist()},
        "inputs: hold no tensor": {},
    }.items():
        with pytest.raises(PrivateError, match=words) as caught:
            private(**inputs)
        assert ("one length" in str(caught.value)) == ("one length" in words)
    with pytest.raises(PrivateError, match=r"^inputs: missing a required argument: 'x'; the model takes x$"):
        bf.make_private(Nested(), protocol="clear")(y=good["input_ids"])
    with pytest.raises(bf.BlindformerError, match="network moon"):
        bf.estimate(private.prepare(batches[0]), "moon")


def test_the_models_own_arguments_in_every_form(loaded, batches, tiny_classifier):
    """By place or by name, on one batch, from a folder, what `load` gave, or a compiled module."""
    batch = batches[0]
    with torch.no_grad():
        expected = loaded.model(**batch).logits
    for model in (loaded, str(tiny_classifier), torch.compile(loaded.model)):
        private = bf.make_private(model, protocol="clear", calibration={**batch, "head_mask": None})
        with pytest.warns(UserWarning, match="calibrating on one example"):
            logits = private(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]).logits
        torch.testing.assert_close(logits, expected, atol=0.02, rtol=0)


def test_the_plan_beside_a_model_is_the_default(tiny_classifier, batches, tmp_path):
    folder = shutil.copytree(tiny_classifier, tmp_path / "student")
    bf.Plan.preset("fast").save(folder / "plan.json")
    private = bf.make_private(folder, protocol="clear", calibration=batches)
    assert private.prepare(batches[0]).plan.softmax.name == "2quad"


def test_what_cannot_be_traced_is_named():
    scripted = torch.jit.trace(torch.nn.Linear(4, 3), torch.zeros(1, 4))
    integers = torch.nn.Sequential(torch.nn.Linear(4, 3))
    integers[0].weight = torch.nn.Parameter(torch.zeros(3, 4, dtype=torch.int8), requires_grad=False)
    for model, words in {
        scripted: r"^model: is scripted \(torch.jit\).* give the module it was made from$",
        integers: r"^0: is quantised; give the floating-point model",
        torch: r"^model: is a module; give a torch module",
    }.items():
        with pytest.raises(bf.BlindformerError, match=words):
            bf.make_private(model, protocol="clear")
    with pytest.raises(bf.BlindformerError, match=r"^Linear: does not run on these inputs: mat1 and mat2 shapes"):
        bf.compile(torch.nn.Linear(4, 3), {"input": torch.zeros(1, 5)})
