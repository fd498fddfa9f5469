"""Public weights: what every computing party may hold is multiplied on shares; what is private never gets into it."""

from functools import cache

import pytest
import torch
import transformers as tf
from blindformer.models.compile import compile
from blindformer.models.lowering.values import LoweringError
from blindformer.models.program.pricing import price
from blindformer.models.program.program import Instruction
from blindformer.models.program.widths import place_widths
from blindformer.models.weight_owners import WeightOwners, WeightsError, weight_owners
from blindformer.tests.models.conftest import batches, build, clear
from torch import nn

MIXED = {"public": ["*"], "private": ["classifier.*", "*.query.*"]}


def compiled_with(name, weights, **options):
    return compile(build(name), batches(name), weights=weights, **options)


@cache
def all_private(name, plan="faithful"):
    return compiled_with(name, "private", plan=plan)


@pytest.mark.parametrize(
    ("name", "embedding"),
    [pytest.param("mpnet", "client", marks=pytest.mark.slow), ("gpt2", "private"), ("vit-labels", "client")],
)
def test_public_weights_are_constants_cost_nothing_to_set_up_and_take_fewer_rounds(name, embedding):
    private = compiled_with(name, "private", embedding=embedding)
    opened = compiled_with(name, "public", embedding=embedding, plan=private.plan)
    assert opened.weights == {}
    assert opened.program.weight_shapes() == {}
    assert set(opened.program.all_public()) >= set(private.program.all_released())
    before, after = price(private.program), price(opened.program)
    assert after.setup_bytes == 0 < before.setup_bytes
    assert after.rounds < before.rounds
    assert after.up + after.down < before.up + before.down
    batch = batches(name)[0]
    wanted = clear(private, batch)
    for output, value in clear(opened, batch).items():
        torch.testing.assert_close(value, wanted[output], atol=5e-3, rtol=0)


def test_they_are_held_as_narrow_as_they_are():
    opened = compiled_with("bert-labels", "public")
    factors = opened.program.factors()
    assert factors
    assert {opened.constants[name].dtype for name in factors} <= {torch.int8, torch.int16, torch.int32}
    assert {value.dtype for name, value in opened.constants.items() if name not in factors} == {torch.int64}


def test_private_weights_leave_a_program_as_it_was():
    program = all_private("bert-labels").program
    assert "public" not in program.as_written()
    linears = [item for item in program.instructions if item.op == "linear"]
    assert linears, "of which none is by a constant, so that no bit is free"
    assert all(program.instructions[item.args[1]].op == "weight" for item in linears)


@pytest.mark.parametrize(("source", "ring"), [("weight", 56), ("constant", 60)])
def test_a_rescale_behind_a_public_weight_asks_for_all_bits_that_its_opening_carries(source, ring):
    """28 bits are dropped of 52, and 56 of the result are read: 4 bytes are opened. With 32 bits in them corrections
    take 3 bytes instead of 4; with a private weight the dealer's product would take 8 instead of 7."""
    items = [
        Instruction(op="input", attributes={"name": "x"}, shape=(4, 4)),
        Instruction(op=source, attributes={"name": "w"}, shape=(4, 4)),
        Instruction(op="linear", args=(0, 1), shape=(4, 4)),
        Instruction(op="add", args=(2, 2), shape=(4, 4)),
        Instruction(op="rescale", args=(3,), attributes={"bits": 28, "ring": 64}, shape=(4, 4)),
        Instruction(op="reveal", args=(4,), attributes={"to": "client"}, shape=(4, 4)),
    ]
    placed = place_widths(items, {3: 52, 4: 52, 5: 52})
    assert (placed[4].attributes["ring"], placed[4].width) == (ring, 56)
    assert placed[2].width == ring


