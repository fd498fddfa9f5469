"""A delegated model on disk.

    DIR/server/, DIR/dealer/   delegated.json   integers/<group>.safetensors
    DIR/client/                the same, scales.safetensors, client.json, model/ (the model's own files), tokenizer
    DIR/{server,client}/head/  of a model with a private head: its parts (head.py); the rest is public
    DIR/*/versions.json        size and SHA-256 of each file, checked when the part is read; of tensors the manifest's

Integers are mapped, so all processes of a machine share them. All but a head is public.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ...versions import versions
from ..artifacts import load_client, save
from ..artifacts.layout import FORMAT, VERSIONS, ArtifactError, describe_files, find_part, part_place, read_json
from ..artifacts.layout import versions as part_versions
from ..artifacts.writing import check_free
from ..compile import Compiled
from ..data.dataset import columns_of
from ..loading.adapters import Adapter, AdapterWarning
from ..loading.ctranslate2 import parts_beside
from ..loading.load import Loaded, load
from . import HEAD, MANIFEST
from .head import PrivateHead, head_of, save_without_head, without_head
from .layers import ParameterIndex, base_name
from .manifest import DelegatedModel, digest_of, kept_digest
from .part import DelegatedPart, delegated_part
from .sequences import DelegationError
from .weights import INTEGERS, TENSORS, integers_file, weights_at, write_integers

SCALES, MODEL = "scales.safetensors", "model"
HOLDERS = ("server", "dealer")
_OF_HEAD = ("server", "client")
_ABOUT = "client.json"
_CODE, _OTHER_FORMATS = (".py", ".pyc"), (".bin", ".pth", ".pt", ".gguf", ".h5", ".msgpack", ".onnx", ".ot")


def save_delegated(
    loaded: Loaded,
    part: DelegatedPart,
    folder: str | Path,
    parts: tuple[str, ...] = (),
    files: Path | None = None,
    head: tuple[str, Mapping[int, Compiled]] | None = None,
) -> Path:
    """Write the parts (default: all) into `folder`, a new or empty one, or one of an earlier preparation. `files`:
    where `write_integers` (weights.py) has put the integers; `head`: its name in the model, and its programs. Errors:
    ArtifactError."""
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    check_free(root)
    draft = Path(tempfile.mkdtemp(prefix=".compiling-", dir=root))
    try:
        first, *others = parts or ("client", *HOLDERS)
        _write_weights(part.model, draft / first, files)
        for name in others:
            shutil.copytree(draft / first, draft / name, copy_function=_linked)
        if "client" in (first, *others):
            _write_client(loaded, part, draft / "client", "" if head is None else head[0])
        if head is not None:
            save(head[1], draft / HEAD, parts=_OF_HEAD)
        described = describe_files(draft / ("client" if "client" in others else first))  # others have no more files
        for name in (first, *others):
            there = {file: entry for file, entry in described.items() if (draft / name / file).is_file()}
            about = {"format": FORMAT, "part": name, "versions": versions(), "files": there}
            about |= {"programs": {"0": part.model.manifest.digest}}
            _write_json(draft / name / VERSIONS, about)
            if head is not None and name in _OF_HEAD:
                (draft / HEAD / name).rename(draft / name / HEAD)  # with a list of files of its own
            shutil.rmtree(root / name, ignore_errors=True)
            (draft / name).rename(root / name)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{root}: cannot be written ({error}); free space or choose another folder") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return root


def check_part(folder: str | Path) -> None:
    """Errors: ArtifactError unless the client's part is there, with all its files."""
    place = part_place(folder, "client")
    about = part_versions(place)
    if about.get("part") != "client" or not (place / MANIFEST).is_file():
        raise ArtifactError(f"{place}: is no client's part of a delegated model")
    if missing := [name for name in about["files"] if not (place / name).is_file()]:
        raise ArtifactError(f"{place}: lacks {missing[0]}; prepare the model again")


