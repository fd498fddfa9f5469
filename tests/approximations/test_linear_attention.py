"""Attention by sums over keys: the same numbers in either order, whatever the mask, and the same on secrets."""

import math
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
import transformers as tf
from blindformer.approximations import Choice, Plan, PlanError, approximate, calibrate
from blindformer.approximations.linear_attention import features, read_features, squares, sums_of_values
from blindformer.models.compile import compile
from blindformer.models.program.pricing import price
from blindformer.tests.models import conftest as models
from blindformer.tests.patience import PATIENCE
from blindformer.tests.protocols.harness import run_beaver
from blindformer.tests.protocols.programs import Case
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

PLAN = Plan.preset("fast").replace(name="fast-linear", softmax=Choice(name="linear", options={"rank": 2}))
CONSTANTS = {"shift": 5.0, "rank": 2, "epsilon": 0.0}
SCALE = 0.5


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(0, 2**32), st.sampled_from([1, 2, 3, 4]), st.sampled_from([0.0, 0.5]))
def test_features_have_the_squares_as_their_products(seed, rank, epsilon):
    """(x + c)^2 + epsilon of the scores of the features that are read, times what is the same for all."""
    q, k = drawn(5, 4, seed=seed), drawn(6, 4, seed=seed + 1)
    constants = {**CONSTANTS, "rank": rank, "epsilon": epsilon}
    of_queries, of_keys = features(q, k, SCALE, **constants)
    numerators = squares(q, k, SCALE, **constants)
    assert torch.allclose(of_queries @ of_keys.T, numerators)
    read = q[:, read_features(4, rank)] @ k[:, read_features(4, rank)].T * SCALE
    assert torch.allclose(numerators * 16, (read + 4.0) ** 2 + epsilon)  # c / scale is 8, the power of two near 10
    assert of_queries.shape[-1] == (len(read_features(4, rank)) + 1) * (len(read_features(4, rank)) + 2) // 2


@given(st.integers(0, 2**32), st.sampled_from([1, 2]))
def test_both_orders_of_summation_agree(seed, groups):
    """Also where several heads of queries share one of keys, and where a text keeps no key at all."""
    q, k, v = (
        drawn(3, 2 * groups, 20, 4, seed=seed),
        drawn(3, 2, 20, 4, seed=seed + 1),
        drawn(3, 2, 20, 4, seed=seed + 2),
    )
    keep = (torch.arange(20) < torch.tensor([20, 4, 0])[:, None]).double()[:, None, None]

    def summed(mask: torch.Tensor | None, exporting: bool) -> tuple[torch.Tensor, torch.Tensor]:
        with mock.patch("torch.compiler.is_exporting", return_value=exporting):
            return sums_of_values(q, k, v, mask, SCALE, True, 0.0, **CONSTANTS)

    for mask in (None, keep, keep.expand(3, 1, 20, 20)):
        for one, other in zip(summed(mask, True), summed(mask, False), strict=True):
            assert torch.allclose(one, other)


