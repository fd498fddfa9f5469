"""Inputs that are louder than calibration's are refused by the client before anything is sent; all others are right."""

from __future__ import annotations

import blindformer as bf
import pytest
import torch
import transformers as tf
from blindformer.models.artifacts.client import load_client
from blindformer.models.artifacts.writing import save
from blindformer.models.compile import compile
from blindformer.models.loudness import InputOutOfRange, loudest
from blindformer.tests.models.conftest import build
from blindformer.tests.protocols.programs import Case
from blindformer.tests.shared.threads import in_threads

HUBERT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "conv_dim": (16, 16),
    "conv_kernel": (10, 3), "conv_stride": (5, 4), "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip


def hubert():
    torch.manual_seed(0)
    return tf.HubertModel(tf.HubertConfig(**HUBERT)).eval()


MODELS = {
    "inputs_embeds": (lambda: build("bert"), (2, 12, 32)),
    "pixel_values": (lambda: build("vit"), None),
    "input_values": (hubert, (1, 400)),
}


def drawn(name, seed):
    model, shape = MODELS[name]
    config = model().config
    shape = shape or (2, config.num_channels, config.image_size, config.image_size)
    return {name: torch.randn(shape, generator=torch.Generator().manual_seed(seed)).clamp(-2.5, 2.5)}


@pytest.fixture(scope="module", params=MODELS)
def case(request):
    model = MODELS[request.param][0]()
    return request.param, model, compile(model, [drawn(request.param, seed) for seed in range(6)], "faithful")


def test_answers_are_right_as_far_as_inputs_may_go(case):
    name, model, compiled = case
    ((_, _, most),) = compiled.levels.values()
    assert 1.5 <= most <= 2
    for factor in (0.6, 1.0, 0.99 * most):
        batch = {name: drawn(name, 9)[name] * factor}
        with torch.no_grad():
            expected = model(**batch).last_hidden_state
        got = compiled.decode(Case.of(compiled, batch).clear())["last_hidden_state"]
        assert (got - expected).abs().max() < 2.0**-8 * expected.abs().max()


def test_a_louder_input_is_refused_by_its_name_and_factor(case, tmp_path):
    name, _, compiled = case
    save(compiled, tmp_path)
    part = load_client(tmp_path).for_length()
    for model in (compiled, part):
        for factor in (2.5, 4.0, 64.0):
            with pytest.raises(InputOutOfRange, match=rf"^input {name}: is {factor:g} times as loud as in calibrat"):
                model.encode_inputs({name: drawn(name, 9)[name] * factor})
        steady = torch.full_like(drawn(name, 9)[name], 2.4)  # no peak, and all of it as loud as one
        with pytest.raises(InputOutOfRange, match=rf"^input {name}: is 2\.\d+ times as loud as in calibration "):
            model.encode_inputs({name: steady * (1 - 2 * (torch.arange(steady.shape[-1]) % 2))})


def test_only_the_client_has_the_levels(case, tmp_path):
    save(case[2], tmp_path)
    files = [file for file in tmp_path.rglob("tensors.json") if "levels" in file.read_text()]
    having = {file.relative_to(tmp_path).parts[0] for file in files}
    assert having == {"client"}


@pytest.mark.parametrize("protocol", ["clear", "beaver"])
def test_a_session_that_refuses_an_input_answers_the_next(protocol):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2)).eval()
    inputs = [{"input": torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))} for seed in range(4)]
    with in_threads(bf.make_private(model, protocol=protocol, calibration=inputs)) as private:
        private(inputs[0]["input"])
        assert private.report is not None
        before = private.report
        with pytest.raises(InputOutOfRange, match=r"^input input: is \d.* times as loud as in calibration "):
            private(4 * inputs[0]["input"])
        assert private.report is before
        assert (private(inputs[1]["input"]) - model(inputs[1]["input"])).abs().max() < 2.0**-8


def test_token_ids_have_no_level():
    compiled = compile(build("bert"), {"input_ids": torch.ones(1, 4, dtype=torch.int64)}, "fast")
    assert not compiled.levels


@pytest.mark.parametrize(("wrong_from", "most"), [(1.2, 1.5), (2.0, 1.5), (2.2, 1.5), (4.5, 3.0), (99.0, 8.0)])
def test_a_program_says_how_loud_an_input_may_be(wrong_from, most):
    assert loudest(lambda factor: 1.0 if factor >= wrong_from else 0.01) == most


def test_models_without_norms_bear_more():
    """How much depends on the weights: of forty models, half bear 8 times, and two no more than 2."""
    inputs = [{"input": torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))} for seed in range(4)]
    factors = []
    for seed in range(5):
        torch.manual_seed(seed)
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
        ((_, _, factor),) = compile(model, inputs, "faithful").levels.values()
        factors.append(factor)
    assert sorted(factors)[2] >= 4
