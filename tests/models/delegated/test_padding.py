"""What is padded looks alike to a server: other lengths of texts, recordings, answers, and other sizes of images."""

from __future__ import annotations

from dataclasses import replace
from functools import partialmethod

import numpy as np
import pytest
import torch
from blindformer.models.delegated.part import DelegatedPart, delegated_part
from blindformer.models.delegated.rows import DelegatedRows
from blindformer.models.delegated.running import PASSES, PaddedCarrier, row_class
from blindformer.models.generation.conversation import Completion, Conversation
from blindformer.models.loading.huggingface import InputError
from blindformer.models.loading.load import load
from blindformer.tests.models.delegated.conftest import Integers
from blindformer.tests.shared.speech import RATE, tiny_whisper
from blindformer.tests.shared.tiny import TEMPLATE, byte_tokenizer, tiny_llama, tiny_marian
from torch import Tensor, nn


class Pictures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.mix = nn.Conv2d(3, 40, 4, 4), nn.Linear(40, 40)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.patches(x).relu().flatten(2).transpose(1, 2)).mean(1)


class Recordings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.frames, self.mix = nn.Conv1d(1, 40, 32, 16), nn.Linear(40, 40)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.frames(x).relu().transpose(1, 2))


def test_classes_of_rows():
    assert [row_class(rows) for rows in (1, 2, 3, 8, 9, 100, 128, 129)] == [1, 2, 4, 8, 16, 128, 128, 256]


@pytest.mark.parametrize(
    ("module", "shapes", "other"),
    [
        (Pictures(), [(1, 3, 24, 32), (1, 3, 28, 32), (1, 3, 32, 32)], (1, 3, 36, 32)),
        (Recordings(), [(1, 1, 5 * 160), (1, 1, 6 * 160)], (1, 1, 12 * 160)),
    ],
    ids=["images", "recordings"],
)
def test_sizes_of_a_class_look_alike(delegate, module, shapes, other):
    """And are answered as they are without padding, to the bit."""
    delegated = delegate(module, x=torch.randn(shapes[0]))
    plain = delegated.carrier
    for shape in [*shapes, other]:
        x = torch.randn(shape)
        (exact,) = delegated.run(x=x).values()
        delegated.carrier = PaddedCarrier(plain)
        (answer,) = delegated.run(x=x).values()
        delegated.carrier = plain
        assert torch.equal(answer, exact)
    padded = plain.sequences[1::2]
    assert len(set(plain.sequences[::2])) == len(shapes) + 1
    assert len(set(padded[:-1])) == 1
    assert padded[-1] != padded[0]


@pytest.fixture(scope="module")
def part(tmp_path_factory) -> DelegatedPart:
    return delegated_part(load(tiny_llama(tmp_path_factory.mktemp("padded"), TEMPLATE)))


def answer_of(part: DelegatedPart, text: str, even: bool = True, **options) -> tuple[Completion, list[int]]:
    """And the rows of each pass, as a server sees them. A prompt's head scores the last token alone."""
    carrier = Integers(part.model)
    padded = PaddedCarrier(carrier) if even else carrier
    rows = DelegatedRows(part.runner, lambda run: run(padded), part.room, even=even)
    reply = Conversation(part.chat, rows).say(text, **options)  # type: ignore[arg-type]
    sizes = [{count for _, count in sequence} for sequence in carrier.sequences]
    assert all(len(size) == 1 for size in sizes[1:])
    return reply, [max(size) for size in sizes]


def test_answers_of_a_multiple_look_alike(part):
    seen = []
    for text, tokens in (("Good morning", 3), ("How are you ?", 16), ("Hi, friend", 9)):
        reply, sizes = answer_of(part, text, max_new_tokens=tokens)
        plain, few = answer_of(part, text, even=False, max_new_tokens=tokens)
        assert reply.tokens == plain.tokens
        assert len(few) == tokens
        seen.append(sizes)
    assert seen == [[16] + [1] * (PASSES - 1)] * 3


def test_a_conversation_goes_on_behind_passes_that_nobody_reads(part):
    carrier = Integers(part.model)
    rows = DelegatedRows(part.runner, lambda run: run(PaddedCarrier(carrier)), part.room, even=True)
    talk, plain = (
        Conversation(part.chat, rows),
        Conversation(part.chat, DelegatedRows(part.runner, lambda run: run(Integers(part.model)), part.room)),
    )  # type: ignore[arg-type]
    for text in ("Hi", "And you?", "Well"):
        assert talk.say(text, max_new_tokens=5).tokens == plain.say(text, max_new_tokens=5).tokens
        assert talk.rows.passes % PASSES == 0
        assert talk.rows.rows == plain.rows.rows


