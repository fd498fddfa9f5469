"""A model's own code, `generate` included, runs as its authors wrote it, on delegated layers."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from blindformer.bench.architecture_models import architectures
from blindformer.models.delegated.rows import DelegatedRows
from blindformer.protocols.errors import PeerGone
from blindformer.tests.models.conftest import build
from torch import nn
from transformers import GenerationConfig

IDS = torch.tensor([[5, 9, 33, 12, 7]])


@pytest.fixture
def causal(delegate):
    return lambda name: delegate(build(name), input_ids=IDS, use_cache=False)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True, "top_k": 20}, {"use_cache": False}])
def test_generate_gives_the_models_own_tokens(causal, name, options):
    delegated = causal(name)
    chosen = GenerationConfig(max_new_tokens=6, min_new_tokens=6, pad_token_id=0, **options)
    torch.manual_seed(3)
    wanted = delegated.module.generate(IDS, chosen)
    torch.manual_seed(3)
    with delegated.runner.installed(delegated.carrier):
        answer = delegated.runner.module.generate(IDS, chosen)
    assert torch.equal(answer, wanted)
    assert len(delegated.carrier.sequences) == 6
    assert delegated.carrier.ended == ["end"] * 6
    rows = [sequence[0][1] for sequence in delegated.carrier.sequences]
    beams = options.get("num_beams", 1)
    grown = [beams * (5 + number) for number in range(6)]
    assert rows[1:] == (grown[1:] if options.get("use_cache") is False else [beams] * 5)


def test_passes_with_one_token_are_rehearsed_once(causal):
    delegated = causal("llama")
    chosen = GenerationConfig(max_new_tokens=9, min_new_tokens=9, pad_token_id=0)
    with delegated.runner.installed(delegated.carrier):
        delegated.runner.module.generate(IDS, chosen)
    assert len(delegated.carrier.sequences) == 9
    assert len(set(delegated.carrier.sequences)) == 2
    assert len(delegated.runner._steps) == 2


def test_an_encoder_that_generate_calls_by_itself_is_a_pass(delegate):
    from blindformer.bench.architecture_models import architectures

    module = architectures()["T5"].build()
    batch = architectures()["T5"].batches()[0]
    delegated = delegate(module, **batch)
    delegated.check(**batch)
    texts = {name: batch[name] for name in ("input_ids", "attention_mask")}
    chosen = GenerationConfig(max_new_tokens=5, min_new_tokens=5, pad_token_id=0, decoder_start_token_id=0)
    wanted = delegated.module.generate(**texts, generation_config=chosen)
    before = len(delegated.carrier.sequences)
    with delegated.runner.installed(delegated.carrier):
        answer = delegated.runner.module.generate(**texts, generation_config=chosen)
    assert torch.equal(answer, wanted)
    assert len(delegated.carrier.sequences) == before + 1 + 5


def test_what_was_in_the_place_of_forward_comes_back(causal):
    delegated = causal("gpt2")
    module = delegated.runner.module
    assert "forward" not in module.__dict__
    with delegated.runner.installed(delegated.carrier):
        assert "forward" in module.__dict__
    assert "forward" not in module.__dict__
    other = lambda *given, **named: None  # noqa: E731
    module.forward = other
    with pytest.raises(RuntimeError), delegated.runner.installed(delegated.carrier):
        raise RuntimeError
    assert module.forward is other


def test_threads_run_one_model_at_once(delegate):
    module = build("bert")
    batches = [{"input_ids": torch.randint(3, 99, (1, 8))} for _ in range(4)]
    delegated = delegate(module, **batches[0])
    carriers = [copy.copy(delegated.carrier) for _ in batches]
    answers: list[Any] = [None] * len(batches)

    def run(number: int) -> None:
        carrier = carriers[number]
        carrier.sequences, carrier.ended = [], []
        answers[number] = delegated.runner.run(carrier, delegated.runner.module, **batches[number])

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with torch.no_grad():
        for batch, answer in zip(batches, answers, strict=True):
            torch.testing.assert_close(answer.pooler_output, module(**batch).pooler_output, atol=1e-3, rtol=0)


class Layered(nn.Module):
    """The error of a model's own comes through, and its pass is over."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(40, 40), nn.Linear(40, 40)

    def forward(self, x):
        x = self.layer(x)
        if not torch.is_grad_enabled() and x.isnan().any():
            raise ZeroDivisionError
        return self.last(x)


