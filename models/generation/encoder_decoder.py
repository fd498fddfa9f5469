"""An encoder-decoder model with what feeds it, compiled to read a text or a recording and to write about it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin

from ...approximations import Plan
from ..building import typical_inputs
from ..compile import Compiled, Progress
from ..loading.calibration_texts import calibration_texts
from ..loading.huggingface import huggingface
from ..loading.load import Loaded
from ..weight_owners import Weights
from .chat import table_of
from .cross import CrossDecoder
from .decoder import GenerationError, attention_kept
from .parts import compile_cross, size_of
from .seq2seq import Seq2Seq, prefixes

SLOTS = 128
SIZES = (1, 8)
_SOURCES = 24  # to calibrate on
_ANSWERS, _TOKENS = 6, 32  # of the model itself, to calibrate on, and how long
# Defaults of a model that need the scores of all words, and values that change nothing.
_OF_SCORES: dict[str, Any] = {
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "bad_words_ids", "sequence_bias", "lang_to_id")),
    **{"suppress_tokens": [], "begin_suppress_tokens": [], "min_length": 0, "min_new_tokens": 0},
    **{"no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0, "repetition_penalty": 1.0},
}


def compile_seq2seq(
    loaded: Loaded,
    *,
    plan: Plan | str = "faithful",
    lengths: Sequence[int] | None = None,
    slots: int | None = None,
    sizes: Iterable[int] = SIZES,
    reveal: str = "scores",
    embedding: str = "client",
    weights: Weights | None = None,
    calibration: Sequence[Any] | None = None,
    progress: Progress | None = None,
) -> tuple[Compiled, Seq2Seq]:
    """Compile an encoder-decoder model to read a text or a recording, and to write an answer token by token.

    lengths     tokens that texts are padded to, each to the least that fits (default: those of 32, 64, 128 that the
                model takes). A model of recordings has one, its own
    slots       the most tokens of an answer (default: 128, or what the model takes)
    calibration  typical texts (default: built-in ones), or recordings. Never a user's
    reveal, embedding, weights, progress    as of `compile_chat`

    Errors: GenerationError, and those of `compile`.
    """
    model: Any = loaded.model
    if not loaded.task.writes or loaded.processor is None:
        raise GenerationError(f"{loaded.name}: is no encoder-decoder model with what feeds it; take another")
    slots = _slots(loaded, slots)
    chat = chat_of(loaded)
    if reveal == "token":
        _check_of_tokens(loaded.name, chat.defaults)
    sources = _sources(loaded, lengths, calibration)
    texts = [_answer(model, source, chat, min(slots, _TOKENS)) for source in sources[max(sources)][:_ANSWERS]]
    with attention_kept(model):
        decoder = CrossDecoder(model, chat.start[0], reveal, embedding).eval()
        compiled = compile_cross(
            decoder,
            sources,
            texts,
            plan,
            slots=slots,
            sizes=sizes,
            embedding=embedding,
            weights=loaded.weights(weights).within("model.", []),
            progress=progress,
            name=loaded.name,
        )
    if decoder.gives == "hidden":
        chat.head = table_of(next(part.program for name, part in compiled.parts.items() if size_of(name)))
    return compiled, chat


def chat_of(loaded: Loaded) -> Seq2Seq:
    """How an answer begins, and transformers' defaults for it, but for beams: a session keeps the rows of one. How long
    it may be, each answer says."""
    model: Any = loaded.model
    defaults = copy.deepcopy(model.generation_config)
    for name, value in {"num_beams": 1, "early_stopping": False, "length_penalty": 1.0, "max_length": None}.items():
        setattr(defaults, name, value)
    starts = (getattr(config, "decoder_start_token_id", None) for config in (defaults, model.config))
    start = next((token for token in starts if token is not None), None)
    if start is None:
        raise GenerationError(f"{loaded.name}: its configuration has no decoder_start_token_id; add it")
    before = prefixes(model.config)
    return Seq2Seq(loaded.task.words, model.config, defaults, [], start=[int(start)], before=before)


def _check_of_tokens(name: str, defaults: Any) -> None:
    """Errors: GenerationError for a model whose own answers depend on more than the most likely word."""
    for option, neutral in _OF_SCORES.items():
        if (value := getattr(defaults, option, None)) is not None and value != neutral:
            raise GenerationError(
                f"{name}: its {option} needs the scores of all words; reveal them, not the token alone (reveal scores)"
            )


def _slots(loaded: Loaded, slots: int | None) -> int:
    """Errors: GenerationError."""
    config: Any = loaded.model.config
    most = getattr(config, "max_target_positions", None) or getattr(config, "max_position_embeddings", None)
    chosen = min(SLOTS, most or SLOTS) if slots is None else slots
    if most is not None and chosen > most:
        raise GenerationError(f"{loaded.name}: its answers have {most} tokens at most; compile for at most {most}")
    return chosen


def _sources(
    loaded: Loaded, lengths: Sequence[int] | None, given: Sequence[Any] | None
) -> dict[int, list[dict[str, Tensor]]]:
    """What the encoder takes of typical items, by what they are padded to. Errors: LoadError, InputError."""
    recordings = loaded.task.medium is not None
    inputs = typical_inputs(loaded, lengths, given or (None if recordings else calibration_texts(_SOURCES)))
    return {files[0]["input_features"].shape[-1]: files for files in inputs.values()} if recordings else inputs


def _answer(model: Any, source: Mapping[str, Tensor], chat: Seq2Seq, count: int) -> Tensor:
    """The model's own, of so many tokens."""
    ids = chat.prompt_for(lambda prompt, some: next(iter(some)))
    more = max(count - len(ids), 1)
    options = {"decoder_input_ids": torch.tensor([ids]), "max_new_tokens": more, "min_new_tokens": more}
    generation: Any = GenerationMixin  # models of speech have a `generate` of their own, for recordings of any length
    with torch.no_grad(), huggingface():
        return generation.generate(model, **source, **options, generation_config=chat.defaults)[0]
