"""Adapters, as peft saves them (LoRA): matrices of low rank beside the layers of a base model that anybody may have.

The base stays as it is: W x + B (A x) is computed, never (W + B A) x, so only A, B and the layers that were trained
whole (a head) are their owner's secret. `ADDED` names these parameters in a model that has an adapter on.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import nn

from ...errors import first_line
from .huggingface import FILES_ALONE, LoadError, huggingface

CONFIG = "adapter_config.json"
ADDED = ("*lora_*", "*.modules_to_save.*")
NAME = "default"  # of the only adapter that is on
HEADS = {  # transformers' class with the head that an adapter was trained for, by peft's name of its task
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
}
LABELLED = ("SEQ_CLS", "TOKEN_CLS")
_QUANTISED = re.compile(r"[.-](q\d\w*|b?f16|f32)$")  # behind a model's name, in a GGUF file's


class AdapterWarning(UserWarning):
    """The adapter may be another model's, whose layers have the same shapes."""


@dataclass(frozen=True)
class Adapter:
    """An adapter's folder, as its configuration describes it. `base`: the name of the model that it was trained on;
    `saved`: the names of modules that were trained whole."""

    folder: Path
    base: str
    task: str
    saved: tuple[str, ...]

    @classmethod
    def read(cls, folder: Path) -> Adapter:
        """Errors: LoadError for a folder that holds none, and for one of another kind than LoRA."""
        file = folder / CONFIG
        try:
            about = json.loads(file.read_text(encoding="utf-8"))
            kind, dora = str(about["peft_type"]), bool(about.get("use_dora"))
            saved = tuple(map(str, about.get("modules_to_save") or ()))
            base, task = str(about.get("base_model_name_or_path") or ""), str(about.get("task_type") or "")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise LoadError(
                f"{file}: cannot be read ({first_line(error)}); give a folder that peft's save_pretrained wrote"
            ) from None
        if kind != "LORA" or dora:
            raise LoadError(
                f"{folder}: is an adapter of kind {'DoRA' if dora else kind}; use LoRA, or merge it into the "
                "base (merge_and_unload)"
            )
        return cls(folder, base, task, saved)

    def head_of(self, config: Any) -> type[nn.Module] | None:
        """The class of transformers with this adapter's head; None: the base's own will do."""
        if self.task not in HEADS:
            return None
        with huggingface() as transformers:
            classes = getattr(transformers, HEADS[self.task])._model_mapping.get(type(config), None)
        return classes[0] if isinstance(classes, list | tuple) else classes

    def configure(self, config: Any, cls: type[nn.Module]) -> None:
        """Write the class, and the labels of its head, into the base's configuration."""
        config.architectures = [cls.__name__]
        if self.task not in LABELLED:
            return
        own = self.folder / "config.json"
        if own.is_file():
            with huggingface() as transformers:
                config.id2label = transformers.AutoConfig.from_pretrained(own, **FILES_ALONE).id2label
        elif rows := [shape[0] for name, shape in self._shapes().items() if self.brings(name) and len(shape) == 2]:
            config.num_labels = min(rows)  # a head ends in its narrowest layer

    def brings(self, parameter: str) -> bool:
        """Whether it holds this parameter of the model whole."""
        return any(name in parameter.split(".") for name in self.saved)

    def check_base(self, title: str, place: Path) -> None:
        """AdapterWarning for a model of another name than that of the adapter's base. `place`: the model's own."""
        names = {_QUANTISED.sub("", Path(name).name.lower()) for name in (self.base, title)}
        if self.base and len(names) > 1 and Path(self.base).absolute() != place.absolute():
            what = f"{self.folder}: was trained on {self.base}, and is put on {title}"
            warnings.warn(f"{what}; check that this is the same model", AdapterWarning, stacklevel=3)

    def put_on(self, model: nn.Module, title: str) -> None:
        """Put the adapter beside the model's layers, in place. Errors: LoadError where it does not fit."""
        peft, before = peft_library(), set(model.state_dict())
        if odd := [name for name in self._shapes() if "lora_" not in name and not self.brings(name)]:
            raise LoadError(  # peft would write them over the base's, which are open
                f"{self.folder}: contains base parameters ({odd[0]}); train it with bias='none', or merge it "
                "into the base"
            )
        try:
            with huggingface(), warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # of what peft asks transformers for
                config = peft.PeftConfig.from_pretrained(self.folder, **FILES_ALONE)
                config.inference_mode = True
                whole = peft.PeftModel(model, config, NAME)
                result = whole.load_adapter(self.folder, NAME, torch_device="cpu", local_files_only=True)
        except Exception as error:  # peft raises many kinds here; all mean the same to a user
            raise self._misfit(title, first_line(error)) from None
        if odd := [*result.missing_keys, *result.unexpected_keys]:
            raise self._misfit(title, f"{len(odd)} parameters are in one and not in the other, first {odd[0]}")
        now = {name: name.replace(".base_layer", "").replace(".original_module", "") for name in model.state_dict()}
        added = [name for name, was in now.items() if was not in before]
        if odd := [name for name in added if not is_added(name)]:
            raise LoadError(
                f"{self.folder}: has unknown parameters ({odd[0]}); merge it into the base (merge_and_unload)"
            )
        modules: list[Any] = list(model.modules())
        for module in modules:
            if hasattr(module, "original_module"):  # another takes its place
                module.original_module = nn.Identity()
            for b in getattr(module, "lora_B", {}).values():  # B takes in what peft multiplies B (A x) by
                for parameter in b.parameters():
                    parameter.data *= module.scaling[NAME]
                module.scaling[NAME] = 1.0
        model.eval()

    def _misfit(self, title: str, why: str) -> LoadError:
        trained = f"was trained on {self.base}" if self.base else "was trained on another model"
        return LoadError(f"{self.folder}: does not fit {title} ({why}); it {trained}: give that model")

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        try:
            weights = peft_library().load_peft_weights(self.folder, device="cpu", local_files_only=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise LoadError(f"{self.folder}: its weights cannot be read ({first_line(error)}); copy it again") from None
        return {name: tuple(value.shape) for name, value in weights.items()}


def is_added(name: str) -> bool:
    """Whether a parameter of this name is an adapter's."""
    return any(fnmatchcase(name, pattern) for pattern in ADDED)


def added_to(model: nn.Module) -> list[str]:
    """Patterns of the parameters that an adapter added to a model; empty: it has none."""
    names = [name for name, _ in model.named_parameters()]
    return [pattern for pattern in ADDED if any(fnmatchcase(name, pattern) for name in names)]


def without_peft(model: nn.Module) -> nn.Module:
    """The model in one of peft's, with its LoRA adapters on; any other model as it is.

    Errors: LoadError for adapters of other kinds, and for merged ones, whose numbers are in the base's weights.
    """
    whole: Any = model
    if any(getattr(part, "merged", False) for part in whole.modules()):
        raise LoadError("model: its adapter is merged into public weights; unmerge it: model.unmerge_adapter()")
    kinds = getattr(whole, "peft_config", None) or {}
    if odd := sorted({str(one.peft_type.value) for one in kinds.values()} - {"LORA"}):
        raise LoadError(f"model: has an adapter of kind {odd[0]}, and only LoRA is computed beside its base")
    return whole.get_base_model() if hasattr(whole, "get_base_model") else model


def parse_adapters(given: Iterable[str]) -> dict[str, Path]:
    """Folders by name, from NAME=FOLDER each. Errors: LoadError."""
    adapters: dict[str, Path] = {}
    for item in given:
        name, equals, folder = item.partition("=")
        if not equals or not name.isprintable() or not name.strip() or {"/", "\\"} & set(name) or name[0] == ".":
            raise LoadError(f"adapter {item}: give NAME=FOLDER, where NAME has no slash and begins with no dot")
        if name in adapters:
            raise LoadError(f"adapter {name}: is given twice; call one of them differently")
        adapters[name] = Path(folder).expanduser()
        if not adapters[name].is_dir():
            raise LoadError(f"adapter {item}: there is no such folder; give the one that peft's save_pretrained wrote")
    return adapters


def peft_library() -> Any:
    """Errors: LoadError without peft."""
    try:
        import peft  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise LoadError("adapters need peft; run: pip install 'blindformer[adapters]'") from None
    return peft
