"""A public encoder with a company's head: the base is delegated, the head a private session, and answers are right."""

from __future__ import annotations

import blindformer as bf
import pytest
import torch
from blindformer.models.delegated.part import part_of_module
from blindformer.models.loading.load import load
from blindformer.models.open_weights import open_weights
from blindformer.parties.client.delegated_private import PrivateHeadModel, private_head
from torch import Tensor, nn

HEAD = {"private": ["classifier.*"], "rest": "public"}
TEXTS = ["is it good ?", "the red one", "what is lost", "not my password"]


@pytest.fixture(scope="module")
def classifier(tiny_classifier):
    return load(tiny_classifier)


def private_of(loaded, **options):
    batches = [loaded.encode(text, 16) for text in TEXTS]
    return bf.make_private(loaded, weights=HEAD, calibration=batches, **options)


def test_answers_are_the_models_and_each_part_is_run_by_its_protocol(classifier):
    asked = classifier.encode(TEXTS[0], 16)
    with torch.no_grad():
        wanted = classifier.model(**asked).logits
    with private_of(classifier) as private:
        assert isinstance(private, PrivateHeadModel)
        for _ in range(2):
            answer = private(**asked)
            torch.testing.assert_close(answer.logits, wanted, atol=2e-3, rtol=0)
        whole, base, head = (one.report for one in (private, private.base, private.head))
        assert whole is not None
        assert base is not None
        assert head is not None
        assert (whole.protocol, whole.rounds) == ("delegated+beaver", base.rounds + head.rounds)
        assert "learns nothing about the text" in whole.learned["server"]
        assert "server, of the head" in whole.learned
        assert private.head.compiled is not None
        assert {name.partition("@")[0] for name in private.head.compiled.weights} == {"weight", "bias"}


def test_no_number_of_the_head_is_in_what_the_base_is_made_of(classifier):
    """Two heads on one base have one manifest, and the base's parameters are shared, not copied."""
    asked, digests = classifier.encode(TEXTS[0], 16), set()
    for factor in (1.0, 3.0):
        private = PrivateHeadModel(classifier.model, "faithful", bf.make_private(classifier.model)._local, "classifier")
        with torch.no_grad():
            private.model.classifier.weight *= factor  # type: ignore[union-attr]
        part = part_of_module(private.base.model, lambda base=private.base.model: base(**asked))
        names = [name for name, _ in private.base.model.named_parameters()]
        assert not [name for name in names if name.startswith("classifier")]
        assert not [name for name in part.model.manifest.parameters if name.startswith("classifier")]
        digests.add(part.model.manifest.digest)
        own = dict(classifier.model.named_parameters())
        assert all(value is own[name] for name, value in private.base.model.named_parameters())
    assert len(digests) == 1
    with torch.no_grad():
        classifier.model.classifier.weight /= 3.0


class Net(nn.Module):
    """`last`: what comes behind the head."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body, self.head, self.last = nn.Linear(48, 48), nn.Linear(48, 3), last

    def forward(self, x: Tensor) -> Tensor:
        if self.last:
            return self.head(torch.tanh(self.body(x)))
        return torch.tanh(self.body(self.head(x).repeat(1, 16)))


def test_public_layers_behind_the_head_make_it_one_private_session():
    x = torch.randn(2, 48, generator=torch.Generator().manual_seed(0)) / 4
    weights = {"private": ["head.*"], "rest": "public"}
    for last, protocol in ((True, "delegated+beaver"), (False, "beaver")):
        module = Net(last).eval()
        with bf.make_private(module, weights=weights, calibration=[{"x": x}] * 2) as private, torch.no_grad():
            torch.testing.assert_close(private(x), module(x), atol=2e-3, rtol=0)
            assert private.report is not None
            assert private.report.protocol == protocol


def test_what_is_a_head():
    net = Net(True)
    assert private_head(net, open_weights({"private": ["head.*"], "rest": "public"})) == "head"
    for other in ({"private": ["body.*"], "rest": "public"}, {"private": ["head.bias"], "rest": "public"}, "public"):
        assert private_head(net, open_weights(other)) is None
    net.head.weight = nn.Parameter(net.body.weight[:3].clone())
    net.body.register_parameter("same", net.head.weight)  # a tied parameter is private under both names
    assert private_head(net, open_weights({"private": ["head.*"], "rest": "public"})) is None
