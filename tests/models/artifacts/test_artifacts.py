"""A compiled folder: several lengths, whole or not at all, and nothing of the server's in the client's part."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from blindformer.models.artifacts import (
    FORMAT,
    ArtifactError,
    load_client,
    load_helper,
    load_programs,
    load_server,
    save,
    versions,
)
from blindformer.models.artifacts.layout import describe_files
from blindformer.models.building import compile_folder, compile_images, compile_lengths, default_lengths
from blindformer.models.loading.errors import InputError, LoadError
from blindformer.models.loading.load import Loaded, load
from blindformer.models.program.interpreter import interpret
from blindformer.models.program.program import ProgramError
from blindformer.protocols.clear import ClearEngine
from safetensors.torch import load_file, save_file
from torch import Tensor

TEXTS = ("how is my password ?", "not good , bad !", "the password is lost .", "what a good red !")
LENGTHS = (8, 16)


def randomise(model) -> None:
    """No weight may look like another's: no ones in a gamma, no zeros in a bias or in the row of the padding."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "LayerNorm.weight" in name else 0.0
            parameter.copy_(centre + 0.1 * torch.randn(parameter.shape, generator=generator))


@dataclass
class Made:
    loaded: Loaded
    folder: Path


@pytest.fixture(scope="module", params=["client", "private"])
def made(request, tiny_classifier, tmp_path_factory) -> Made:
    """A classifier compiled for two lengths, its embedding released or not."""
    loaded = load(tiny_classifier)
    randomise(loaded.model)
    found = compile_lengths(loaded, LENGTHS, texts=TEXTS, embedding=request.param)
    return Made(loaded, save(found, tmp_path_factory.mktemp("compiled"), loaded))


@pytest.fixture
def copy(made, tmp_path) -> Path:
    """A folder to spoil."""
    return shutil.copytree(made.folder, tmp_path / "copy")


# --- several lengths -------------------------------------------------------------------------------------------------
def answer(folder: Path, text: str, length: int | None = None):
    """A text's answer on the reference protocol, from the two parts alone."""
    client, server = load_client(folder), load_server(folder)
    question = client.encode(text, length)
    served = server[question.part.program.hash()]
    engine = ClearEngine({**question.sources(), **served.weights, **served.constants})
    return client.decode(question, interpret(served.program, engine).outputs)


def test_the_parts_answer_at_every_length_as_the_model_does(made):
    with torch.no_grad():
        logits = made.loaded.model(**made.loaded.encode(TEXTS[0], 16)).logits[0]
    expected = dict(zip(made.loaded.labels.values(), torch.softmax(logits, -1).tolist(), strict=True))
    for length in (*LENGTHS, None):
        rows = answer(made.folder, TEXTS[0], length)
        assert [row["label"] for row in rows] == sorted(expected, key=lambda label: -expected[label])
        for row in rows:
            assert row["score"] == pytest.approx(expected[row["label"]], abs=1e-3)


def test_lengths_share_the_plan_and_what_they_encode_alike(made):
    server, client = load_server(made.folder), load_client(made.folder)
    assert {item.program.plan for item in server.lengths.values()} == {server.plan.content_hash()}
    short, long = (server.lengths[length] for length in LENGTHS)
    assert set(server) == {short.program.hash(), long.program.hash()}
    for name in short.program.weight_shapes():  # those that clients hold masked: one download serves all lengths
        assert short.weights[name] is long.weights[name]
    assert short.program.weight_shapes() == long.program.weight_shapes()
    tables = [t for t in client.lengths[LENGTHS[0]].tensors.values() if t.ndim == 2]
    assert all(any(t is other for other in client.lengths[LENGTHS[1]].tensors.values()) for t in tables)
    stored = load_file(made.folder / "server" / "tensors.safetensors")
    assert len(stored) < sum(len(item.weights) + len(item.constants) for item in server.lengths.values())
    assert {t.dtype for t in stored.values()} <= {torch.int8, torch.int16, torch.int32, torch.int64}


def test_a_text_is_padded_to_the_least_length_that_fits(made):
    client = load_client(made.folder)
    assert client.encode("good").length == 8
    assert client.encode("good " * 10).length == 16
    with pytest.raises(InputError, match="text has 17 tokens, the model is compiled for 16 at most: shorten it"):
        client.encode("good " * 15)
    with pytest.raises(InputError, match="text has 12 tokens, the length is 8"):
        client.encode("good " * 10, 8)
    with pytest.raises(ArtifactError, match="for the lengths 8, 16, not for 9"):
        client.encode("good", 9)
    with pytest.raises(ArtifactError, match="for the lengths 8, 16; say which one"):
        client.for_length()
    with pytest.raises(InputError, match="is empty"):
        client.encode(" \n")