class LargeFeature(nn.Module):
    """Of eight features one is always large, and is read by small weights, as in language models."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.second = nn.Linear(4, 8), nn.RMSNorm(8), nn.Linear(8, 3, bias=False)
        with torch.no_grad():
            self.first.bias[0] = 200.0
            self.second.weight[:, 1:] *= 128
            self.second.weight[:, 0] /= 8

    def forward(self, x):
        return self.second(self.norm(self.first(x)))


def test_what_a_large_feature_stands_beside_is_not_lost_in_its_rounding():
    torch.manual_seed(1)
    model, inputs, errors = LargeFeature().eval(), [{"x": torch.randn(1, 5, 4)} for _ in range(3)], {}
    for weights in ("private", "public"):
        compiled = compile(model, inputs, weights=weights)
        (answer,) = clear(compiled, inputs[0]).values()
        errors[weights] = float((answer - model(**inputs[0])).abs().max())
    assert errors["public"] < 2**-12 < errors["private"] / 4, errors  # an answer is right to 2**-12


def with_norms():
    torch.manual_seed(0)
    config = tf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3)
    return tf.ResNetForImageClassification(config).eval(), [{"pixel_values": torch.rand(1, 3, 16, 16)}]


def encoder():
    return build("bert-labels"), batches("bert-labels")


class Hiding(nn.Module):
    """Attention behind a mask that is a buffer of its own."""

    hide: torch.Tensor
    gain: torch.Tensor

    def __init__(self):
        super().__init__()
        self.rows = nn.Linear(8, 8)
        self.register_buffer("hide", torch.zeros(6, 6).masked_fill(torch.rand(6, 6) < 0.4, -1e9).fill_diagonal_(0))
        self.register_buffer("gain", torch.rand(6, 6))

    def forward(self, x):
        rows = self.rows(x)
        return (rows @ rows.transpose(-1, -2) + self.hide * self.gain).softmax(-1) @ rows


def hiding():
    torch.manual_seed(0)
    return Hiding().eval(), [{"x": torch.rand(1, 6, 8)}]


@pytest.mark.parametrize(
    ("make", "patterns"),
    [
        (hiding, ["hide"]),
        (encoder, ["classifier.*"]),
        (encoder, ["*.query.*"]),  # beside keys and values, which are read by one product with it
        (encoder, ["*LayerNorm.weight"]),  # before products that it could be folded into
        (encoder, ["*LayerNorm.bias", "*embeddings.word*"]),
        (with_norms, ["*normalization.weight"]),  # behind convolutions
        (with_norms, ["*convolution.weight"]),
    ],
)
def test_no_public_number_depends_on_a_private_parameter(make, patterns):
    """With the same ranges the program, which has a digest of each public number, is the same for other parameters."""
    model, batch = make()
    options = {"weights": {"public": ["*"], "private": patterns}, "embedding": "private"}
    chosen = weight_owners(options["weights"]).of(model)
    private = [
        value.data for name, value in model.state_dict().items() if name not in chosen and value.is_floating_point()
    ]
    for parameter in private:
        parameter.add_(torch.rand_like(parameter) / 9)  # ones would be encoded without fractional bits
    like = compile(model, batch, **options)
    first = compile(model, batch, like.plan, like=like, **options)
    for parameter in private:
        parameter.mul_(1 - 2**-10)
    second = compile(model, batch, like.plan, like=like, **options)
    assert second.program.hash() == first.program.hash()
    assert any(not torch.equal(second.weights[name], value) for name, value in first.weights.items())


class IntegerHead(nn.Module):
    """A quantised weight, a factor, which answers are kept, and an order of them."""

    weight: torch.Tensor
    step: torch.Tensor
    keep: torch.Tensor
    order: torch.Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.randint(-127, 128, (3, 4), dtype=torch.int8))
        self.register_buffer("step", torch.tensor(3))
        self.register_buffer("keep", torch.tensor([True, False, True]))
        self.register_buffer("order", torch.tensor([2, 0, 1]))

    def forward(self, x):
        return (nn.functional.linear(x, self.weight.float()) * self.step).masked_fill(~self.keep, 0.0)


class SavedIntegers(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(4, 4), IntegerHead()

    def forward(self, x):
        return self.head(self.body(x))


MIXED_HEAD = {"public": ["body.*"], "private": ["head.*"]}


@pytest.mark.parametrize("weights", ["private", MIXED_HEAD])
def test_integers_that_are_saved_are_weights(weights):
    model, batch = SavedIntegers().eval(), [{"x": torch.ones(2, 4)}]
    like = compile(model, batch, weights=weights)
    first = compile(model, batch, like.plan, weights=weights, like=like)
    (answer,) = clear(first, batch[0]).values()
    torch.testing.assert_close(answer, model(**batch[0]), atol=0.05, rtol=0)
    model.head.weight.neg_()
    model.head.step.add_(1)  # as large, to a power of two
    model.head.keep.logical_not_()
    second = compile(model, batch, like.plan, weights=weights, like=like)
    assert second.program.hash() == first.program.hash()
    changed = {n for n, value in first.weights.items() if not torch.equal(second.weights[n], value)}
    assert len(changed) == 3
    assert not any(name.startswith("head") for name in second.program.all_public())


def test_a_program_does_not_tell_a_saved_index_that_is_private(monkeypatch):
    model, batch = SavedIntegers().eval(), [{"x": torch.ones(2, 4)}]
    monkeypatch.setattr(SavedIntegers, "forward", lambda self, x: self.body(x)[:, self.head.order])
    for weights in ("private", MIXED_HEAD):
        first = compile(model, batch, weights=weights)
        model.head.order.copy_(model.head.order.flip(0))
        assert compile(model, batch, first.plan, weights=weights).program.hash() == first.program.hash()


@pytest.mark.parametrize("use", [lambda h, i: h.index_fill(1, i, 0.0), lambda h, i: h ** i[0]])
def test_saved_indices_that_a_program_would_show_are_refused_unless_they_are_open(use, monkeypatch):
    model, batch = SavedIntegers().eval(), [{"x": torch.ones(2, 4)}]
    monkeypatch.setattr(SavedIntegers, "forward", lambda self, x: use(self.body(x), self.head.order))
    for weights in ("private", MIXED_HEAD):
        with pytest.raises(LoweringError) as refused:
            compile(model, batch, weights=weights)
        assert "tensor(" not in str(refused.value)
        assert any(way in str(refused.value) for way in ("--weights NAME=public", "a power whose exponent is a secret"))


def test_open_indices_rearrange(monkeypatch):
    model, batch = SavedIntegers().eval(), [{"x": torch.ones(2, 4)}]
    monkeypatch.setattr(SavedIntegers, "forward", lambda self, x: self.body(x)[:, self.head.order])
    for weights in ("public", {"public": ["head.order"], "rest": "private"}):
        opened = compile(model, batch, weights=weights)
        assert "head.order" in opened.program.all_public()
        (answer,) = clear(opened, batch[0]).values()
        torch.testing.assert_close(answer, model(**batch[0]), atol=5e-3, rtol=0)


@pytest.mark.parametrize(
    ("name", "private", "named", "rest"),
    [
        ("bert-labels", "*.position_embeddings.weight", r"bert\.embeddings\.position_embeddings\.weight", "private"),
        ("gpt2", "lm_head.*", r"lm_head\.weight", "public"),  # tied: clients would get it under another name
    ],
)
def test_what_is_named_private_is_released_to_nobody(name, private, named, rest):
    weights = {"private": [private], "rest": rest}
    with pytest.raises(WeightsError, match=rf"^{named}: .*; compile with --embedding private$"):
        compiled_with(name, weights)
    assert compiled_with(name, weights, embedding="private").program.released == ()


class Sinusoids(nn.Module):
    """Places in the clear, times a number of the server's."""

    table: torch.Tensor

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.gain = nn.Embedding(9, 8), nn.Parameter(torch.tensor(0.7))
        self.register_buffer("table", torch.sin(torch.arange(72.0)).reshape(9, 8), persistent=False)
        self.head = nn.Linear(8, 3)

    def forward(self, ids):
        return self.head(self.words(ids) + self.gain * nn.functional.embedding(ids, self.table))