def test_an_encoder_decoder_models_answers_are_filled_up(tmp_path):
    part = delegated_part(load(tiny_marian(tmp_path / "marian")))
    carrier = Integers(part.model)
    rows = DelegatedRows(part.runner, lambda run: run(carrier), part.room, even=True)
    inputs = dict(part.encode("ab cd").inputs)
    inputs.pop("decoder_input_ids", None)
    Conversation(part.chat, rows).write("source", inputs, max_new_tokens=4)  # type: ignore[arg-type]
    assert len(carrier.sequences) == PASSES
    assert len(set(carrier.sequences[2:])) == 1  # behind the source, and the token that keeps it


@pytest.mark.parametrize("text", ["abcabcabcabcabcabc", "the five boxing wizards"], ids=["repeats", "does not"])
@pytest.mark.parametrize("sampled", [False, True])
def test_drafts_take_as_many_rows_in_each_pass_whatever_they_guess(part, text, sampled):
    how = {"do_sample": True, "temperature": 0.7, "seed": 3} if sampled else {}
    reply, sizes = answer_of(part, text, even=False, max_new_tokens=12, prompt_lookup_num_tokens=5, **how)
    assert set(sizes[1:]) == {6}
    assert len(sizes) == len(reply.tokens) - reply.drafts_accepted
    if not sampled:
        assert reply.tokens == answer_of(part, text, even=False, max_new_tokens=12)[0].tokens


def test_drafts_of_a_small_model_are_checked_in_one_pass(part, tmp_path):
    """The model itself guesses right: each pass brings all of its drafts, and one token more."""
    small = tiny_llama(tmp_path, TEMPLATE)
    reply, sizes = answer_of(part, "Hi", even=False, max_new_tokens=17, assistant_model=small, num_assistant_tokens=3)
    assert reply.tokens == answer_of(part, "Hi", even=False, max_new_tokens=17)[0].tokens
    assert sizes[1:] == [4] * 4
    assert reply.drafts_accepted == 12


def test_a_window_ends_drafts_and_no_size_tells(tmp_path):
    """Behind it a cache cannot drop wrong drafts: what was read again for them would show them."""
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(8)
    tokenizer = byte_tokenizer(TEMPLATE)
    config = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, max_position_embeddings=256, initializer_range=0.2, sliding_window=32, eos_token_id=None,
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    part = delegated_part(load(tmp_path))
    drafts = {"assistant_model": tiny_llama(tmp_path / "another", TEMPLATE), "num_assistant_tokens": 5}
    reply, sizes = answer_of(part, "Hi", even=False, max_new_tokens=40, **drafts)
    assert reply.tokens == answer_of(part, "Hi", even=False, max_new_tokens=40)[0].tokens
    assert set(sizes[1:]) == {6}


def test_passes_that_are_made_ahead_are_padded_alike(part):
    carrier = Integers(part.model)
    rows = DelegatedRows(part.runner, lambda run: run(PaddedCarrier(carrier)), part.room)
    rows.read([5, 6, 7, 8, 9])
    whole = replace(part, pad=True)
    assert list(whole.sequences(5)) == carrier.sequences
    assert whole.sequences(5) != part.sequences(5)


@pytest.mark.parametrize("kind", ["image", "translation", "speech"])
@pytest.mark.parametrize("pad", [False, True], ids=["exact", "padded"])
def test_passes_that_are_made_ahead_are_those_of_an_answer(kind, pad, tiny_vision, pictures, tmp_path):
    """Of a model of images one; of one that writes those that begin the answer, and then one for each token."""
    makers = {"image": lambda place: tiny_vision, "translation": tiny_marian, "speech": tiny_whisper}
    part = replace(delegated_part(load(makers[kind](tmp_path / "model"))), pad=pad)
    item = {"image": pictures / "0.png", "translation": "ab cd", "speech": np.zeros(RATE, np.float32)}[kind]
    length = 32 if kind == "translation" else None
    question = part.encode(item, length)
    carrier, wanted = Integers(part.model), list(part.sequences(length))
    padded = PaddedCarrier(carrier) if pad else carrier
    if kind == "image":
        part.runner.run(padded, part.runner.module, **question.inputs)
    else:
        rows = DelegatedRows(part.runner, lambda run: run(padded), part.room)
        talk = Conversation(part.chat, rows)
        talk.write(part.source_of(question.length), question.inputs, max_new_tokens=4, min_new_tokens=4)
        wanted += list(part.sequences(1)) * 3
    assert carrier.sequences == wanted


def test_passes_whose_rows_depend_on_the_image_are_not_made_ahead(tiny_vision, monkeypatch):
    part = delegated_part(load(tiny_vision))
    with pytest.raises(InputError, match="have no lengths; leave --length out"):
        part.sequences(32)
    kind = type(part.runner.module)
    monkeypatch.setattr(kind, "forward", partialmethod(kind.forward, interpolate_pos_encoding=True))
    part.task.processor.do_resize = False
    with pytest.raises(InputError, match="depend on the image's size"):
        part.sequences(None)