def test_programs_are_in_every_part(made):
    everywhere = [load_programs(made.folder / part) for part in (".", "server", "client", "helper")]
    assert all(found == everywhere[0] for found in everywhere)
    assert list(everywhere[0]) == list(LENGTHS)


def test_one_call_compiles_a_folder(tiny_encoder, tmp_path):
    stages = []
    folder = compile_folder(
        tiny_encoder, tmp_path / "new" / "folder", lengths=[16, 8, 16], calibration=TEXTS, stage=stages.append
    )
    client = load_client(folder)
    assert list(client.lengths) == [8, 16]
    assert (client.kind, client.task.pipeline, client.task.positions) == ("sentence", "sentence-embedding", 64)
    assert stages[0] == "calibrate"
    assert stages.count("calibrate") == 1
    assert default_lengths(load(tiny_encoder)) == [32, 64]
    for lengths, words in (([65], "the model takes 64"), ([0], "give numbers of tokens")):
        with pytest.raises(LoadError, match=words):
            compile_folder(tiny_encoder, tmp_path / "other", lengths=lengths)
    assert not (tmp_path / "other").exists()


def test_a_model_alone_is_saved_for_tensors_only(made, tmp_path):
    (compiled,) = compile_lengths(made.loaded, [8], texts=TEXTS).values()
    client = load_client(save(compiled, tmp_path))
    assert client.for_length().program == compiled.program
    assert load_server(tmp_path).for_length().program == compiled.program
    with pytest.raises(InputError, match="has no tokenizer"):
        client.encode("good")


# --- images ----------------------------------------------------------------------------------------------------------
def test_a_model_of_images_has_one_program_and_reads_files(tiny_vision, pictures, tmp_path):
    folder = compile_folder(tiny_vision, tmp_path, calibration=[pictures])
    client = load_client(folder)
    assert (client.task.pipeline, list(client.lengths)) == ("image-classification", [0])
    file = sorted(pictures.iterdir())[0]
    loaded = load(tiny_vision)
    with torch.no_grad():
        expected = torch.softmax(loaded.model(**loaded.encode_image(file)).logits[0], -1)
    rows = answer(folder, file)
    assert rows[0]["label"] == loaded.labels[int(expected.argmax())]
    assert rows[0]["score"] == pytest.approx(float(expected.max()), abs=1e-3)
    with pytest.raises(InputError, match="there is no such file"):
        client.encode(tmp_path / "nothing.png")
    with pytest.raises(InputError, match="is no image that can be read"):
        client.encode(folder / "client" / "client.json")
    with pytest.raises(LoadError, match="have no lengths"):
        compile_folder(tiny_vision, tmp_path, lengths=[8], calibration=[pictures])
    with pytest.raises(LoadError, match="typical ones to calibrate on"):
        compile_images(loaded, None)


def test_an_image_of_another_size_is_refused_where_the_processor_does_not_resize(tiny_vision, pictures, tmp_path):
    from PIL import Image

    folder = compile_folder(tiny_vision, tmp_path, calibration=[pictures])
    client = load_client(folder)
    client.task.processor.do_resize = False
    with pytest.raises(InputError, match=r"pixel_values is 3 x 9 x 7 here, .* for 3 x 16 x 16: resize the image"):
        client.encode(Image.new("RGB", (7, 9)))


# --- what the client's part holds ------------------------------------------------------------------------------------
NEEDLE = 8  # bytes: shorter rows are found in anything
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8)


def forms(weight: Tensor) -> dict[str, list[bytes]]:
    """The rows and columns of a weight (float, or integers) as they would lie in a file, by the name of the form."""
    lines = weight.reshape(-1, weight.shape[-1]) if weight.ndim else weight.reshape(1, 1)
    found: dict[str, list[bytes]] = {}
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
            found[f"{name} {way}"] = [needle for needle in raw if len(needle) >= NEEDLE]
        found[f"text {way}"] = [json.dumps(row.tolist()).strip("[]").encode() for row in rows]
    return found


def private_weights(made: Made) -> dict[str, Tensor]:
    """Every weight that the server keeps: as the model holds it, and as every program encodes it."""
    released = {name for program in load_programs(made.folder).values() for name in program.released}
    state = dict(made.loaded.model.named_parameters())
    assert released <= {*state, *dict(made.loaded.model.named_buffers())}
    found = {name: value.detach() for name, value in state.items() if name not in released}
    for length, item in load_server(made.folder).lengths.items():
        for name, integers in item.weights.items():
            scale = int(re.findall(r"@(-?\d+)", name)[-1])
            found[f"{name} of length {length}, encoded"] = integers
            found[f"{name} of length {length}, as numbers"] = integers.double() / 2.0**scale
    return found


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


