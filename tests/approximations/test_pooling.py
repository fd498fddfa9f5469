"""Fewer tokens in later layers: means of pairs, exact whatever the padding, and the same on secrets."""

import copy
import inspect

import pytest
import torch
import transformers as tf
from blindformer.approximations import Plan, PlanError, approximate, calibrate, restore
from blindformer.approximations.pooling import fewer_tokens, on_fewer
from blindformer.models.compile import compile
from blindformer.models.encrypted import circuit_for, decode_real, real_values
from blindformer.protocols.ckks.exact import Exact
from blindformer.tests.models import conftest as models
from blindformer.tests.patience import PATIENCE
from blindformer.tests.protocols.harness import run_beaver
from blindformer.tests.protocols.programs import Case
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

ENCODERS = ["bert", "bert-eager", "roberta", "distilbert", "electra", "modernbert"]


def build(name: str) -> nn.Module:
    """ModernBERT has positions that turn with the token, and windows in all layers but the first."""
    if name != "modernbert":
        return models.build(name)
    torch.manual_seed(0)
    sizes = {"vocab_size": 100, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    config = tf.ModernBertConfig(**sizes, num_hidden_layers=2, pad_token_id=0, local_attention=4)
    return tf.ModernBertModel(config).eval()


def pooling(*after: int, plan: str = "exact") -> Plan:
    return Plan.preset(plan).replace(pool=after)


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.integers(1, 3))
def test_a_token_that_is_left_is_the_mean_of_means_of_those_that_count(counts, halvings):
    values, keep = torch.randn(1, len(counts), 2).double(), torch.tensor([counts]).double()
    expected = [(value, kept) for value, kept in zip(values[0], counts, strict=True)]
    for _ in range(halvings):
        pairs = [expected[i : i + 2] for i in range(0, len(expected), 2)]
        real = [[value for value, kept in pair if kept] for pair in pairs]
        means = zip(real, pairs, strict=True)
        expected = [(sum(some) / len(some), True) if some else (pair[0][0], False) for some, pair in means]
    fewer, kept = fewer_tokens(values, keep, halvings)
    assert kept[0].bool().tolist() == [kept for _, kept in expected]
    for got, (value, kept) in zip(fewer[0], expected, strict=True):
        assert not kept or torch.allclose(got, value)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("after", [(0,), (1,), (1, 1)])
def test_an_answer_depends_on_the_tokens_and_not_on_their_padding(name, after):
    model, ids = build(name), torch.randint(3, 100, (1, 7), generator=torch.Generator().manual_seed(2))
    approximate(model, pooling(*after))
    with torch.no_grad():
        alone = model(input_ids=ids)[0]
        for width in (7, 8, 12, 13):
            padded = torch.nn.functional.pad(ids, (0, width - 7), value=1)
            mask = (torch.arange(width) < 7)[None].long()
            assert torch.allclose(model(input_ids=padded, attention_mask=mask)[0][:, :7], alone, atol=1e-5)


def test_later_layers_compute_on_fewer_tokens_and_answers_have_all():
    model, seen = models.build("bert"), []
    whole = model(**models.batches("bert")[0], output_hidden_states=True)
    approximate(model, pooling(1))
    for layer in model.encoder.layer:
        layer.output.dense.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    pooled = model(**models.batches("bert")[0], output_hidden_states=True)
    assert seen == [8, 4]
    assert torch.equal(pooled.hidden_states[1], whole.hidden_states[1])  # before the pooling nothing changes
    assert torch.equal(pooled[0][:, 0::2], pooled[0][:, 1::2])
    assert pooled[0].shape == whole[0].shape
    assert torch.equal(restore(model)(**models.batches("bert")[0])[0], whole[0])


def test_every_parameter_learns_and_a_copy_is_a_model_of_its_own():
    model = approximate(models.build("bert"), pooling(0, 1))
    other = copy.deepcopy(model)
    model(**models.batches("bert")[1])[0].square().mean().backward()
    for layer in model.encoder.layer:
        assert all(
            p.grad is not None and p.grad.abs().max() > 0 for n, p in layer.named_parameters() if "key.bias" not in n
        )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert other(**models.batches("bert")[0])[0].abs().max() > 0


