"""The models of architectures.toml: built with random weights from a seed, and inputs for them.

L tokens; images [B, 3, S, S]; recordings [B, features, frames] or [B, samples].
"""

import importlib
import tomllib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Batch = dict[str, Tensor]
LENGTH, WORDS, COUNT = 8, 100, 4
LIBRARIES = ("torchvision", "timm")


@dataclass(frozen=True)
class Architecture:
    """A row of the table. `sizes`: keyword arguments of the configuration, or of the model where it has none."""

    name: str
    library: str
    model: str
    sizes: Mapping[str, Any]
    inputs: str | Mapping[str, list[int]]

    def build(self) -> nn.Module:
        """In evaluation mode. Errors: ModuleNotFoundError, where the library is not installed."""
        torch.manual_seed(zlib.crc32(self.name.encode()))
        if self.library == "transformers":
            transformers = importlib.import_module("transformers")
            cls = getattr(transformers, self.model)
            model = _from_config(cls, self.sizes)
        elif self.library == "torch":
            model = {"Pooled": Pooled, "Encoder": Encoder, "MultiHead": MultiHead}[self.model](**self.sizes)
        else:
            model = _of_library(self.library, self.model, self.sizes)
        _stir(model)
        return model.eval()

    def batches(self) -> list[Batch]:
        """To calibrate with; every second text ends with padding."""
        if not isinstance(self.inputs, str):
            generator = torch.Generator().manual_seed(1)
            shapes = self.inputs.items()
            return [{name: torch.randn(1, *shape, generator=generator) for name, shape in shapes} for _ in range(COUNT)]
        texts = [_text(seed, hidden=seed % 2 * (1 + seed)) for seed in range(COUNT)]
        if self.inputs == "unmasked":
            return [{"input_ids": batch["input_ids"]} for batch in texts]
        if self.inputs == "pairs":  # what is read, and what is said so far
            return [{**b, "decoder_input_ids": _text(100 + n)["input_ids"][:, :5]} for n, b in enumerate(texts)]
        return texts


def architectures() -> dict[str, Architecture]:
    """All of the table, in its order."""
    table = tomllib.loads(Path(__file__).with_name("architectures.toml").read_text(encoding="utf-8"))
    like = table.pop("like")
    by_name = {}
    for name, row in table.items():
        library = next((lib for lib in LIBRARIES if lib in row), "transformers")
        model = row.get("model") or row[library]
        if library == "transformers" and model in ("Pooled", "Encoder", "MultiHead"):
            library = "torch"
        sizes = {**_sizes(like, row.get("like", [])), **row.get("sizes", {})}
        by_name[name] = Architecture(name, library, model, sizes, row.get("inputs", "texts"))
    return by_name


def _sizes(like: Mapping[str, Mapping[str, Any]], names: list[str]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for name in names:
        own = dict(like[name])
        merged |= _sizes(like, own.pop("like", [])) | own
    return merged


def _from_config(cls: Any, sizes: Mapping[str, Any]) -> nn.Module:
    config = cls.config_class(**sizes)
    try:
        return cls._from_config(config, attn_implementation="sdpa")
    except (ImportError, ValueError):  # it has its own attention alone
        return cls._from_config(config, attn_implementation="eager")


def _of_library(library: str, name: str, sizes: Mapping[str, Any]) -> nn.Module:
    if library == "torchvision":
        return getattr(importlib.import_module("torchvision.models"), name)(**sizes)
    timm = importlib.import_module("timm")
    factory = getattr(timm.models, name, None)
    return factory(**sizes) if isinstance(factory, type) else timm.create_model(name, pretrained=False, **sizes)


def _stir(model: nn.Module) -> None:
    """Nothing that a model starts as constant (zeros and ones for scales and biases) may hide what it computes."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1 and parameter.numel() > 1 and not bool(parameter.std() > 0):
                parameter.add_(0.1 * torch.randn_like(parameter))


def _text(seed: int, hidden: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, WORDS, (1, LENGTH), generator=generator)
    mask = torch.ones(1, LENGTH, dtype=torch.int64)
    if hidden:
        mask[:, -hidden:] = 0
        ids[:, -hidden:] = 0
    return {"input_ids": ids, "attention_mask": mask}


class Pooled(nn.Module):
    """A sentence embedding as sentence-transformers makes it: the mean of what the mask keeps, of length one."""

    def __init__(self) -> None:
        super().__init__()
        self.model = architectures()["BERT"].build()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        kept = attention_mask.unsqueeze(-1).expand(hidden.size()).float()
        mean = (hidden * kept).sum(1) / kept.sum(1).clamp(min=1e-9)
        return {"embedding": nn.functional.normalize(mean, p=2, dim=1)}


class Encoder(nn.Module):
    def __init__(self, norm_first: bool = False, activation: str = "relu") -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=norm_first, activation=activation)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x)


class MultiHead(nn.Module):
    """Attention of a few learnt queries to the input."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.query = nn.Parameter(torch.randn(1, 3, 32))

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(self.query.expand(len(x), -1, -1), x, x, need_weights=False)[0]
