"""Each pass keeps what the graph means, on real numbers, and does what it is for."""

from collections import Counter
from functools import cache

import pytest
import torch
from blindformer.approximations import approximate, calibrate
from blindformer.models.graph.graph import Builder, Node, order
from blindformer.models.graph.passes import PASSES, optimise
from blindformer.models.graph.passes.linears import even_rows, fold_affines, fuse_linears
from blindformer.models.graph.passes.masks import mask_values
from blindformer.models.graph.passes.rewrite import merge_equal
from blindformer.models.graph.passes.rows import needed_rows
from blindformer.models.graph.passes.scalars import fold_scalars
from blindformer.models.graph.ranges import run
from blindformer.models.lowering.export import export
from blindformer.models.lowering.lower import lower
from blindformer.tests.models.conftest import batches, build, make

NAMES = ["bert", "bert-eager", "distilbert", "electra", "gpt2", "llama", "vit", "mpnet"]


@cache
def lowered(name: str, plan: str) -> tuple[Node, ...]:
    """The graph before any pass; its client nodes carry the values of a padded example."""
    model, inputs = build(name), batches(name)
    approximate(model, calibrate(model, inputs, plan))
    exported, names = export(model, inputs[1])
    return tuple(lower(exported, inputs[1], names, names).outputs)


@cache
def optimised(name: str, plan: str) -> tuple[Node, ...]:
    return tuple(optimise(list(lowered(name, plan))))


def values(outputs):
    by_node = run(order(outputs))
    return [by_node[id(node)] for node in outputs]


def same(before, after) -> bool:
    pairs = zip(values(before), values(after), strict=True)
    return all(a.shape == b.shape and (a - b).abs().max() < 1e-9 * max(1.0, float(a.abs().max())) for a, b in pairs)


def kept(one, *outputs: Node) -> list[Node]:
    """What a pass makes of the outputs; it means the same."""
    after = one(list(outputs))
    assert same(outputs, after)
    return after


def count(outputs) -> Counter:
    return Counter(node.op for node in order(outputs))


def readers(outputs, node) -> list[Node]:
    return [n for n in order(outputs) if any(a is node for a in n.args)]


@pytest.mark.parametrize(
    ("name", "plan"), [*((name, "faithful") for name in NAMES), *((name, "fast") for name in ("bert", "gpt2", "vit"))]
)
def test_every_pass_keeps_the_meaning(name, plan):
    before = list(lowered(name, plan))
    original = values(before)
    for one in PASSES:
        after = one(before)
        assert same(before, after), one.__name__
        assert all(torch.equal(a, b) for a, b in zip(values(before), original, strict=True)), "the input is untouched"
        before, original = after, values(after)
    assert same(lowered(name, plan), optimised(name, plan))


@pytest.mark.parametrize("name", NAMES)
def test_shapes_are_those_of_the_values(name):
    nodes = order(optimised(name, "faithful"))
    by_node = run(nodes)
    assert all(node.shape == tuple(by_node[id(node)].shape) for node in nodes)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "vit"])
def test_query_key_and_value_become_one_product(name):
    outputs = optimised(name, "fast")
    for node in order(outputs):
        linears = [r for r in readers(outputs, node) if r.op == "linear" and r.args[0] is node]
        assert len(linears) <= 1, "no value is read by two linears"


def test_a_bert_layer_has_four_linears():
    """QKV, the attention's output, and two of the feed-forward; a pooler."""
    assert count(lowered("bert", "fast"))["linear"] == 2 * 6 + 1
    assert count(optimised("bert", "fast"))["linear"] == 2 * 4 + 1


@pytest.mark.parametrize("name", ["bert", "distilbert", "electra", "albert"])  # the eager path adds it to the scores
def test_the_padding_mask_never_meets_the_scores(name):
    """It multiplies values [keys, features] instead of weights [queries, keys]."""
    outputs = optimised(name, "fast")
    masked = [n for n in order(outputs) if n.op == "mul_private" and n.args[1].owner == "client"]
    assert masked
    assert all(n.args[1].shape[-1] == 1 for n in masked), "one bit per key, for all its features"


def test_numerators_and_denominators_come_out_of_one_product():
    before, after = lowered("bert", "fast"), mask_values(merge_equal(list(lowered("bert", "fast"))))
    assert count(before)["matmul"] == count(after)["matmul"] == 4
    wide = [n for n in order(after) if n.op == "matmul" and n.shape[-1] == 8 + 1]
    assert len(wide) == 2