def test_padding_and_length_change_nothing():
    model = approximate(models.build("bert"), PLAN)
    ids = torch.randint(3, 100, (1, 7), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    with torch.no_grad():
        alone = model(input_ids=ids, attention_mask=mask)[0]
        padded = model(input_ids=F.pad(ids, (0, 5)), attention_mask=F.pad(mask, (0, 5)))[0][:, :7]
    assert (alone - padded).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_tokens_that_only_look_back_see_nothing_ahead(name):
    model = approximate(models.build(name), PLAN)
    ids = torch.randint(3, 90, (1, 8), generator=torch.Generator().manual_seed(1))
    other = ids.clone()
    other[0, -1] += 1
    with torch.no_grad():
        first, second = (model(input_ids=x)[0] for x in (ids, other))
    assert torch.equal(first[:, :-1], second[:, :-1])
    assert not torch.equal(first[:, -1], second[:, -1])


def test_a_window_is_kept_where_a_layer_has_one():
    """ModernBERT's second layer sees two tokens to each side, its first all of them."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 100, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    config = tf.ModernBertConfig(**sizes, num_hidden_layers=2, pad_token_id=0, local_attention=4)
    model = approximate(tf.ModernBertModel(config).eval(), PLAN)
    ids = torch.randint(3, 100, (1, 9), generator=torch.Generator().manual_seed(3))
    calls = []
    local = model.layers[1].attn
    hook = local.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    with torch.no_grad():
        model(input_ids=ids)
        hook.remove()
        (((x, *rest), kwargs),) = calls
        far = x.clone()
        far[0, 8] += 1.0
        before, after = (local(value, *rest, **kwargs)[0][0] for value in (x, far))
    assert torch.equal(before[:6], after[:6])
    assert not torch.equal(before[7], after[7])


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: models.build("bert-eager"), "attn_implementation='sdpa'"),
        (
            lambda: tf.T5EncoderModel(
                tf.T5Config(vocab_size=100, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4)
            ),
            "scores",
        ),
    ],
)
def test_models_that_add_to_scores_are_told_so(model, words):
    with pytest.raises(PlanError, match=words) as caught, torch.no_grad():
        approximate(model().eval(), PLAN)(input_ids=torch.ones(1, 6, dtype=torch.long))
    assert "\n" not in str(caught.value)


class Windowed(nn.Module):
    """Tokens see those up to two places away, which nothing about the module tells."""

    def __init__(self):
        super().__init__()
        self.into = nn.Linear(8, 8)

    def forward(self, input, shown):
        places = torch.arange(input.shape[1])
        near = (places[:, None] - places).abs() <= 2
        x = self.into(input)
        return F.scaled_dot_product_attention(x, x, x, attn_mask=near & shown.bool()[:, None])


def test_a_window_that_calibration_did_not_show_is_kept():
    """The texts of calibration are shorter than it; what is compiled is not."""
    torch.manual_seed(0)
    x, mask = torch.randn(1, 30, 8), torch.ones(1, 30, dtype=torch.long)
    short = {"input": x, "shown": mask * (torch.arange(30) < 3)}
    compiled = compile(Windowed().eval(), [short], calibrate(Windowed().eval(), [short], PLAN))
    far = x.clone()
    far[0, 29] += 1.0
    (before,), (after,) = (models.clear(compiled, {"input": v, "shown": mask}).values() for v in (x, far))
    assert (before - after)[0, :27].abs().max() < 2.0**-10 < (before - after)[0, 29].abs().max()


class Paired(Windowed):
    def forward(self, input, pairs):
        x = self.into(input)
        return F.scaled_dot_product_attention(x, x, x, attn_mask=pairs)


def test_a_mask_of_pairs_that_showed_all_may_hide_some_later():
    torch.manual_seed(0)
    x, some = torch.randn(1, 100, 8), torch.ones(1, 100, 100).tril() > 0
    model = Paired().eval()
    compiled = compile(model, [{"input": x, "pairs": torch.ones_like(some)}], PLAN)
    batch = {"input": x, "pairs": some}
    expected = models.answer(model, batch, compiled.plan)
    (got,) = models.clear(compiled, batch).values()
    assert (got - expected).abs().max() < 2.0**-9


@pytest.mark.parametrize("masked", [False, True])
def test_a_text_encoder_that_looks_back_does_so_on_secrets(masked):
    """CLIP's: its modules do not say that they are causal, an argument does, and a trace holds a mask instead."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 100, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    model = tf.CLIPTextModel(tf.CLIPTextConfig(**sizes, num_hidden_layers=1, max_position_embeddings=16)).eval()
    ids = torch.randint(3, 90, (1, 12), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": ids, "attention_mask": (torch.arange(12)[None] < 12 - 3 * masked).long()}
    compiled = compile(model, [batch], PLAN, outputs=["last_hidden_state"])
    expected = models.answer(model, batch, compiled.plan)["last_hidden_state"]
    rows = batch["attention_mask"][0].bool()
    assert (models.clear(compiled, batch)["last_hidden_state"] - expected)[0, rows].abs().max() < 2.0**-9


@pytest.mark.parametrize("options", [{"rank": 0}, {"rank": float("inf")}, {"shift": -1.0}, {"epsilon": -1.0}])
def test_options_that_no_attention_has_are_refused(options):
    plan = PLAN.replace(softmax=Choice(name="linear", options=options))
    with pytest.raises(PlanError, match=r"^softmax linear: .*: give a"), torch.no_grad():
        approximate(models.build("bert"), plan)(input_ids=torch.ones(1, 6, dtype=torch.long))


@pytest.mark.parametrize("name", ["bert", "distilbert", "vit", "gpt2"])
def test_clear_is_the_student_and_beaver_is_clear(name):
    model, batches = models.build(name), models.batches(name)
    compiled = compile(model, batches, calibrate(model, batches, PLAN), name=name)
    expected = models.answer(model, batches[0], compiled.plan)
    ours = models.clear(compiled, batches[0])
    private = compiled.decode(run_beaver(Case.of(compiled, batches[0]), timeout=PATIENCE).outputs)
    for output, own in ours.items():
        assert (own - expected[output]).abs().max() < 2.0**-10
        assert (private[output] - own).abs().max() < 2.0**-9


def test_cost_grows_with_the_length_and_not_with_its_square():
    torch.manual_seed(0)
    config = tf.BertConfig(
        vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
        max_position_embeddings=512,
    )  # fmt: skip
    model = tf.BertModel(config, add_pooling_layer=False).eval()
    prices = []
    for length in (64, 256):
        batch = {
            "input_ids": torch.randint(3, 100, (1, length)),
            "attention_mask": torch.ones(1, length, dtype=torch.long),
        }
        prices.append(price(compile(model, [batch], PLAN).program))
    short, long = prices
    assert long.online_bytes < 4.3 * short.online_bytes
    assert long.offline_bytes < 4.3 * short.offline_bytes
    assert math.isclose(long.rounds, short.rounds, abs_tol=8)