def test_with_a_private_embedding_nothing_is_released():
    model, batch = Sinusoids().eval(), {"ids": torch.tensor([[1, 5, 8, 0]])}
    assert set(compile(model, batch).program.released) == {"words.weight", "gain"}
    hidden = compile(model, batch, embedding="private")
    assert hidden.program.released == ()
    (answer,) = clear(hidden, batch).values()
    torch.testing.assert_close(answer, model(**batch), atol=5e-3, rtol=0)


def test_what_is_private_stays_private_and_the_answer_is_the_same():
    name, batch = "bert-labels", batches("bert-labels")[0]
    private, mixed = all_private(name), compiled_with(name, MIXED)
    assert not any(name.startswith("classifier") or ".query." in name for name in mixed.program.all_public())
    assert 0 < len(mixed.program.weight_shapes()) < len(private.program.weight_shapes())
    torch.testing.assert_close(clear(mixed, batch)["logits"], clear(private, batch)["logits"], atol=5e-3, rtol=0)


@pytest.mark.parametrize("private", ["classifier.*", "*.query.*", "*output.LayerNorm*", "*.0.*"])
def test_a_private_weight_and_an_open_one_have_names_of_their_own(private):
    """Plan `fast` folds both; what is folded has no name of the model's, and may have the same shape and scale."""
    name, batch = "bert-labels", batches("bert-labels")[0]
    alone = all_private(name, "fast")
    mixed = compiled_with(name, {"public": ["*"], "private": [private]}, plan=alone.plan)
    sources = [*mixed.weights, *mixed.constants, *mixed.program.client, *mixed.program.known]
    assert len(set(sources)) == len(sources)
    assert mixed.weights
    torch.testing.assert_close(clear(mixed, batch)["logits"], clear(alone, batch)["logits"], atol=0.02, rtol=0)