@pytest.mark.parametrize("name", ["bert", "bert-eager", "gpt2", "vit"])  # of llama, rotations stand between
def test_no_public_factor_is_left_on_a_matrix_product(name):
    """1 / sqrt(d) sinks into the query's weights."""
    for node in order(optimised(name, "fast")):
        if node.op == "mul_public" and node.args[1].shape == ():
            inner = node.args[0]
            assert inner.op != "matmul" or max(inner.shape[-2:]) == 1


def weight(value, name="w"):
    return Node("weight", [], {}, tuple(value.shape), "server", "", name, value)


def client(value, name="x", **attributes):
    return Node("client", [], attributes, tuple(value.shape), "client", "", name, value)


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def shared(*shape):
    return Builder().node("mul_private", client(draw(*shape)), weight(draw(*shape)), shape=shape)


def test_equal_computations_are_done_once():
    b, x = Builder(), shared(3, 4)
    y = b.add(b.mul(b.neg(x), b.neg(x)), b.less(x, 0.5))
    z = b.add(y, b.less(x, 0.5))
    after = merge_equal([z])
    assert count([z])["less"] == 2
    assert count(after)["less"] == 1
    assert count(after)["neg"] == 1
    assert same([z], after)
    other = b.add(b.less(x, 0.5), b.less(x, 0.25))
    assert count(merge_equal([other]))["less"] == 2


def test_a_norm_s_affine_goes_into_the_linear_after_it():
    b = Builder()
    gain, bias, w = weight(draw(4), "g"), weight(draw(4), "b"), weight(draw(4, 5))
    x = b.add(b.mul(shared(3, 4), gain), bias)
    out = b.matmul(x, w)
    (after,) = kept(fold_affines, out)
    assert after.op == "add"
    assert after.args[0].args[0].op == "mul_private", "the inner value"
    assert after.args[0].args[1].name == "g@w"
    assert count([after])["mul_private"] == 1


def test_an_affine_that_another_reader_needs_stays_for_it():
    b = Builder()
    x = b.add(b.mul(shared(3, 4), weight(draw(4), "g")), weight(draw(4), "b"))
    outputs = [b.matmul(x, weight(draw(4, 5))), x]
    after = kept(fold_affines, *outputs)
    assert after[1].op == "add"


def test_linears_of_one_value_fuse_in_order_of_their_columns():
    b, x, y = Builder(), shared(3, 4), shared(3, 6)
    outputs = [b.matmul(x, weight(draw(4, n), f"w{n}")) for n in (2, 5, 1)] + [b.matmul(y, weight(draw(6, 2), "v"))]
    after = kept(fuse_linears, *outputs)
    assert count(outputs)["linear"] == 4
    assert count(after)["linear"] == 2
    fused = [n for n in order(after) if n.op == "linear" and n.shape == (3, 8)]
    assert fused[0].args[1].name == "w2+w5+w1"


def test_one_weight_that_two_values_read_stays_right():
    b, x, y, w = Builder(), shared(3, 4), shared(2, 4), weight(draw(4, 4))
    kept(fuse_linears, b.matmul(x, w), b.matmul(y, w), b.matmul(x, weight(draw(4, 2), "v")))


def uneven(owner: str = "public", rows: tuple[float, ...] = (1.0, 2.0**-6, 0.5, 0.0)) -> Node:
    node = weight(draw(4, 3) * torch.tensor(rows)[:, None], "w")
    node.owner = owner
    return node


def test_rows_of_a_public_weight_behind_a_norm_become_alike():
    b = Builder()
    normed = b.mul(shared(3, 4), shared(3, 1))
    (after,) = kept(even_rows, b.matmul(normed, uneven()))
    x, even = after.args
    tops = even.value.abs().amax(1)
    assert float(tops[:3].max() / tops[:3].min()) < 4
    assert float(tops[3]) == 0
    assert x.op == "mul_public"
    assert set(x.args[1].value.log2().tolist()) <= {-float(bits) for bits in range(9)}, "powers of two, at most 1"


def test_rows_stay_where_evening_them_costs_or_gains_nothing():
    b, x = Builder(), shared(3, 4)
    normed = b.mul(x, shared(3, 1))
    quantised = uneven()
    quantised.value = torch.round(quantised.value * 2**12) / 2**12
    for value, known in ((normed, uneven("server")), (normed, uneven(rows=(1, 0.5, 1, 1))), (normed, quantised),
                         (x, uneven())):  # fmt: skip
        assert count(kept(even_rows, b.matmul(value, known)))["mul_public"] == 0