def load_part(folder: str | Path, adapter: str | Path | None = None, memory: float = 0) -> DelegatedPart:
    """The client's part, with the model's delegated weights left out of memory. `adapter`: the folder of a LoRA adapter
    of the client's own, which computes here, unmerged. `memory`: bytes of layers that compute here, too.

    Errors: ArtifactError, DelegationError, LoadError.
    """
    place = find_part(folder, "client", None if memory else TENSORS)  # no digest is there of layers as they were
    manifest, integers = weights_at(place)
    about = read_json(place / _ABOUT)
    scales = load_file(place / SCALES)
    source = place / MODEL / about["file"] if about["file"] else place / MODEL
    loaded, head = load(source, mapped=True), None
    loaded.name = about["name"]
    if (place / HEAD).is_dir():
        loaded, stand_in = without_head(loaded, head_of(loaded.model, loaded.name))
        head = PrivateHead(stand_in, load_client(place / HEAD))
        if adapter:
            raise DelegationError(f"adapter {adapter}: is put on a public model, and this one has a private head")
    units = [scales[str(number)] for number in range(len(integers))]
    if any(digest_of(unit) != entry.scale for unit, entry in zip(units, manifest.groups, strict=True)):
        raise ArtifactError(f"{place / SCALES}: is not the manifest's; prepare the model again")
    model = DelegatedModel(manifest, integers, units, frozenset())
    how = {"system": about["system"], "seconds": about["seconds"], "folder": place, "memory": memory}
    part = delegated_part(loaded, model, **how)
    if kept_digest(part.runner.module, manifest.parameters) != manifest.kept:
        raise ArtifactError(f"{place / MODEL}: is not the model of the manifest; prepare it again")
    if adapter:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AdapterWarning)  # here the base has the folder's name
            loaded = load(source, Path(adapter).expanduser())
        if (own := Path(adapter).expanduser()).is_dir():
            Adapter.read(own).check_base(about["name"], source)
        loaded.name = f"{about['name']}+{own.name}"
        part = delegated_part(loaded, model, **how)
    if head is not None:
        part.head = head
        part.lengths = {length: part.for_length() for length in head.lengths} or part.lengths
    leave_out(part)
    part.about["columns"] = about.get("columns")
    return part


def leave_out(part: DelegatedPart) -> None:
    """Free the memory of the weights that others compute with. The module still knows their shapes."""
    module, known = part.runner.module, part.model.manifest.parameters
    for name, parameter in module.named_parameters():
        if base_name(name, known) in part.runner.delegated:
            parameter.data = torch.empty_like(parameter)  # pages that nobody touches are not there
    part.runner.index = ParameterIndex(module, known)


def _write_weights(model: DelegatedModel, place: Path, files: Path | None) -> None:
    (place / INTEGERS).mkdir(parents=True)
    _write_json(place / MANIFEST, model.manifest.to_json())
    for number, integers in enumerate(model.integers):
        file = place / INTEGERS / integers_file(number)
        if files is None:
            write_integers(place / INTEGERS, number, integers)
        else:
            _linked(files / integers_file(number), file)
        shutil.copymode(place / MANIFEST, file)  # nothing to hide in it


def _write_client(loaded: Loaded, part: DelegatedPart, place: Path, head: str) -> None:
    save_file({str(number): unit for number, unit in enumerate(part.model.scales)}, place / SCALES)
    shutil.copymode(place / MANIFEST, place / SCALES)
    source = loaded.folder
    (place / MODEL).mkdir()
    if head:
        save_without_head(loaded, head, place / MODEL)
    elif source.is_file():
        _linked(source, place / MODEL / source.name)
    others = _OTHER_FORMATS if any(source.glob("*.safetensors")) else ()
    for folder in () if head or source.is_file() else parts_beside(source):
        for file in sorted(one for one in folder.rglob("*") if one.is_file() and one.suffix not in (*_CODE, *others)):
            target = place / MODEL / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            _linked(file, target)
    system = part.conversation.system if part.conversation is not None else ""
    about: dict[str, Any] = {"name": part.name, "kind": part.kind, "pipeline": part.task.pipeline, "plan": ""}
    about |= {"system": system, "seconds": part.about["seconds"], "lengths": sorted(part.lengths)}
    about |= {"file": source.name if source.is_file() and not head else "", "columns": columns_of(source)}
    _write_json(place / _ABOUT, about)


def _linked(source: str | Path, target: str | Path) -> None:
    """One file on the disk, where that can be."""
    with suppress(OSError):
        os.link(os.path.realpath(source), target)
        return
    shutil.copyfile(source, target)


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
