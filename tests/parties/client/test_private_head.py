"""A public encoder with a company's head: the base is delegated, the head a private session, and answers are right."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

import blindformer as bf
import pytest
import torch
from blindformer.models.artifacts.layout import versions
from blindformer.models.compile import AnswerOutOfRange
from blindformer.models.delegated.building import delegate_folder
from blindformer.models.delegated.folder import load_part
from blindformer.models.delegated.part import part_of_module
from blindformer.models.loading.load import load
from blindformer.models.weight_owners import weight_owners
from blindformer.parties.cli.app import app
from blindformer.parties.client.delegated import DelegatedSession
from blindformer.parties.client.private_head import PrivateHeadModel, private_head
from blindformer.parties.client.session import ClientError
from blindformer.parties.session.messages import LimitReached
from blindformer.tests.shared.deployment import Deployment
from torch import Tensor, nn
from typer.testing import CliRunner

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


def test_the_word_is_enough_in_python(classifier, tiny_classifier):
    asked = classifier.encode(TEXTS[0], 16)
    with torch.no_grad():
        wanted = classifier.model(**asked).logits
    batches = [classifier.encode(text, 16) for text in TEXTS]
    with bf.make_private(classifier, weights="private-head", calibration=batches) as private:
        torch.testing.assert_close(private(**asked).logits, wanted, atol=2e-3, rtol=0)
        assert private.report is not None
        assert private.report.protocol == "delegated+beaver"
    with bf.pipeline("text-classification", str(tiny_classifier), weights="private-head", lengths=[16]) as classify:
        scores = {one["label"]: one["score"] for one in classify(TEXTS[0], top_k=None)}
        names = classifier.model.config.id2label
        assert scores == pytest.approx({names[i]: p.item() for i, p in enumerate(wanted[0].softmax(0))}, abs=2e-3)
        assert classify.query(TEXTS[0]).report.protocol == "delegated+beaver"


def test_an_estimate_names_the_heads_session(call, tiny_classifier, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    words = "estimate", tiny_classifier, "--length", 16, "--format", "json", "--weights"
    prices = {owner: json.loads(call(*words, owner)[1]) for owner in ("public", "private-head")}
    base, head = prices["private-head"], prices["private-head"]["head"]
    assert base["rounds"] == prices["public"]["rounds"]  # the client computes so small a head when it is public
    with bf.pipeline("text-classification", str(tiny_classifier), weights="private-head", lengths=[16]) as classify:
        assert classify.query(TEXTS[0]).report.rounds == base["rounds"] + head["rounds"]
    assert "private head, on top" in call(*words[:4], "--weights", "private-head")[1]


def test_what_is_a_head():
    net = Net(True)
    assert private_head(net, weight_owners({"private": ["head.*"], "rest": "public"})) == "head"
    for other in ({"private": ["body.*"], "rest": "public"}, {"private": ["head.bias"], "rest": "public"}, "public"):
        assert private_head(net, weight_owners(other)) is None
    net.head.weight = nn.Parameter(net.body.weight[:3].clone())
    net.body.register_parameter("same", net.head.weight)  # a tied parameter is private under both names
    assert private_head(net, weight_owners({"private": ["head.*"], "rest": "public"})) is None


@pytest.fixture(scope="module")
def folder(tiny_classifier, tmp_path_factory):
    """What `compile --weights private-head` writes."""
    folder = tmp_path_factory.mktemp("private-head") / "head"
    words = ["compile", str(tiny_classifier), "--weights", "private-head", "--out", str(folder), "--format", "json"]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert json.loads(result.stdout)["private"] == ["classifier.weight", "classifier.bias"]
    return folder


def test_one_folder_for_each_role_serves_base_and_head_at_one_address(folder, classifier, tmp_path):
    """A text counts once, by the head's answer, and both sessions are in the receipt."""
    asked = [classifier.encode(text, 16) for text in TEXTS[:2]]
    with torch.no_grad():
        wanted = [classifier.model(**one).logits for one in asked]
    limits = {"queries_each": 2, "state": tmp_path / "counts", "store": tmp_path / "theirs"}
    with Deployment(tmp_path, folder, server=limits) as site:
        words = site.words()
        where = {"dealer": words[3], "folder": site.client_folder, "certificates": site.certificates}
        with bf.DelegatedClient(words[1], **where, length=16) as client:
            for text, logits in zip(TEXTS, wanted, strict=False):
                result = client.query(text)
                torch.testing.assert_close(result.outputs["logits"], logits, atol=2e-3, rtol=0)
                assert result.report.protocol == "delegated+beaver"
            stated = client.receipt().own.statement
            programs = {facts.program for facts in stated.facts}
            assert "all of the model but its head: the base is public" in stated.released
            with pytest.raises(LimitReached):
                client.query(TEXTS[0])
        about = [versions(folder / "client"), versions(folder / "client" / "head")]
        assert programs == {next(iter(one["programs"].values())) for one in about}
        assert "in sessions of the private head semi-honest" in site.server.ready["adversary"]
        with pytest.raises(ClientError, match="needs one that is not this side"):
            bf.DelegatedClient(words[1], **{**where, "dealer": "local"}, store=tmp_path / "mine")