NAMES = ["embed.weight", "layers.0.q.weight", "layers.0.lora_a.weight", "head.weight"]


@pytest.mark.parametrize(
    ("weights", "opened"),
    [
        ("private", None),
        ("public", NAMES),
        ({"public": ["*"], "private": ["*lora*"]}, [NAMES[0], NAMES[1], NAMES[3]]),
        ({"public": ["layers.*"], "rest": "private"}, NAMES[1:3]),
        ({"private": ["head*"], "rest": "public"}, NAMES[:3]),
        ({"public": ["layers.*"], "private": ["*lora*", "embed*", "head*"]}, [NAMES[1]]),  # private wins
        ({"public": [], "rest": "private"}, None),
        ({"public": ["*"], "private": ["*"]}, None),
    ],
)
def test_patterns_choose(weights, opened):
    assert weight_owners(weights).parameters(NAMES) == (None if opened is None else set(opened))


@pytest.mark.parametrize(
    ("weights", "why"),
    [
        ("open", "weights='open': choose private or public, or give patterns of names by either"),
        ({"public": ["model.*"], "rest": "private"}, "no parameter is called 'model.*'; the model has embed.weight, "),
        ({"private": ["*adapter*"], "rest": "private"}, r"no parameter is called '\*adapter\*'"),
        ({"public": ["*"], "private": ["*adapter*"]}, r"no parameter is called '\*adapter\*'"),
        ({"public": ["layers.*"]}, "no pattern matches embed.weight, head.weight; add one"),
        ({"public": "*"}, "give patterns by owner, such as "),
        ({"open": ["*"]}, "give patterns by owner, such as "),
        ({"public": ["*"], "rest": "secret"}, "give patterns by owner, such as "),
    ],
)
def test_a_choice_that_does_not_fit_says_why(weights, why):
    with pytest.raises(WeightsError, match=why):
        weight_owners(weights).parameters(NAMES)


def test_of_a_parameter_with_two_names_both_have_to_be_open():
    model = build("gpt2")
    table, head = "transformer.wte.weight", "lm_head.weight"
    assert {table, head} <= WeightOwners(rest="public").of(model)
    assert not {table, head} & WeightOwners(("*",), ("lm_head.*",)).of(model)


def test_what_a_module_computes_from_all_parameters_is_open_if_all_of_them_are():
    names = ["model.head", "model.embed", "prefix_key_0"]
    assert WeightOwners(rest="public").within("model.", ["prefix_*"]).parameters(names) == set(names)
    for chosen in (WeightOwners(("*",), ("head",)), WeightOwners(("embed",), rest="private")):
        assert chosen.within("model.", ["prefix_*"]).parameters(names) == {"model.embed"}
