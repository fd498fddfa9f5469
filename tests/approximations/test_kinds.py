"""A kind is one file: CONTRIBUTING's, beside the others in a copy of the package, and nothing else changes."""

import json

import pytest
from blindformer.approximations import Plan
from blindformer.tests.contributing import run_copy
from blindformer.tests.shared.tiny import save_tokenizer, tiny_config

EXAMPLE = """
import json, sys
import torch
import torch.nn.functional as F
import blindformer as bf
from blindformer.approximations import Plan, find
from blindformer.approximations.plan import PRESETS
from blindformer.models.data import Examples
from blindformer.models.distillation.ranges import RangePenalty
from blindformer.models.judging.search import CHOICES, search
from blindformer.tests.shared.threads import in_threads

torch.set_num_threads(1)
folder, written, figures = sys.argv[1], Plan.load(sys.argv[2]), {}
cut = find("mish", "cut")
x = torch.linspace(*cut.domain, 100_001, dtype=torch.float64)
figures["errors"] = [cut.error, (cut.function(x, **cut.constants(None, {})) - F.mish(x)).abs().max().item()]

class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)
    def forward(self, x):
        return {"mish": F.mish(self.linear(x) * 4)}

torch.manual_seed(0)
model, batches = Small().eval(), [{"x": torch.randn(1, 4, 8)} for _ in range(4)]
plan = bf.calibrate(model, batches)
(site,) = plan.ranges
expected = cut.function(model.linear(batches[0]["x"]) * 4, **plan.fits[site])
for protocol in ("clear", "beaver"):
    with in_threads(bf.make_private(model, plan, protocol, calibration=batches)) as private:
        figures[protocol] = (private(**batches[0])["mish"] - expected).abs().max().item()

penalty = RangePenalty()
penalty(site, "mish", torch.tensor([[10.0, -9.0]]))
figures["penalty"] = penalty.take().item()
try:
    bf.compile(model, batches, "he")
except bf.BlindformerError as error:
    figures["he"] = str(error)
figures["presets"] = {name: Plan.preset(name).to_json() for name in PRESETS}
figures["written"] = [written.mish.name, written.constants("gelu", "a/gelu", "a")[1]]

loaded, texts = bf.load(folder), ["good", "bad red", "not good", "the blue"]
price = lambda compiled: {"seconds": len(compiled.program.instructions)}
result = search(loaded, Examples(texts, [0, 1, 0, 1]), texts, price, length=4, choices={"mish": CHOICES["mish"]})
figures["search"] = sorted({s.change.label for s in result.sensitivities})
print(json.dumps(figures))
"""


@pytest.fixture(scope="module")
def report(contributed, tmp_path_factory):
    """What the example prints, run on a copy of the package with one more file, and a model that needs it."""
    from transformers import BertForSequenceClassification

    folder = tmp_path_factory.mktemp("kind")
    BertForSequenceClassification(tiny_config(num_labels=2, hidden_act="mish")).save_pretrained(folder / "model")
    save_tokenizer(folder / "model")
    Plan(fits={"a/gelu": {"cut": 3.0, "period": 8.0, "terms": [1.0, 2.0]}}).save(folder / "plan.json")
    done = run_copy(contributed, "-c", EXAMPLE, folder / "model", folder / "plan.json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_new_kind_is_approximated_calibrated_compiled_and_run(report):
    stated, worst = report["errors"]
    assert 0.75 * stated < worst <= stated
    assert report["clear"] < 2**-10
    assert report["beaver"] < 2**-10
    assert report["penalty"] == 5.0
    assert report["search"] == ["cut (degree 6)"]


def test_presets_and_plans_that_do_not_know_a_new_kind_stay_as_they_are(report):
    chosen = {}
    for name, text in report["presets"].items():
        fields = json.loads(text)
        chosen[name] = fields.pop("mish")["name"]
        assert fields == json.loads(Plan.preset(name).to_json())
    assert chosen == {"faithful": "cut", "fast": "cut", "he": "exact", "exact": "exact"}
    assert report["he"].endswith("approximate the model first, or choose a mish in the plan")
    assert report["written"] == ["cut", {"cut": 3.0, "period": 8.0, "terms": [1.0, 2.0]}]
