"""The weights of a delegated model on disk, as its server and its dealer read them: neither needs a model's own code.

    DIR/<part>/delegated.json   DIR/<part>/integers/<group>.safetensors

Integers are mapped, so all processes of a machine share them.
"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..artifacts.layout import ArtifactError, find_part, read_json
from . import MANIFEST
from .manifest import Manifest, digest_of

INTEGERS = "integers"
TENSORS = ".safetensors"  # of integers, scales and what the client computes with, the manifest has digests


def load_weights(folder: str | Path, part: str) -> tuple[Manifest, list[Tensor]]:
    """What the server or the dealer holds: by group, integers [outputs, inputs]. Errors: ArtifactError."""
    return weights_at(find_part(folder, part, TENSORS))


def weights_at(place: Path) -> tuple[Manifest, list[Tensor]]:
    """The same, of a part whose files were checked. Errors: ArtifactError."""
    manifest = _manifest(place)
    integers = [_integers(place, number, entry.integers) for number, entry in enumerate(manifest.groups)]
    return manifest, integers


def write_integers(folder: Path, number: int, integers: Tensor) -> Tensor:
    """Write a group's integers into a file, and map them: they take no more memory. Errors: ArtifactError."""
    file = folder / integers_file(number)
    try:
        save_file({"integers": integers}, file)
        return load_file(file)["integers"]
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{file}: cannot be written ({error}); free space or choose another folder") from None


def integers_file(number: int) -> str:
    return f"{number}{TENSORS}"


def _manifest(place: Path) -> Manifest:
    try:
        return Manifest.from_json(read_json(place / MANIFEST))
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{place / MANIFEST}: is not of this version ({error}); prepare the model again") from None


def _integers(place: Path, number: int, digest: str) -> Tensor:
    file = place / INTEGERS / integers_file(number)
    try:
        tensor = load_file(file)["integers"]
    except (OSError, KeyError, SafetensorError) as error:
        raise ArtifactError(f"{file}: cannot be read ({error}); prepare the model again") from None
    if digest_of(tensor) != digest:
        raise ArtifactError(f"{file}: is not the manifest's; prepare the model again")
    return tensor
