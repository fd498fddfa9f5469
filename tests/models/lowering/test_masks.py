"""Whatever hides scores: torch, the approximated model and the program agree, or one line says why not."""

import pytest
import torch
import torch.nn.functional as F
import transformers as tf
from blindformer.approximations import calibrate
from blindformer.models.compile import compile
from blindformer.models.lowering.values import LoweringError
from blindformer.tests.models.conftest import _CAUSAL, _SIZES, _VIT, answer, batches
from blindformer.tests.patience import PATIENCE
from blindformer.tests.protocols.harness import run_beaver
from blindformer.tests.protocols.programs import Case
from torch import nn

INFINITY, LEAST = float("inf"), torch.finfo(torch.float32).min
LATER = torch.ones(6, 6, dtype=torch.bool).triu(1)


def added(number):
    return lambda m, scores, hide: scores + hide.float() * number


def written(m, scores, hide):
    scores = scores.clone()
    scores[:, LATER] = -INFINITY
    return scores


def biased(m, scores, hide):
    """A bias of the server's, one of the client's, and a mask, in one sum; then the mask again."""
    own = 0.2 * (~hide).cumsum(-1)
    return scores + (m.bias + own.masked_fill(hide, -1e4)) + hide.float() * LEAST


MASKS = {
    "-1e3 added": added(-1e3),
    "-1e4 added": added(-1e4),
    "least added": added(LEAST),
    "-1e30 taken away": lambda m, scores, hide: scores - 1e30 * hide.float(),
    "infinity added": lambda m, scores, hide: scores + torch.zeros(hide.shape).masked_fill(hide, -INFINITY),
    "filled": lambda m, scores, hide: scores.masked_fill(LATER, -INFINITY),
    "filled by the client": lambda m, scores, hide: scores.masked_fill(hide, -1e4),
    "where, and added": lambda m, scores, hide: torch.where(~LATER, scores, torch.tensor(LEAST)) + hide.float() * LEAST,
    "triangle": lambda m, scores, hide: scores + torch.triu(torch.full((6, 6), -INFINITY), 1),
    "a buffer": lambda m, scores, hide: scores + m.later,
    "written": written,
    "biased": biased,
    "scaled": lambda m, scores, hide: (scores * 3 + hide.float() * -1e9) / 3,
    "reshaped": lambda m, scores, hide: added(-1e4)(m, scores, hide).view(2, 1, 6, 6).squeeze(1),
    "rows without keys": lambda m, scores, hide: scores.masked_fill(hide | hide.transpose(-1, -2), LEAST),
}


def with_sinks(m, scores, hide):
    """A score of the server's own beside those of keys, and all of a row less its largest, as gpt-oss has them."""
    scores = torch.cat([added(-1e4)(m, scores, hide).masked_fill(LATER, LEAST), m.bias[:, :1].expand(2, 6, 1)], -1)
    return (scores - scores.max(-1, keepdim=True)[0]).softmax(-1)[..., :-1]


class Attention(nn.Module):
    def __init__(self, mask, fused=False):
        super().__init__()
        torch.manual_seed(0)
        self.query, self.key, self.value, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.bias = nn.Parameter(torch.randn(6, 6) * 0.3)
        self.register_buffer("later", torch.zeros(6, 6).masked_fill(LATER, -INFINITY))
        self.mask, self.fused = mask, fused

    def forward(self, x, hide):
        query, key, value = self.query(x), self.key(x), self.value(x)
        if self.fused:
            mask = self.mask(self, torch.zeros(2, 6, 6), hide)
            return {"y": self.out(F.scaled_dot_product_attention(query, key, value, mask))}
        scores = self.mask(self, query @ key.transpose(-1, -2) * 8**-0.5, hide)
        weights = scores if self.mask is with_sinks else scores.softmax(-1)
        return {"y": self.out(weights @ value)}


def inputs():
    """Two texts each: whole ones first, then padded ones, and one of padding alone."""
    generator = torch.Generator().manual_seed(1)
    batch = []
    for lengths in ((6, 6), (4, 3), (0, 5)):
        hide = torch.stack([torch.arange(6) >= length for length in lengths])[:, None]
        batch.append({"x": torch.randn(2, 6, 8, generator=generator), "hide": hide})
    return batch


def answers(model, given, plan):
    """(torch, the approximated model, the program on `clear`) for each batch; and what beaver is run with."""
    model.eval()
    calibrated = calibrate(model, given, plan)
    compiled = compile(model, given, calibrated)
    ours, cases = [], []
    for batch in given:
        cases.append(Case.of(compiled, batch))
        ours.append((answer(model, batch), answer(model, batch, calibrated), compiled.decode(cases[-1].clear())))
    return ours, cases, compiled