def test_an_error_in_the_midst_of_a_pass_abandons_it(delegate):
    x = torch.randn(1, 4, 40)
    delegated = delegate(Layered(), x=x)
    delegated.check(x=x)
    with pytest.raises(ZeroDivisionError):
        delegated.run(x=x * torch.nan)
    assert delegated.carrier.ended == ["end", "abandon"]
    delegated.check(x=x)


@pytest.mark.parametrize("at", ["begin", "call"])
def test_a_refused_pass_reads_nothing_again_and_a_broken_one_reads_all(causal, monkeypatch, at):
    """The cache of one that was refused before its first call holds no part of it."""
    delegated = causal("llama")
    carrier = delegated.carrier
    rows = DelegatedRows(delegated.runner, lambda run: run(carrier), 64)
    rows.read([5, 9, 33])
    with monkeypatch.context() as patch:
        patch.setattr(carrier, at, lambda *given: (_ for _ in ()).throw(PeerGone("server", "is gone", "ask again")))
        carrier.refused = at == "begin"
        with pytest.raises(PeerGone):
            rows.read([12])
    answer = rows.read([12])
    assert carrier.sequences[-1][0][1] == (1 if at == "begin" else 4)
    wanted = delegated.module(torch.tensor([[5, 9, 33, 12]])).logits[0, -1:]
    assert (answer - wanted).norm() <= 2e-4 * wanted.norm()
    assert rows.sequence(1) == tuple((group, 1) for group, _ in carrier.sequences[0])


@pytest.mark.parametrize("sizes", [(3, 1, 1, 1, 1, 1, 1), (2, 5, 1, 3)], ids=["one by one", "several at once"])
def test_gemma_3_reads_a_text_past_its_window_as_float32_does(delegate, sizes):
    """A window of 4 tokens, an embedding that is scaled and tied, norms of queries and keys, which amplify roundings of
    random weights. What is forgotten is read again, too."""
    ids = torch.tensor([[5, 9, 12, 40, 7, 61, 33, 8, 2, 77, 15]])[:, : sum(sizes)]
    delegated = delegate(architectures()["Gemma3"].build(), input_ids=ids, use_cache=False)
    assert not any("embed" in name for names in delegated.names for name in names)
    rows = DelegatedRows(delegated.runner, lambda run: run(delegated.carrier), 64)
    wanted = delegated.module(input_ids=ids, use_cache=False).logits[0]
    outputs = [rows.read(part.tolist()) for part in ids[0].split(sizes)]
    for output, exact in zip(torch.cat(outputs), wanted, strict=True):
        assert (output - exact).norm() < 1e-3 * exact.norm()
    rows.crop(2)
    assert (rows.read(ids[0, 2:].tolist())[-1] - wanted[-1]).norm() < 1e-3 * wanted[-1].norm()


def test_a_head_that_is_delegated_scores_only_what_is_wanted(causal):
    delegated = causal("llama")
    rows = DelegatedRows(delegated.runner, lambda run: run(delegated.carrier), 64)
    ids = IDS[0].tolist()
    wanted = delegated.module(IDS).logits[0]
    head = len(delegated.shapes) - 1
    assert delegated.names[head] == ["lm_head.weight"]
    for last, scored in ((1, 1), (2, len(ids)), (None, len(ids))):
        rows.crop(0)
        scores = rows.read(ids, last)
        assert delegated.carrier.sequences[-1][-1] == (head, scored)
        assert (scores - wanted[-len(scores) :]).norm() <= 2e-4 * wanted.norm()
    assert rows.sequence(len(ids))[-1] == (head, 1)