def test_passes_of_the_base_are_made_ahead(folder, tmp_path):
    with Deployment(tmp_path, folder, server={"store": tmp_path / "theirs"}) as site:
        words = [str(site.client_folder), *site.words(), "--length", "16", "--store", str(tmp_path / "mine")]
        (file := tmp_path / "blindformer.toml").write_text('[client]\nuse_store = "only"\n')
        for command in (["precompute", *words, "1"], ["query", *words, TEXTS[0], "--config", str(file)]):
            result = CliRunner().invoke(app, [*command, "--format", "json"], catch_exceptions=False)
            assert result.exit_code == 0
        assert json.loads(result.stdout)["results"][0]["offline_bytes"] < 10_000  # the head's alone


def test_no_number_of_the_head_is_in_what_clients_dealer_and_base_have(folder, classifier):
    own = [classifier.model.classifier.weight.detach().numpy().tobytes()]
    encoded = (folder / "server" / "head" / "tensors.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", encoded[:8])
    own += [encoded[8 + length :]]  # as integers of the ring
    pieces = [one[at : at + 32] for one in own for at in range(0, len(one), 32)]
    pieces = [piece for piece in pieces if len(set(piece)) > 4]  # but for zeros
    assert len(pieces) > 10
    files = [file for part in ("client", "dealer", "server") for file in (folder / part).rglob("*") if file.is_file()]
    public = [file for file in files if file.parent.name != "head" or "client" in file.parts]
    assert len(public) > 10
    for file in public:
        content = file.read_bytes()
        assert not any(piece in content for piece in pieces), file
    part = load_part(folder)
    assert not [name for name, _ in part.runner.module.named_parameters() if name.startswith("classifier")]
    assert not [name for name in part.model.manifest.parameters if name.startswith("classifier")]


def test_a_head_that_reads_every_token_is_compiled_by_length(tiny_heads, tmp_path):
    tagger = load(tiny_heads("tokens"))
    delegate_folder(tagger, tmp_path / "head", head=True, lengths=[8, 16])
    assert list(load_part(tmp_path / "head").lengths) == [8, 16]
    with bf.DelegatedClient("local", folder=tmp_path / "head") as client, torch.no_grad():
        for length, text in ((8, "is it good ?"), (16, "is it good ? is it the red one ?")):
            outputs = client.query(text).outputs["logits"]
            assert outputs.shape[1] == length
            exact = tagger.model(**tagger.encode(text, length)).logits
            real = tagger.encode(text, length)["attention_mask"].bool()
            torch.testing.assert_close(outputs[real], exact[real], atol=5e-3, rtol=0)


def test_an_answer_out_of_range_shows_to_its_client_alone(folder, classifier):
    """The pass ends as any other, and the session goes on."""
    asked = classifier.encode(TEXTS[0], 16)
    with DelegatedSession(folder) as session:
        session.ask(asked).outputs()
        assert session.heads is not None
        (head,) = session.heads._sessions.values()
        ask = head.ask

        def spoilt(inputs):
            def read(rows):
                raise AnswerOutOfRange("output: is out of range")

            return replace(ask(inputs), read=read)

        head.ask = spoilt
        reply = session.ask(asked)
        with pytest.raises(AnswerOutOfRange):
            reply.outputs()
        head.ask = ask
        assert session.open
        session.ask(asked).outputs()


def test_what_has_no_private_head_is_refused(refused, tiny_causal, tiny_encoder, tiny_classifier, tmp_path):
    for model in (tiny_causal, tiny_encoder):
        assert "a private head is one part" in refused(
            "compile", model, "--weights", "private-head", "--out", tmp_path / "x"
        )
    assert f"{Path(tiny_encoder).name}: has nothing" in refused("estimate", tiny_encoder, "--weights", "private-head")
    for words in (
        ("chat", tiny_causal),
        ("up", tiny_causal),
        ("run", tiny_classifier, "hi", "--protocol", "crypten"),
    ):
        assert "private-head: is of classifiers" in refused(*words, "--weights", "private-head")
    assert not (tmp_path / "x").exists()


def test_run_takes_a_private_head(call, report_of, tiny_classifier, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    words = "run", tiny_classifier, *TEXTS[:2], "--weights", "private-head"
    result = report_of(*words)
    assert (result["protocol"], len(result["results"])) == ("delegated+beaver", 2)
    assert result["max_abs_error"] < 2e-3
    (file := tmp_path / "blindformer.toml").write_text("[client]\npad = true\n")
    assert "protocol delegated+beaver: one server and an offline dealer" in call(*words, "--config", file)[1]
