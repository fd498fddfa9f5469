"""A model's task without the model: how its inputs are made from a text or an image, and how its answers read.

Inputs and answers have the shapes that transformers' own pipelines give them, so that a private model can stand in for
the one in the clear. All of it happens at the client.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...errors import first_line
from .huggingface import InputError
from .media import MEDIA, Medium, open_audio, open_image, pieces, pillow
from .truncation import OVERLAP, SIDES, WINDOWED, TextWindow, Truncation, truncation_of, word_windows

Item = str | tuple[str, str] | Mapping[str, Any]
"""A text, or two that are read together (a question and what it is about), or what a tokenizer made of one: tensors."""
USUAL_LABELS = 5  # as many as transformers' image- and audio-classification give
_PIPELINES = {
    "sentence": "sentence-embedding",
    "classifier": "text-classification",
    "causal": "next-token",
    "encoder": "feature-extraction",
    "masked": "fill-mask",
    "tokens": "token-classification",
    "span": "question-answering",
    "translation": "translation",
    "summary": "summarization",
    "text": "text2text-generation",
    "speech": "automatic-speech-recognition",
    "tensors": "tensors",
}
_WRITES = ("translation", "summary", "text", "speech")
WRITTEN = {  # of the tasks that write a text, what it is called in their answers
    "translation": "translation_text",
    "summarization": "summary_text",
    "text2text-generation": "generated_text",
    "automatic-speech-recognition": "text",
}
_TOKENIZING = threading.Lock()  # a tokenizer keeps how it pads and cuts as its own state, and models share tokenizers


@dataclass
class Task:
    """What feeds a model and reads its answers.

    kind        sentence (pooled embedding), classifier, causal (next token), masked (the token at a mask), tokens (a
                label for each), span (an answer in a text), image, audio, encoder (all positions); translation,
                summary, text (of another kind) and speech: a text that is written about what was read; tensors (not
                known, or not one text, image or audio: it can be fed tensors alone)
    processor   the tokenizer, the image processor or the feature extractor; None if the model came with none
    positions   the most tokens the model takes, None where there is no such limit
    scores      how logits become scores: softmax, sigmoid, or none (a regression)
    pair        transformers' name of a translation from one language into another, translation_en_to_de, where the
                model translates between several and one was asked for
    """

    name: str
    kind: str
    processor: Any = None
    positions: int | None = None
    labels: dict[int, str] = field(default_factory=dict)
    scores: str = "softmax"
    pair: str = ""

    @property
    def pipeline(self) -> str:
        """The name of the task, transformers' own where it has one."""
        if self.medium is not None and not self.writes:
            return f"{self.medium.task}-classification" if self.labels else f"{self.medium.task}-feature-extraction"
        return _PIPELINES[self.kind]

    @property
    def ranks(self) -> bool:
        """Whether an answer is rows in order of their score, of which a client may want so many."""
        return bool(self.labels) if self.medium is not None else self.kind in ("classifier", "causal", "masked", "span")

    @property
    def writes(self) -> bool:
        """Whether an answer is a text that a decoder writes, token by token, about what an encoder has read."""
        return self.kind in _WRITES

    @property
    def words(self) -> Any:
        """The tokenizer: of a model of speech beside what hears."""
        return getattr(self.processor, "tokenizer", self.processor) if self.kind == "speech" else self.processor

    @property
    def feature_extractor(self) -> Any:
        """What makes numbers of an image or a recording."""
        return getattr(self.processor, "feature_extractor", self.processor) if self.kind == "speech" else self.processor

    @property
    def medium(self) -> Medium | None:
        """What the files are that it takes; None of a model of texts, or of tensors alone."""
        return MEDIA.get(self.kind)

    # --- in ----------------------------------------------------------------------------------------------------------
    def item(self, given: Any) -> Any:
        """What a dictionary holds, with the names that transformers' pipelines have: a text, or a pair of texts.
        Anything else, and what a tokenizer made, stays as it is. Errors: InputError."""
        if not isinstance(given, Mapping) or self.medium is not None or "input_ids" in given:
            return given
        names = ("question", "context") if self.kind == "span" else ("text", "text_pair")
        if not given.keys() <= {*names} or names[0] not in given:
            wanted = ", ".join(f'"{name}"' for name in names)
            raise InputError(f"a dictionary holds {wanted} here, and not {', '.join(map(repr, given)) or 'nothing'}")
        return tuple(given[name] for name in names) if names[1] in given else given[names[0]]

    def tokens(self, item: Item) -> int:
        """Tokens of a text or a pair of texts, special ones included."""
        if (ids := self._ids(item)) is not None:
            return ids.shape[-1]
        with _TOKENIZING:
            return len(self._tokenizer()(*self._written(item), verbose=False)["input_ids"])

    def encode_text(self, item: Item, length: int, truncate: Truncation | bool = False) -> dict[str, Tensor]:
        """Whatever the tokenizer makes of a text or a pair of texts, padded on the right: each [1, length].

        `truncate`: where a text that is longer is cut (`encoding`). True: of an example to calibrate on, whose end is
        cut off whatever is left then. Errors: InputError.
        """
        if truncation_of(truncate) != "off" and truncate is not True:
            self._check_room(item, length)
        encoded = self.encoding(item, length, truncate)
        tokens = encoded["input_ids"].shape[-1]
        if tokens > length and truncate is True:
            raise InputError(f"length {length}: leaves no room beside the model's own tokens; give a larger one")
        if tokens > length:
            raise InputError(f"text has {tokens} tokens, the length is {length}: shorten it, or split it into several")
        if self.kind == "masked" and truncate is not True:
            self._check_mask(encoded["input_ids"])
        return dict(encoded)

    def windows(self, item: Item, length: int) -> list[TextWindow]:
        """A text that is longer than `length`, in windows of whole words that overlap by an eighth; of a pair with
        its question in each. Errors: InputError where no one answer can be made of several."""
        if self.kind not in WINDOWED or isinstance(item, tuple) != (self.kind == "span"):
            what = "a pair of texts" if isinstance(item, tuple) else self.pipeline
            raise InputError(f"truncation windows: answers for {what} cannot be joined; cut the text at one end")
        self._check_room(item, length)
        *question, text = self._written(item)
        tokenizer = self._tokenizer()
        with _TOKENIZING:
            asked, encoding = (tokenizer(t, add_special_tokens=False, verbose=False) for t in ("".join(question), text))
        if not encoding.is_fast:
            raise InputError(
                "truncation windows: this tokenizer does not say where tokens are; cut the text at one end"
            )
        room = length - tokenizer.num_special_tokens_to_add(pair=bool(question)) - len(asked["input_ids"])
        places = [encoding.token_to_chars(token) for token in range(len(encoding["input_ids"]))]
        for spare in range(1 + room // OVERLAP):  # a part of a text may have a token or two more than it has within it
            windows = []
            for first, end in word_windows(encoding.word_ids(), room - spare):
                start = places[first - 1].end if first else 0  # with the space before it, as some tokenizers want
                part = text[start : places[end - 1].end]
                if part.strip():
                    windows.append(
                        TextWindow((*question, part) if question else part, start, places[end - 1].end, first)
                    )
            if all(self.tokens(window.item) <= length for window in windows):
                return windows
        raise InputError("truncation windows: this text cannot be divided so that its parts fit; cut it at one end")

    def encoding(self, item: Item, length: int, truncate: Truncation | bool = False) -> Any:
        """The tokenizer's own result, which knows where in the text a token is. Longer than `length` if it must.

        Of a pair that is cut, the longer text loses tokens first; of a question and its text, the text alone.
        """
        side, tokenizer = SIDES.get(truncation_of(truncate)), self._tokenizer()
        with _TOKENIZING:
            if self._ids(item) is not None:
                options = {"padding": "max_length", "max_length": length, "return_tensors": "pt"}
                return tokenizer.pad(item, padding_side="right", **options)
            own = tokenizer.truncation_side
            tokenizer.truncation_side = side or own
            try:
                return tokenizer(
                    *self._written(item),
                    padding="max_length",
                    max_length=length,
                    truncation=bool(side) and ("only_second" if self._keeps_first(truncate) else "longest_first"),
                    return_tensors="pt",
                    padding_side="right",
                )
            finally:
                tokenizer.truncation_side = own

    def typical(self, texts: Sequence[Item]) -> list[Item]:
        """Inputs of the task's form, to calibrate on, from plain texts; what has the form already stays."""
        if self.kind == "span":
            following = [*texts[1:], *texts[:1]]
            return [
                (text, after) if isinstance(text, str) and isinstance(after, str) else text
                for text, after in zip(texts, following, strict=True)
            ]
        mask = getattr(self.processor, "mask_token", None)
        if self.kind != "masked" or mask is None:
            return list(texts)
        return [_with_mask(text, mask, number) if isinstance(text, str) else text for number, text in enumerate(texts)]

    def encode_file(self, item: Any, samples: int = 0) -> dict[str, Tensor]:
        """Whatever the processor makes of an image (a file, or a PIL image): pixel_values [1, channels, height, width];
        or of a recording (a file, or samples), with silence after it up to `samples` (0: it stays as long as it is).

        Errors: InputError.
        """
        if self.medium is None:
            raise InputError(f"{self.name}: takes texts, not files of images or recordings")
        if self.processor is None:
            if self.kind == "image":
                pillow()  # without it, transformers loads no image processor
            raise InputError(f"{self.name}: came without what makes numbers of {self.medium.plural}; give it tensors")
        if self.kind == "image":
            image = open_image(item)
            try:
                return dict(self.processor(images=image, return_tensors="pt"))
            except (TypeError, ValueError) as error:
                raise InputError(f"image: cannot be used ({first_line(error)}); give a file or a PIL image") from None
        rate = self.feature_extractor.sampling_rate
        audio = open_audio(item, rate)
        if samples and len(audio) > samples:
            long, most = (f"{count / rate:.2f} s" for count in (len(audio), samples))
            raise InputError(f"audio lasts {long}, the model takes {most} here: cut it, or split it into several")
        options: dict[str, Any] = {"padding": "max_length", "max_length": samples} if samples else {}
        features = self.feature_extractor(audio, sampling_rate=rate, return_tensors="pt", **options)
        return {name: value for name, value in features.items() if name != "attention_mask"}  # silence is heard

    def pieces(self, item: Any) -> list[Any]:
        """A recording in pieces that a model of speech hears one by one; anything else as it is. Errors: InputError."""
        most = getattr(self.feature_extractor, "chunk_length", 0) if self.kind == "speech" else 0
        return (
            list(
                pieces(
                    open_audio(item, self.feature_extractor.sampling_rate), self.feature_extractor.sampling_rate, most
                )
            )
            if most
            else [item]
        )

    def samples(self, recordings: Sequence[Any]) -> int:
        """Of the longest of these; 0 where the processor makes all equally long. Errors: InputError."""
        if self.kind != "audio" or not _keeps_length(self.processor):
            return 0
        return max(len(open_audio(audio, self.processor.sampling_rate)) for audio in recordings)

    def _tokenizer(self) -> Any:
        if self.kind == "tensors":
            raise InputError(
                f"{self.name}: takes tensors alone (it has no tokenizer, or takes more than a text); use it from Python"
            )
        if self.processor is None or self.medium is not None:
            raise InputError(f"{self.name}: has no tokenizer, so it takes no text; give a text model")
        return self.processor

    def _ids(self, item: Item) -> Tensor | None:
        """Token ids [1, tokens] of what a tokenizer made; None of a text. Errors: InputError."""
        if not isinstance(item, Mapping) or "input_ids" not in item:
            return None
        ids = torch.as_tensor(item["input_ids"])
        if ids.ndim != 2 or len(ids) != 1:
            raise InputError(f"input_ids: are of shape {list(ids.shape)}; give one text's, [1, tokens]")
        return ids

    def _written(self, item: Item) -> tuple[str, ...]:
        """The texts of an item: one, or the two of a pair."""
        texts: tuple[Any, ...] = item if isinstance(item, tuple) else (item,)
        if len(texts) > 2 or not all(isinstance(text, str) for text in texts):
            if isinstance(item, tuple):
                raise InputError("a pair of texts is two strings in a tuple; give just these")
            raise InputError(f"a text is a string, not {type(item).__name__}")
        if not texts or not all(text.strip() for text in texts):
            raise InputError("a text is empty: write something, or leave it out")
        if self.kind == "span" and len(texts) == 1:
            raise InputError(
                f'{self.name}: answers a question about a text; give both: ("question", "text"), or --pair TEXT'
            )
        if (self.writes or self.kind in ("causal", "masked")) and len(texts) == 2:
            raise InputError(f"{self.name}: takes one text at a time, not a pair")
        return texts

    def _keeps_first(self, truncate: Truncation | bool) -> bool:
        """Whether a pair's first text is never cut: a question, but for examples, whose questions are any texts."""
        return self.kind == "span" and truncate is not True

    def _check_room(self, item: Item, length: int) -> None:
        """Errors: InputError where nothing of a text would be left."""
        if self._ids(item) is not None:
            return
        texts, tokenizer = self._written(item), self._tokenizer()
        room = length - tokenizer.num_special_tokens_to_add(pair=len(texts) > 1)
        if self._keeps_first("end"):
            with _TOKENIZING:
                room -= len(tokenizer(texts[0], add_special_tokens=False, verbose=False)["input_ids"]) - 1
        if room < len(texts):
            first = "the question leaves" if self._keeps_first("end") else "the special tokens leave"
            raise InputError(f"{first} nothing of {length} tokens to the text; shorten it, or choose a greater length")

    def _check_mask(self, ids: Tensor) -> None:
        mask = self.processor.mask_token
        masks = int((ids == self.processor.mask_token_id).sum()) if mask else 1
        if masks != 1:
            raise InputError(f"text has {masks} times {mask}: write it once, where the model is to fill in a word")

    def written(self, text: str) -> Any:
        """A text that the model has written, in the form of its task's answers."""
        row = {WRITTEN[self.pipeline]: text}
        return row if self.kind == "speech" else [row]

    def label(self, number: int) -> str:
        return self.labels.get(number, f"LABEL_{number}")


def score_function(config: Any) -> str:
    """How a classifier's logits become scores, by its configuration, as transformers' pipelines have it."""
    problem = getattr(config, "problem_type", None)
    if problem == "regression":
        return "none"
    if problem == "multi_label_classification" or getattr(config, "num_labels", 2) == 1:
        return "sigmoid"
    return "softmax"


def _keeps_length(processor: Any) -> bool:
    """Whether it gives samples as they are, and makes no spectrum of a fixed length of them."""
    return getattr(processor, "model_input_names", ["input_values"])[0] == "input_values" and not hasattr(
        processor, "num_mel_bins"
    )


def _with_mask(text: str, mask: str, number: int) -> str:
    """One of a text's first words masked, another in each text: a text may be cut after them."""
    if mask in text:
        return text
    words = text.split()
    words[number % min(len(words), 5)] = mask
    return " ".join(words)
