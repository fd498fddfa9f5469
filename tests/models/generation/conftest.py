"""A decoder of two layers with grouped keys, compiled once."""

import math

import pytest
import torch
import transformers
from blindformer.models.generation.decoder import Decoder
from blindformer.models.generation.parts import compile_decoder
from blindformer.models.generation.rows import KVState, run_clear
from blindformer.models.generation.sampling import PrivateDecoder
from blindformer.models.program.pricing import price
from blindformer.protocols.wire import wire_bytes
from blindformer.tests.shared.once import once

PREFIX = [1, 2, 3]
WORDS = 128


def small(kind="Llama", **more):
    """A tiny causal model with random weights, in the clear."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    if kind == "GPT2":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=WORDS, **sizes, **ends, **{"initializer_range": 0.2, "tie_word_embeddings": True, **more}
    )
    named = "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
    return getattr(transformers, named)(config).eval()


def some(count, seed=0):
    return torch.randint(3, WORDS, (count,), generator=torch.Generator().manual_seed(seed))


def spent(answer):
    """Of a pass: rounds, bytes up and down."""
    return answer.timings.rounds, answer.timings.online.sent, answer.timings.online.received


def declared(part, answer):
    """The same by the price, without the rows that were not revealed."""
    (revealed,), (item,) = answer.outputs.values(), (part.instructions[number] for number in part.outputs.values())
    left = wire_bytes(item.width) * (math.prod(item.shape) - revealed.numel())
    return price(part).rounds, price(part).up, price(part).down - left


def decoder_once(name, slots, **more):
    decoder = Decoder(small(num_key_value_heads=2), torch.tensor(PREFIX), **more).eval()
    texts = [some(72, seed) for seed in range(4)]
    return once(name, lambda: compile_decoder(decoder, texts, slots=slots, sizes=(1, 8)))


@pytest.fixture(scope="session")
def model():
    return small(num_key_value_heads=2)


@pytest.fixture(scope="session")
def compiled():
    return decoder_once("decoder", slots=96)


@pytest.fixture
def private(model, compiled):
    """It, decoding by the reference protocol."""
    rows = KVState(compiled.program, run_clear(compiled.parts, compiled.weights), PREFIX)
    return PrivateDecoder(model.config, rows, model.get_input_embeddings().weight.detach(), model.generation_config)


@pytest.fixture(scope="session")
def roomy():
    """The same, with room for 300 tokens: passes of three rooms."""
    return decoder_once("decoder-roomy", slots=300)


WINDOW = 24


@pytest.fixture(scope="session")
def windowed():
    """The same, in which each token reads the prefix and the last WINDOW tokens: of a conversation of 220."""
    return decoder_once("decoder-windowed", slots=220, window=WINDOW)
