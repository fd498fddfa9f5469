"""A model's task without the model: how its inputs are made from a text or an image, and how its answers read.

Inputs and answers have the shapes that transformers' own pipelines give them, so that a private model can stand in for
the one in the clear. All of it happens at the client.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..protocols.errors import BlindformerError

NEXT_TOKENS = 5  # of a causal model, unless more are asked for
IMAGE_LABELS = 5  # as many as transformers' image-classification gives
_PIPELINES = {
    "sentence": "sentence-embedding",
    "classifier": "text-classification",
    "causal": "next-token",
    "encoder": "feature-extraction",
    "tensors": "tensors",
}
_TOKENIZING = threading.Lock()  # a tokenizer keeps how it pads and cuts as its own state, and models share tokenizers


class InputError(BlindformerError):
    """A text or an image that cannot be the model's input."""


@dataclass
class Task:
    """What feeds a model and reads its answers.

    kind        sentence (pooled embedding), classifier, causal (next token), image, encoder (all positions), tensors
                (not known: it can be fed tensors alone)
    processor   the tokenizer, or the image processor; None if the model came with none
    positions   the most tokens the model takes, None where there is no such limit
    scores      how logits become scores: softmax, sigmoid, or none (a regression)
    """

    name: str
    kind: str
    processor: Any = None
    positions: int | None = None
    labels: dict[int, str] = field(default_factory=dict)
    scores: str = "softmax"

    @property
    def pipeline(self) -> str:
        """The name of the task, transformers' own where it has one."""
        if self.kind == "image":
            return "image-classification" if self.labels else "image-feature-extraction"
        return _PIPELINES[self.kind]

    # --- in ----------------------------------------------------------------------------------------------------------
    def tokens(self, text: str) -> int:
        """Tokens of a text, special ones included."""
        with _TOKENIZING:
            return len(self._tokenizer()(_written(text), verbose=False)["input_ids"])

    def encode_text(self, text: str, length: int, truncate: bool = False) -> dict[str, Tensor]:
        """Whatever the tokenizer makes of a text, padded on the right: each [1, length]. Errors: InputError."""
        with _TOKENIZING:
            encoded = self._tokenizer()(
                _written(text),
                padding="max_length",
                max_length=length,
                truncation=truncate,
                return_tensors="pt",
                padding_side="right",
            )
        found = encoded["input_ids"].shape[-1]
        if found > length:
            raise InputError(f"text has {found} tokens, the length is {length}: shorten it, or split it into several")
        return dict(encoded)

    def encode_image(self, image: Any) -> dict[str, Tensor]:
        """Whatever the processor makes of an image (a file, or a PIL image): pixel_values [1, channels, height, width].

        Errors: InputError.
        """
        if self.kind != "image":
            raise InputError(f"{self.name}: takes texts, not images")
        if self.processor is None:
            raise InputError(f"{self.name}: came without an image processor, so it takes tensors only")
        return dict(self.processor(images=open_image(image), return_tensors="pt"))

    def _tokenizer(self) -> Any:
        if self.processor is None or self.kind == "image":
            raise InputError(f"{self.name}: has no tokenizer, so it takes no text; give a text model")
        return self.processor

    # --- out ---------------------------------------------------------------------------------------------------------
    def read(self, outputs: Mapping[str, Tensor], inputs: Mapping[str, Tensor], top_k: int | None = None) -> Any:
        """An answer (float outputs by name, of one text or image) in the terms of the task.

        classifier, image   [{"label", "score"}], the likeliest first; `top_k`: how many (None: all)
        sentence            one list of floats of length one (Euclidean)
        encoder             last_hidden_state as nested lists [1, tokens, hidden], without the padding's rows
        causal              [{"score", "token", "token_str"}], the likeliest next tokens first
        anything else       nested lists by output name
        """
        if self.labels and "logits" in outputs:
            return self._labelled(outputs["logits"].reshape(-1), top_k)
        if self.kind == "causal" and "logits" in outputs:
            logits = outputs["logits"][0]
            scores = torch.softmax(logits if logits.ndim == 1 else logits[_real(inputs, len(logits)) - 1], -1)
            best = scores.topk(min(top_k or NEXT_TOKENS, len(scores)))
            return [
                {"score": float(score), "token": token, "token_str": self.processor.decode([token])}
                for score, token in zip(best.values, best.indices.tolist(), strict=True)
            ]
        if "sentence_embedding" in outputs:
            return torch.nn.functional.normalize(outputs["sentence_embedding"][0], dim=-1).tolist()
        if "last_hidden_state" in outputs:
            hidden = outputs["last_hidden_state"]
            return hidden[:, : _real(inputs, hidden.shape[1])].tolist()
        return {name: value.tolist() for name, value in outputs.items()}

    def _labelled(self, logits: Tensor, top_k: int | None) -> list[dict[str, Any]]:
        forms = {"softmax": lambda x: torch.softmax(x, -1), "sigmoid": torch.sigmoid, "none": lambda x: x}
        scores = forms[self.scores](logits.float())
        rows = [{"label": self.labels.get(i, f"LABEL_{i}"), "score": float(score)} for i, score in enumerate(scores)]
        return sorted(rows, key=lambda row: row["score"], reverse=True)[:top_k]


def score_function(config: Any) -> str:
    """How a classifier's logits become scores, by its configuration, as transformers' pipelines have it."""
    problem = getattr(config, "problem_type", None)
    if problem == "regression":
        return "none"
    if problem == "multi_label_classification" or getattr(config, "num_labels", 2) == 1:
        return "sigmoid"
    return "softmax"


def open_image(image: Any) -> Any:
    """A PIL image in RGB, from a file or as it is. Errors: InputError."""
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError:
        raise InputError("images need Pillow; run: pip install 'blindformer[vision]'") from None
    if isinstance(image, str | Path):
        try:
            with Image.open(image) as opened:
                return ImageOps.exif_transpose(opened).convert("RGB")
        except FileNotFoundError:
            raise InputError(f"{image}: there is no such file; give an image's path") from None
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError) as error:
            raise InputError(f"{image}: is no image that can be read ({_first_line(error)})") from None
    if isinstance(image, Image.Image):
        return ImageOps.exif_transpose(image).convert("RGB")
    raise InputError(f"an image is a file's path or a PIL image, not {type(image).__name__}")


def image_of(pixels: Tensor) -> Any:
    """A PIL image of grey levels, uint8 [H, W]. Errors: InputError without Pillow."""
    try:
        from PIL import Image
    except ImportError:
        raise InputError("images need Pillow; run: pip install 'blindformer[vision]'") from None
    return Image.fromarray(pixels.numpy())


IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def image_files(paths: Iterable[Path]) -> list[Path]:
    """The images that `paths` name: files as they are, folders' images in order of their names. Errors: InputError."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_ENDINGS)
            if not inside:
                raise InputError(f"{path}: holds no images ({', '.join(IMAGE_ENDINGS)})")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise InputError(f"{path}: there is no such file; give an image or a folder of images")
    return found


def _written(text: str) -> str:
    if not isinstance(text, str):
        raise InputError(f"a text is a string, not {type(text).__name__}")
    if not text.strip():
        raise InputError("a text is empty: write something, or leave it out")
    return text


def _real(inputs: Mapping[str, Tensor], length: int) -> int:
    """Positions that hold tokens; padding is on the right."""
    mask = inputs.get("attention_mask")
    return length if mask is None or mask.shape[-1] != length else int(mask.sum())


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
