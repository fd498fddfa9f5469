"""A compiled model on disk, split into what the server keeps and what the client may hold.

    DIR/server/   program.json  weights.safetensors  constants.safetensors
    DIR/client/   program.json  client.safetensors   constants.safetensors  client.json (+ tokenizer files)
    DIR/dealer/   program.json
Each part has a versions.json, checked on load. Nothing is pickled.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..protocols.errors import BlindformerError
from .compile import Compiled, encode_client
from .program import FORMAT, Program

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "vocab.json", "merges.txt",
    "preprocessor_config.json", "config.json",
)  # fmt: skip


class ArtifactError(BlindformerError):
    """A compiled folder that cannot be read."""


@dataclass
class ServerPart:
    program: Program
    weights: dict[str, Tensor]
    constants: dict[str, Tensor]


@dataclass
class ClientPart:
    program: Program
    tensors: dict[str, Tensor]
    constants: dict[str, Tensor]
    scales: dict[str, int]
    folder: Path

    def encode_inputs(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        return encode_client(self.program, self.tensors, self.scales, inputs)


def save(compiled: Compiled, folder: str | Path, model_folder: str | Path | None = None) -> Path:
    """Write both parts and the dealer's program. `model_folder`: where the tokenizer's files are."""
    root = Path(folder)
    try:
        for part in ("server", "client", "dealer"):
            (root / part).mkdir(parents=True, exist_ok=True)
            compiled.program.save(root / part / "program.json")
            (root / part / "versions.json").write_text(json.dumps({"format": FORMAT, "part": part}))
        _save(compiled.weights, root / "server" / "weights.safetensors")
        _save(compiled.constants, root / "server" / "constants.safetensors")
        _save(compiled.constants, root / "client" / "constants.safetensors")
        _save(compiled.client_tensors, root / "client" / "client.safetensors")
        (root / "client" / "client.json").write_text(json.dumps({"scales": compiled.client_scales}))
        compiled.plan.save(root / "server" / "plan.json")
        for name in TOKENIZER_FILES:
            source = Path(model_folder) / name if model_folder else None
            if source and source.exists():
                shutil.copy(source, root / "client" / name)
    except OSError as error:
        raise ArtifactError(
            f"{error.filename or root}: cannot be written ({error.strerror}); free space or choose another folder"
        ) from None
    return root


def load_server(folder: str | Path) -> ServerPart:
    part = _part(folder, "server")
    return ServerPart(
        Program.load(part / "program.json"), _load(part / "weights.safetensors"), _load(part / "constants.safetensors")
    )


def load_client(folder: str | Path) -> ClientPart:
    part = _part(folder, "client")
    scales = json.loads((part / "client.json").read_text())["scales"]
    return ClientPart(
        Program.load(part / "program.json"),
        _load(part / "client.safetensors"),
        _load(part / "constants.safetensors"),
        scales,
        part,
    )


def load_program(folder: str | Path) -> Program:
    return Program.load(_part(folder, "dealer") / "program.json")


def _part(folder: str | Path, name: str) -> Path:
    path = Path(folder)
    if (path / name).is_dir():
        path = path / name
    try:
        versions = json.loads((path / "versions.json").read_text())
    except (OSError, ValueError):
        raise ArtifactError(f"{path}: holds no compiled model; give the folder that compile wrote") from None
    if versions.get("format") != FORMAT:
        raise ArtifactError(f"{path}: has format {versions.get('format')}, this version reads {FORMAT}; compile again")
    if versions.get("part") != name:
        raise ArtifactError(f"{path}: is the {versions.get('part')}'s part; give the {name}'s")
    return path


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}); compile the model again") from None
