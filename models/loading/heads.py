"""What is computed from a model's last hidden states inside the private protocol, so that no more is revealed."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput


@dataclass
class SentenceEmbedding(ModelOutput):
    """`sentence_embedding`: [batch, hidden], not normalised: the client does that in the clear."""

    sentence_embedding: Tensor | None = None


@dataclass
class NextTokenLogits(ModelOutput):
    """`logits`: [batch, vocabulary], of the token after the last real one."""

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

    def answer(self, embedding: Tensor) -> ModelOutput:
        return SentenceEmbedding(embedding)

    def pooled(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """[batch, hidden] of the last hidden states [batch, tokens, hidden]."""
        if self.pooling == "cls":
            return hidden[:, 0]
        mask = attention_mask.to(hidden.dtype)
        weights = mask / mask.sum(1, keepdim=True)
        return (hidden * weights[..., None]).sum(1)


@dataclass
class SentenceLogits(ModelOutput):
    """`logits`: [batch, classes]."""

    logits: Tensor | None = None


class SentenceClassifier(SentenceEncoder):
    """A sentence encoder with a linear head on what it pools."""

    def __init__(self, encoder: SentenceEncoder, head: nn.Linear) -> None:
        super().__init__(encoder.model, encoder.pooling)
        self.classifier = head

    def answer(self, embedding: Tensor) -> ModelOutput:
        return SentenceLogits(self.classifier(embedding))


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

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> NextTokenLogits:
        base: Any = self.model.base_model
        head: Any = self.model.get_output_embeddings()  # type: ignore[operator]
        hidden = base(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        mask = attention_mask.to(hidden.dtype)
        last = mask * (mask.cumsum(1) == mask.sum(1, keepdim=True)).to(hidden.dtype)
        return NextTokenLogits(head((hidden * last[..., None]).sum(1)))


@dataclass
class MaskedTokenLogits(ModelOutput):
    """`logits`: [batch, vocabulary], of the token that stands at the first mask."""

    logits: Tensor | None = None


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

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> MaskedTokenLogits:
        kwargs = {"token_type_ids": token_type_ids} if self._takes_types and token_type_ids is not None else {}
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask, **kwargs).logits
        return MaskedTokenLogits(logits.squeeze(1))

    def _select(self, base: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        masks = (ids == self.mask).to(output.last_hidden_state.dtype)
        first = masks * (masks.cumsum(1) == 1).to(masks.dtype)
        output["last_hidden_state"] = (output.last_hidden_state * first[..., None]).sum(1, keepdim=True)
        return output