def test_the_client_part_holds_no_private_weight(made):
    weights = private_weights(made)
    released = load_programs(made.folder)[LENGTHS[0]].released
    assert any("word_embeddings" in name for name in (*weights, *released))
    assert sum(w.numel() for w in weights.values()) > 10_000
    assert leaks(made.folder / "client", weights) == []
    assert leaks(made.folder / "helper", weights) == []
    assert leaks(made.folder / "server", weights)  # where they are, the search finds them


@pytest.mark.parametrize(
    "form", ["float32 rows", "float32 columns", "int64 rows", "int16 rows", "int16 columns", "text rows"]
)
def test_the_search_finds_a_weight_that_is_planted(made, copy, form):
    weights = private_weights(made)
    name = next(n for n in weights if "0.output.dense.weight" in n and n.endswith("encoded") == form.startswith("int"))
    (needles,) = [found for key, found in forms(weights[name]).items() if key.removeprefix("torch.") == form]
    target = copy / "client" / "tokenizer.json"
    target.write_bytes(target.read_bytes() + b" " + needles[7])  # one row, at any offset
    assert [leak for leak in leaks(copy / "client", weights) if leak.startswith("tokenizer.json: ")]


def test_the_search_finds_a_tensor_saved_with_the_released_ones(made, copy):
    weights = private_weights(made)
    file = copy / "client" / "tensors.safetensors"
    value = next(v for n, v in weights.items() if n.endswith("intermediate.dense.weight"))
    save_file({**load_file(file), "planted": value.contiguous()}, file)
    assert any("intermediate.dense.weight" in leak for leak in leaks(copy / "client", weights))


# --- whole or not at all ---------------------------------------------------------------------------------------------
def test_versions_are_checked(made, copy):
    with pytest.raises(ArtifactError, match="is the client's part; give the server's"):
        load_server(copy / "client")
    with pytest.raises(ArtifactError, match="holds no compiled model; give the folder that compile wrote"):
        load_server(copy.parent / "nowhere")
    file = copy / "server" / "versions.json"
    found = versions(copy / "server")
    assert found["format"] == FORMAT
    assert set(found["versions"]) == {"python", "blindformer", "torch", "transformers"}
    file.write_text(json.dumps({**found, "format": FORMAT - 1}))
    with pytest.raises(ArtifactError, match=f"has format {FORMAT - 1}, this version reads {FORMAT}; compile again"):
        load_server(copy)
    odd = [{}, {"files": {"a": 3}}, {"files": {}, "programs": {"long": ""}}, {"files": {}, "programs": [8]}]
    for damage in ("[]", "{", *(json.dumps({"format": FORMAT, "part": "server", **more}) for more in odd)):
        file.write_text(damage)
        with pytest.raises(ArtifactError, match=r"compile"):
            load_server(copy)


@pytest.mark.parametrize("name", ["tensors.safetensors", "lengths/8/program.json", "lengths/16/tensors.json"])
@pytest.mark.parametrize("part", ["server", "client"])
def test_a_damaged_file_is_named(copy, part, name):
    file, read = copy / part / name, {"server": load_server, "client": load_client}[part]
    whole = file.read_bytes()
    for content, words in (
        (whole[:-1], "is not whole"),
        (b"", "is not whole"),
        (bytes([whole[0] ^ 1]) + whole[1:], "is not what was compiled"),
    ):
        file.write_bytes(content)
        with pytest.raises(ArtifactError, match=words) as caught:
            read(copy)
        assert str(file) in str(caught.value)
    file.unlink()
    with pytest.raises(ArtifactError, match="cannot be read"):
        read(copy)


@pytest.mark.parametrize(("name", "key"), [("client.json", "scores"), ("lengths/8/tensors.json", "scales")])
def test_a_client_part_of_another_version_is_one_line(copy, name, key):
    """Whole by its digests, and yet without what this version reads."""
    part = copy / "client"
    fields = json.loads((part / name).read_text())
    del fields[key]
    (part / name).write_text(json.dumps(fields))
    known = json.loads((part / "versions.json").read_text())
    (part / "versions.json").write_text(json.dumps({**known, "files": describe_files(part)}))
    with pytest.raises(ArtifactError, match=r"is not as this version of Blindformer writes it; compile again$"):
        load_client(copy)