@pytest.mark.parametrize(
    ("name", "fused", "plan"),
    [
        *((name, False, "faithful") for name in MASKS),
        *((name, True, "faithful") for name in ("filled by the client", "triangle", "rows without keys")),
        *((name, False, "fast") for name in ("least added", "filled by the client", "biased", "rows without keys")),
    ],
)
def test_a_mask_is_one_however_it_is_made(name, fused, plan):
    ours, _, compiled = answers(Attention(MASKS[name], fused), inputs(), plan)
    for batch, (exact, approximated, got) in zip(inputs(), ours, strict=True):
        seen = ~batch["hide"][:, 0]
        assert (got["y"] - approximated["y"]).abs().max() < 2.0**-10
        assert plan == "fast" or (got["y"] - exact["y"])[seen].abs().max() < 0.01
    # Hiding is no comparison of secrets: those of the maximum alone are left.
    assert "less" not in compiled.program.needs()
    assert ("reached" in compiled.program.needs()) == (plan == "faithful")


@pytest.mark.parametrize("plan", ["faithful", "fast"])
def test_a_sink_beside_the_scores_is_kept(plan):
    for exact, approximated, got in answers(Attention(with_sinks), inputs(), plan)[0]:
        assert (got["y"] - approximated["y"]).abs().max() < 2.0**-10
        assert plan == "fast" or (got["y"] - exact["y"]).abs().max() < 0.01


def test_a_text_of_padding_alone_is_answered_as_torch_does():
    """Attention that sees no key gives zeros, and the other texts of the batch are not touched."""
    torch.manual_seed(0)
    model = tf.BertModel(tf.BertConfig(**_SIZES))
    whole = {key: torch.cat([item[key] for item in batches("bert")[:3]]) for key in batches("bert")[0]}
    given = [whole, {key: value.clone() for key, value in whole.items()}]
    given[1]["attention_mask"][1] = 0
    for exact, approximated, got in answers(model, given, "faithful")[0]:
        assert (got["pooler_output"] - exact["pooler_output"]).abs().max() < 0.01
        assert (got["pooler_output"] - approximated["pooler_output"]).abs().max() < 2.0**-10


_WINDOW = {**_SIZES, **_CAUSAL, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 3}
_T5 = {"vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}
FAMILIES = {
    "mistral": lambda: tf.MistralForCausalLM(tf.MistralConfig(**_WINDOW)),
    "gemma2": lambda: tf.Gemma2ForCausalLM(tf.Gemma2Config(**_WINDOW)),  # with a soft cap
    "gemma3": lambda: tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**_WINDOW)),  # a norm reads attention alone
    "modernbert": lambda: tf.ModernBertModel(tf.ModernBertConfig(**_SIZES, pad_token_id=0, local_attention=4)),
    "t5": lambda: tf.T5EncoderModel(tf.T5Config(**_T5)),
    "vit": lambda: tf.SiglipVisionModel(tf.SiglipVisionConfig(**_VIT)),
}


@pytest.mark.parametrize(
    ("name", "plan"),
    [("mistral", "fast"), ("gemma2", "faithful"), ("gemma3", "fast"), ("modernbert", "fast"),
     ("t5", "faithful"), ("vit", "faithful")],
)  # fmt: skip
def test_families(name, plan):
    torch.manual_seed(0)
    ours, cases, compiled = answers(FAMILIES[name](), batches(name), plan)
    for number, (exact, approximated, got) in enumerate(ours):
        for output, value in got.items():
            size = max(1.0, float(approximated[output].abs().max()))
            assert (value - approximated[output]).abs().max() < 2.0**-9 * size
            if plan == "faithful":
                assert F.cosine_similarity(value.flatten(), exact[output].flatten(), dim=0) > 0.999
            if number == 1:
                private = compiled.decode(run_beaver(cases[1], timeout=PATIENCE).outputs)[output]
                assert (private - value).abs().max() < 2.0**-9 * size


NOT_FOUND = "unknown form of attention mask; add it to the scores"
REFUSED = {
    "put together": lambda m, scores, hide: torch.cat([added(-1e4)(m, scores, hide)[:, :3], scores[:, 3:]], 1),
    "of secrets": lambda m, scores, hide: scores.masked_fill(scores < -0.5, -1e4),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_mask_that_cannot_be_told_is_refused(name):
    with pytest.raises(LoweringError, match=f"^model: {NOT_FOUND}"):
        compile(Attention(REFUSED[name]), inputs(), "fast")
