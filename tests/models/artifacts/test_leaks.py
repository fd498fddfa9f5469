"""What the client's part holds: nothing of the weights that the server keeps, in any form."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from blindformer.models.artifacts import load_programs, load_server
from safetensors.torch import load_file, save_file
from torch import Tensor

from .conftest import LENGTHS, Made

NEEDLE = 8  # bytes: shorter rows are found in anything
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8)


def forms(weight: Tensor) -> dict[str, list[bytes]]:
    """The rows and columns of a weight (float, or integers) as they would lie in a file, by the name of the form."""
    lines = weight.reshape(-1, weight.shape[-1]) if weight.ndim else weight.reshape(1, 1)
    encodings: dict[str, list[bytes]] = {}
    for way, rows in (("rows", lines), ("columns", lines.T)):
        if rows.shape[1] < 2:
            continue
        if weight.is_floating_point():
            shapes = {str(kind): rows.to(kind) for kind in FLOATS}
        else:
            fits = [k for k in INTEGERS if torch.iinfo(k).min <= rows.min() and rows.max() <= torch.iinfo(k).max]
            shapes = {str(kind): rows.to(kind) for kind in fits}
        for name, tensor in shapes.items():
            raw = [row.contiguous().view(torch.uint8).numpy().tobytes() for row in tensor]
            encodings[f"{name} {way}"] = [needle for needle in raw if len(needle) >= NEEDLE]
        encodings[f"text {way}"] = [json.dumps(row.tolist()).strip("[]").encode() for row in rows]
    return encodings


def private_weights(artifacts: Made) -> dict[str, Tensor]:
    """Every weight that the server keeps: as the model holds it, and as every program encodes it."""
    released = {name for program in load_programs(artifacts.folder).values() for name in program.released}
    state = dict(artifacts.loaded.model.named_parameters())
    assert released <= {*state, *dict(artifacts.loaded.model.named_buffers())}
    private = {name: value.detach() for name, value in state.items() if name not in released}
    for length, item in load_server(artifacts.folder).lengths.items():
        for name, integers in item.weights.items():
            scale = int(re.findall(r"@(-?\d+)", name)[-1])
            private[f"{name} of length {length}, encoded"] = integers.long()
            private[f"{name} of length {length}, as numbers"] = integers.double() / 2.0**scale
    return private


def leaks(part: Path, weights: dict[str, Tensor]) -> list[str]:
    """Where a row of a private weight lies in a file of the part, in any form."""
    files = [(file, file.read_bytes()) for file in sorted(part.rglob("*")) if file.is_file()]
    return [
        f"{file.name}: {name} as {form}"
        for name, weight in weights.items()
        for form, needles in forms(weight).items()
        for file, content in files
        if any(needle in content for needle in needles)
    ]


def test_the_client_part_holds_no_private_weight(artifacts):
    weights = private_weights(artifacts)
    released = load_programs(artifacts.folder)[LENGTHS[0]].released
    assert any("word_embeddings" in name for name in (*weights, *released))
    assert sum(w.numel() for w in weights.values()) > 10_000
    assert leaks(artifacts.folder / "client", weights) == []
    assert leaks(artifacts.folder / "helper", weights) == []
    assert leaks(artifacts.folder / "server", weights)  # where they are, the search finds them


@pytest.mark.parametrize("form", ["float32 rows", "float32 columns", "int64 rows", "int16 rows", "int16 columns",
                                  "text rows", "saved with the released ones"])  # fmt: skip
def test_the_search_finds_a_weight_that_is_planted(artifacts, copy, form):
    weights = private_weights(artifacts)
    encoded = form.startswith("int")
    name = next(n for n in weights if "0.output.dense.weight" in n and n.endswith("encoded") == encoded)
    if form.startswith("saved"):
        target = copy / "client" / "tensors.safetensors"
        save_file({**load_file(target), "planted": weights[name].contiguous()}, target)
    else:
        (needles,) = [encoding for key, encoding in forms(weights[name]).items() if key.removeprefix("torch.") == form]
        target = copy / "client" / "tokenizer.json"
        target.write_bytes(target.read_bytes() + b" " + needles[7])  # one row, at any offset
    assert [leak for leak in leaks(copy / "client", weights) if leak.startswith(f"{target.name}: ")]