@pytest.mark.parametrize(("name", "after", "plan"), [("bert-labels", (1,), "fast"), ("bert-labels", (0, 1), "faithful"),
                                                     ("distilbert-labels", (1,), "fast"), ("vit-labels", (1,), "fast"),
                                                     ("mpnet", (0,), "faithful")])  # fmt: skip
def test_private_answers_are_those_of_torch(name, after, plan):
    """With a mask that only the client knows, and of images, which have an odd number of tokens."""
    model, inputs = models.build(name), models.batches(name)
    if name == "mpnet":
        with pytest.raises(PlanError, match="pool: this model's layers read position_bias of every token"):
            calibrate(model, inputs, pooling(*after, plan=plan))
        return
    calibrated = calibrate(model, inputs, pooling(*after, plan=plan))
    compiled = compile(model, inputs, calibrated)
    for number, batch in enumerate(inputs):
        case = Case.of(compiled, batch)
        approximated = models.answer(model, batch, calibrated)["logits"]
        clear = compiled.decode(case.clear())["logits"]
        assert (clear - approximated).abs().max() < 2.0**-9
        if number == 1:
            private = compiled.decode(run_beaver(case, timeout=PATIENCE).outputs)["logits"]
            assert (private - clear).abs().max() < 2.0**-9


def test_encrypted_answers_are_those_of_torch():
    """Of the circuit on real numbers, which ciphertexts compute but for noise."""
    torch.manual_seed(0)
    small = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    model = tf.BertForSequenceClassification(tf.BertConfig(**{**models._SIZES, **small}, num_labels=3)).eval()
    inputs = models.batches("bert-labels")
    calibrated = calibrate(model, inputs, pooling(1, plan="he"))
    compiled = compile(model, inputs, calibrated, outputs=["logits"])
    values = real_values(compiled.program, compiled.encode_inputs(inputs[1]))
    got = decode_real(compiled.program, Exact(circuit_for(compiled)[0], values).run())["logits"]
    assert (got - models.answer(model, inputs[1], calibrated)["logits"]).abs().max() < 0.02


@pytest.mark.parametrize(
    ("name", "after", "message"),
    [
        ("bert", (3, 1), "pool 3, 1: give numbers of layers in their order, as 2, 4"),
        ("bert", (-1,), "pool.0: Input should be greater than or equal to 0"),
        ("bert", (2,), "plan exact: pools tokens after 2 layers, and BertModel has 2; pool after at most 1"),
        ("gpt2", (1,), "plan exact: pools tokens, and GPT2LMHeadModel writes texts token by token; leave pool out"),
        ("llama", (1,), "plan exact: pools tokens, and LlamaForCausalLM writes texts token by token; leave pool out"),
        ("albert", (1,), "plan exact: pools tokens between layers, and AlbertModel has no list of layers; leave pool"),
    ],
)
def test_what_cannot_be_pooled_is_refused(name, after, message):
    with pytest.raises(PlanError, match=f"^{message}"):
        approximate(models.build(name), pooling(*after))


def test_a_mask_that_only_looks_back_is_found_when_it_is_seen():
    """The model does not say it; a mask of neighbours, and one of padding, are none."""
    layer, x = nn.Identity(), torch.randn(1, 6, 4)
    signature = inspect.signature(lambda hidden_states, attention_mask=None: hidden_states)
    ones = torch.ones(1, 1, 6, 6, dtype=torch.bool)
    padded = ones & (torch.arange(6) < 4)
    call = lambda mask: on_fewer(lambda x, **more: x, signature, 1, None, (x,), {"attention_mask": mask})  # noqa: E731
    for mask in (ones, padded, ones.tril(1).triu(-1)):
        assert call(mask)[0].shape == x.shape
    for mask in (ones.tril(), padded.tril()):
        with pytest.raises(PlanError, match=r"^pool: this model's tokens only look back, and a mean would look ahead"):
            call(mask)
    with pytest.raises(PlanError, match=r"^pool: a mask \[1, 5\] is not one of 6 tokens"):
        call(torch.ones(1, 5))
    with pytest.raises(PlanError, match=r"^pool: this model's layers do not read \[texts, tokens, features\]"):
        on_fewer(layer, signature, 1, None, (x[0],), {})