def test_factors_float_through_products_and_sink_into_weights():
    b = Builder()
    x, y = shared(3, 4), b.add(b.matmul(shared(5, 6), weight(draw(6, 4))), weight(draw(4), "bias"))
    out = b.scale(b.matmul(b.scale(x, 0.3), b.transpose(y, 0, 1)), 1.7)
    after = kept(fold_scalars, out)
    assert count(after)["mul_public"] == 0


def test_a_mean_is_subtracted_exactly():
    """x - mean(x) over 6 features is (3 x - sum / 2) / 3: integers and powers of two, then one factor."""
    b, x = Builder(), shared(2, 6)
    out = b.sub(x, b.scale(b.sum(x, [-1], True), 1 / 6))
    after = kept(fold_scalars, out)
    constants = [float(n.args[1].value) for n in order(after) if n.op == "mul_public"]
    assert all(c == 3.0 or abs(c - 2 / 3) < 1e-12 for c in constants)


def test_a_mask_with_other_readers_is_left_alone():
    b = Builder()
    weights, mask, v = shared(1, 2, 3, 4), client((draw(1, 1, 1, 4) > 0).double(), "m"), shared(1, 2, 4, 5)
    masked = b.mul(weights, mask)
    outputs = [b.matmul(masked, v), b.add(masked, masked)]
    kept(mask_values, *outputs)
    moved = kept(mask_values, b.matmul(b.mul(weights, mask), v))
    assert not any(n.op == "mul_private" and n.args[1].name == "m" for n in order(moved))


def test_rows_that_nobody_reads_are_not_computed():
    """Through a norm, whose input has two readers that agree, and a sum with a weight by row."""
    b = Builder()
    x = b.add(b.matmul(shared(3, 4), weight(draw(4, 6))), weight(draw(3, 6)))
    normed = b.sub(x, b.sum(x, [-1], True))
    out = b.select(b.polynomial(normed, [0.0, 1.0, 1.0]), 0, 1)
    (after,) = kept(needed_rows, out)
    assert {n.shape for n in order([after]) if n.op in ("linear", "polynomial", "sub")} == {(1, 6)}


def test_columns_that_no_head_reads_are_not_computed():
    """One of so many features of each head: a product with a part of the weight's columns."""
    b = Builder()
    y = b.add(b.matmul(shared(3, 5), weight(draw(5, 12))), weight(draw(12)))
    heads = b.permute(b.reshape(y, (3, 2, 6)), [1, 0, 2])
    (after,) = kept(needed_rows, b.slice(heads, -1, 0, 6, 3))
    assert [n.shape for n in order([after]) if n.op == "linear"] == [(3, 4)]
    (after,) = kept(needed_rows, b.slice(heads, -1, 0, 4, 2))  # not the same of each head's
    assert [n.shape for n in order([after]) if n.op == "linear"] == [(3, 12)]


def test_attention_for_one_query_reads_all_keys():
    b, x = Builder(), shared(1, 5, 4)
    scores = b.matmul(x, b.transpose(x, -1, -2))
    out = b.slice(b.matmul(b.mul(scores, scores), x), -2, 0, 1)
    (after,) = kept(needed_rows, out)
    assert [n.shape for n in order([after]) if n.op == "matmul"] == [(1, 1, 5), (1, 1, 4)]


@pytest.mark.parametrize("other", [(0, 0, 2), (1, 0, 1)])
def test_readers_that_do_not_agree_get_all_of_it(other):
    b = Builder()
    x = b.polynomial(shared(3, 4), [0.0, 1.0, 1.0])
    outputs = [b.slice(x, 0, 0, 1), b.slice(x, *other)]
    after = kept(needed_rows, *outputs)
    assert [n.shape for n in order(after) if n.op == "polynomial"] == [(3, 4)]


def test_a_classifier_s_last_layer_works_for_one_token():
    program = make("bert-labels", "fast").compiled.program
    shapes = {i.path: i.shape for i in program.instructions if i.op == "linear"}
    assert shapes["bert.encoder.layer.0.output.dense"] == (1, 8, 32)
    assert shapes["bert.encoder.layer.1.output.dense"] == (1, 1, 32)
