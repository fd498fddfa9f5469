"""What is computed from a model's last hidden states inside the private protocol, so that no more is revealed."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from .huggingface import LoadError


@dataclass
class SentenceEmbedding(ModelOutput):
    """`sentence_embedding`: [batch, hidden], not normalised: the client does that in the clear."""

    sentence_embedding: Tensor | None = None


@dataclass
class Logits(ModelOutput):
    """`logits`: [batch, classes]; or [batch, vocabulary], of one token."""

    logits: Tensor | None = None


class SentenceEncoder(nn.Module):
    """An encoder with its pooling. The weights of the mean depend on the mask alone: the client makes them."""

    def __init__(self, model: nn.Module, pooling: str = "mean") -> None:
        super().__init__()
        self.model, self.pooling = model, pooling
        self.config = model.config
        self._takes_types = "token_type_ids" in inspect.signature(model.forward).parameters

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> ModelOutput:
        kwargs: dict[str, Any] = (
            {"token_type_ids": token_type_ids} if self._takes_types and token_type_ids is not None else {}
        )
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, **kwargs).last_hidden_state
        return self.answer(self.pooled(hidden, attention_mask))

    @property
    def base_model(self) -> nn.Module:
        return self.model.base_model  # type: ignore[return-value]

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()  # type: ignore[operator]

    def answer(self, embedding: Tensor) -> ModelOutput:
        return SentenceEmbedding(embedding)

    def pooled(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """[batch, hidden] of the last hidden states [batch, tokens, hidden]."""
        if self.pooling == "cls":
            return hidden[:, 0]
        mask = attention_mask.to(hidden.dtype)
        weights = mask / mask.sum(1, keepdim=True)
        return (hidden * weights[..., None]).sum(1)


class SentenceClassifier(SentenceEncoder):
    """A sentence encoder with a linear head on what it pools."""

    def __init__(self, encoder: SentenceEncoder, head: nn.Linear) -> None:
        super().__init__(encoder.model, encoder.pooling)
        self.classifier = head

    def answer(self, embedding: Tensor) -> ModelOutput:
        return Logits(self.classifier(embedding))


class NextToken(nn.Module):
    """A causal model that answers with the next token's logits: one row of the vocabulary instead of one a position.

    Which position is the last real one stays with the client: it selects with a 0/1 vector made from its mask.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.config = model.config

    @classmethod
    def of(cls, model: nn.Module) -> nn.Module:
        """The wrapped model; or the model itself, if its head is more than one linear map of the last hidden state."""
        ids = torch.tensor([[1, 2, 3, 1]])
        mask = torch.tensor([[1, 1, 1, 0]])
        wrapped = cls(model.eval())
        with torch.no_grad():
            try:
                logits = wrapped(ids, mask).logits
            except (AttributeError, TypeError):
                return model
            expected = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, 2]
        return wrapped if torch.allclose(logits, expected, atol=1e-3, rtol=1e-3) else model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Logits:
        base: Any = self.model.base_model
        head: Any = self.model.get_output_embeddings()  # type: ignore[operator]
        hidden = base(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        mask = attention_mask.to(hidden.dtype)
        last = mask * (mask.cumsum(1) == mask.sum(1, keepdim=True)).to(hidden.dtype)
        return Logits(head((hidden * last[..., None]).sum(1)))


class MaskedToken(nn.Module):
    """A masked language model that answers with the logits at the first mask: one row of the vocabulary, not one a
    position. Which position that is stays with the client: it selects with a 0/1 vector made from its tokens.

    The head, whatever it is, gets the one row that a hook takes from the encoder's.
    """

    def __init__(self, model: nn.Module, mask: int) -> None:
        super().__init__()
        self.model, self.mask = model, mask
        self.config = model.config
        self._takes_types = "token_type_ids" in inspect.signature(model.forward).parameters
        base: Any = model.base_model
        self.hook = base.register_forward_hook(self._select, with_kwargs=True)

    @classmethod
    def of(cls, model: nn.Module, mask: int | None) -> nn.Module:
        """The wrapped model; or the model itself, if it has no mask, or its head needs all positions."""
        if mask is None:
            return model
        ids, seen = torch.tensor([[1, mask, 3, 1]]), torch.tensor([[1, 1, 1, 0]])
        with torch.no_grad():
            expected = model.eval()(input_ids=ids, attention_mask=seen).logits[:, 1]
            wrapped = cls(model, mask)
            try:
                logits = wrapped(ids, seen).logits
            except (AttributeError, TypeError, KeyError, RuntimeError):
                logits = torch.full_like(expected, torch.nan)
        if torch.allclose(logits, expected, atol=1e-3, rtol=1e-3):
            return wrapped
        wrapped.hook.remove()
        return model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Logits:
        kwargs = {"token_type_ids": token_type_ids} if self._takes_types and token_type_ids is not None else {}
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask, **kwargs).logits
        return Logits(logits.squeeze(1))

    def _select(self, base: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        masks = (ids == self.mask).to(output.last_hidden_state.dtype)
        first = masks * (masks.cumsum(1) == 1).to(masks.dtype)
        output["last_hidden_state"] = (output.last_hidden_state * first[..., None]).sum(1, keepdim=True)
        return output


# Sentence encoders on disk, in the form of sentence-transformers: modules.json, 1_Pooling, and perhaps a linear head.
#
# A head is a module Dense without an activation, with as many outputs as config.json has labels: it makes a classifier.

_COMPUTED = (".Transformer", ".Pooling", ".Normalize")  # the modules of a sentence encoder that are computed here
_POOLING, _HEAD = "1_Pooling", "2_Dense"
_MODES = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens"}
_IDENTITY = "torch.nn.modules.linear.Identity"


def is_sentence_encoder(folder: Path) -> bool:
    return (folder / _POOLING).is_dir() or (folder / "modules.json").is_file()


def pooling_of(folder: Path) -> str:
    """mean or cls. Errors: LoadError for any other, or a module that is not computed here."""
    for module in _modules(folder):
        if not module.endswith(_COMPUTED) and not (module.endswith(".Dense") and (folder / _HEAD).is_dir()):
            raise LoadError(
                f"{folder}: ends with a module {module}, which is not supported; give an encoder without it"
            )
    try:
        settings: Mapping[str, Any] = json.loads((folder / _POOLING / "config.json").read_text())
    except (OSError, ValueError):
        return "mean"
    modes = [mode for mode, on in settings.items() if mode.startswith("pooling_mode_") and on is True]
    if modes == [_MODES["cls"]]:
        return "cls"
    if modes in ([], [_MODES["mean"]]):
        return "mean"
    raise LoadError(f"{folder}: pools with {', '.join(modes)}; only the mean and the first token are supported")


def head_of(folder: Path, labels: int) -> nn.Linear | None:
    """The linear head, None where there is none. `labels`: of config.json.

    Errors: LoadError for a head with an activation, other outputs than labels, or a damaged file.
    """
    if not (folder / _HEAD).is_dir():
        return None
    try:
        settings = json.loads((folder / _HEAD / "config.json").read_text())
        weights = load_file(folder / _HEAD / "model.safetensors")
        head = nn.Linear(weights["linear.weight"].shape[1], weights["linear.weight"].shape[0])
        head.load_state_dict({name.removeprefix("linear."): value for name, value in weights.items()})
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise LoadError(f"{folder / _HEAD}: cannot be read ({error}); copy it again, or train the head again") from None
    if settings.get("activation_function") != _IDENTITY or head.out_features != labels:
        raise LoadError(
            f"{folder / _HEAD}: is no linear head of {labels} labels; give an encoder without it, or train one: "
            "blindformer train"
        )
    return head


def save_model(model: nn.Module, folder: Path) -> None:
    """Write a model of transformers; or of a sentence encoder the encoder, its pooling and its head, if it has one, as
    sentence-transformers reads them."""
    inner: Any = model.model if isinstance(model, SentenceEncoder) else model
    inner.save_pretrained(folder)
    if not isinstance(model, SentenceEncoder):
        return
    width = getattr(model.config, "hidden_size")  # noqa: B009 (a config of any class)
    modules = [("", "Transformer"), (_POOLING, "Pooling")]
    (folder / _POOLING).mkdir(exist_ok=True)
    _write(
        folder / _POOLING / "config.json",
        {"word_embedding_dimension": width, **{mode: name == model.pooling for name, mode in _MODES.items()}},
    )
    if isinstance(model, SentenceClassifier):
        head = model.classifier
        modules.append((_HEAD, "Dense"))
        (folder / _HEAD).mkdir(exist_ok=True)
        sizes = {"in_features": width, "out_features": head.out_features, "bias": True}
        _write(folder / _HEAD / "config.json", {**sizes, "activation_function": _IDENTITY})
        weights = {f"linear.{name}": value.detach().contiguous() for name, value in head.named_parameters()}
        save_file(weights, folder / _HEAD / "model.safetensors", {"format": "pt"})
    rows = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(modules)
    ]
    _write(folder / "modules.json", rows)


def _modules(folder: Path) -> list[str]:
    """The classes that a sentence encoder is made of."""
    try:
        return [str(module["type"]) for module in json.loads((folder / "modules.json").read_text())]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError):
        raise LoadError(f"{folder / 'modules.json'}: cannot be read; copy it again, or remove it") from None


def _write(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