def test_a_part_without_versions_is_none(copy):
    (copy / "client" / "versions.json").unlink()
    with pytest.raises(ArtifactError, match="holds no compiled model"):
        load_client(copy)
    load_server(copy)


COMPILE = """
import os, random, resource, signal, sys, time
from pathlib import Path
import torch
from blindformer.models.artifacts import ArtifactError, load_client, load_server, save
from blindformer.models.compile import compile

torch.set_num_threads(1)
torch.manual_seed(int(sys.argv[2]))
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 4)).eval()
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = model
    def forward(self, x):
        return {"y": self.inner(x)}
made = [compile(Model(), [{"x": torch.randn(1, n, 64)} for _ in range(3)]) for n in (2, 3)]
folder = Path(sys.argv[1])
"""

FULL = (
    COMPILE
    + """
save(made[1], folder)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # files end here, as on a full disk
try:
    save(made[0], folder)
except ArtifactError as error:
    print(error)
assert load_server(folder).for_length().program == load_client(folder).for_length().program == made[1].program
"""
)

KILLED = (
    COMPILE
    + """
chance, seen = random.Random(7), set()
for _ in range(12):
    told, tell = os.pipe()
    child = os.fork()
    if not child:
        while True:
            for one in made:
                save(one, folder)
                os.write(tell, b".")
    os.read(told, 1)  # it has written at least once
    time.sleep(chance.uniform(0.0, 0.05))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    for read in (load_server, load_client):
        try:
            program = read(folder).for_length().program
            assert program in [one.program for one in made]
            seen.add("whole")
        except ArtifactError as error:
            assert "holds no compiled model" in str(error), error
            seen.add("none")
save(made[0], folder)
assert load_server(folder).for_length().program == load_client(folder).for_length().program == made[0].program
print(sorted(path.name for path in folder.iterdir()), "whole" in seen)
"""
)


def script(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), "0"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_full_disk_is_one_line_and_leaves_what_was_there(tmp_path):
    said = script(FULL, tmp_path)
    assert re.search(r"cannot be written \(.*\); free space or choose another folder$", said)
    assert "\n" not in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["client", "helper", "server"]


def test_a_compilation_that_is_killed_leaves_whole_parts_or_none(tmp_path):
    assert script(KILLED, tmp_path / "out") == "['client', 'helper', 'server'] True"


def test_only_compiled_parts_are_replaced(made, tmp_path):
    (compiled,) = compile_lengths(made.loaded, [8], texts=TEXTS).values()
    (tmp_path / "certs").mkdir()
    (tmp_path / "client").mkdir()  # empty: nobody's
    save(compiled, tmp_path)
    save(compiled, tmp_path)
    assert (tmp_path / "certs").is_dir()
    for name in ("server", "client"):
        shutil.rmtree(tmp_path / name)
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text("mine")
        with pytest.raises(ArtifactError, match="is there already and is no compiled model; choose another folder"):
            save(compiled, tmp_path)
        assert (tmp_path / name / "notes.txt").read_text() == "mine"
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ArtifactError, match="cannot be written"):
        save(compiled, file)


def test_a_recompilation_keeps_the_servers_secret(copy, made):
    file = load_server(copy).secret_file
    file.write_bytes(b"whatever the server put there")
    file.chmod(0o600)
    (compiled,) = compile_lengths(made.loaded, [8], texts=TEXTS).values()
    save(compiled, copy)
    assert load_server(copy).secret_file == file
    assert file.read_bytes() == b"whatever the server put there"
    assert file.stat().st_mode & 0o777 == 0o600


def test_inputs_of_another_shape_are_explained(made):
    part = load_client(made.folder).for_length(8)
    with pytest.raises(ProgramError, match=r"the program takes \[1, 8\]"):
        part.encode_inputs({name: torch.zeros(1, 9, dtype=torch.int64) for name in part.program.inputs})


def test_the_helper_part_holds_programs_and_public_constants_alone(made):
    helper, client = load_helper(made.folder), load_client(made.folder)
    assert list(helper.lengths) == list(client.lengths)
    for length, found in helper.lengths.items():
        expected = client.lengths[length]
        assert found.program == expected.program
        assert found.constants.keys() == expected.constants.keys()
        assert all(torch.equal(found.constants[name], value) for name, value in expected.constants.items())
    files = {file.name for file in (made.folder / "helper").rglob("*") if file.is_file()}
    assert files == {"versions.json", "tensors.safetensors", "tensors.json", "program.json"}
