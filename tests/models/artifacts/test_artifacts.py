"""A compiled folder: several lengths, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
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
from blindformer.models.building import compile_folder, default_lengths, typical_inputs
from blindformer.models.compile import compile
from blindformer.models.loading.huggingface import InputError, LoadError
from blindformer.models.loading.load import load
from blindformer.models.program.program import ProgramError
from blindformer.tests.patience import PATIENCE
from blindformer.tests.protocols.programs import Case
from safetensors.torch import load_file, save_file

from .conftest import LENGTHS, TEXTS


# --- several lengths -------------------------------------------------------------------------------------------------
def answer(folder: Path, text: str, length: int | None = None):
    """A text's answer on the reference protocol, from the two parts alone."""
    client, server = load_client(folder), load_server(folder)
    question = client.encode(text, length)
    served = server[question.part.program.hash()]
    case = Case(served.program, question.sources(), served.weights, served.constants)
    return client.decode(question, case.clear())


def test_the_parts_answer_at_every_length_as_the_model_does(artifacts):
    with torch.no_grad():
        logits = artifacts.loaded.model(**artifacts.loaded.encode(TEXTS[0], 16)).logits[0]
    expected = dict(zip(artifacts.loaded.labels.values(), torch.softmax(logits, -1).tolist(), strict=True))
    for length in (*LENGTHS, None):
        rows = answer(artifacts.folder, TEXTS[0], length)
        assert [row["label"] for row in rows] == sorted(expected, key=lambda label: -expected[label])
        for row in rows:
            assert row["score"] == pytest.approx(expected[row["label"]], abs=1e-3)


def test_lengths_share_the_plan_and_what_they_encode_alike(artifacts):
    server, client = load_server(artifacts.folder), load_client(artifacts.folder)
    assert {item.program.plan for item in server.lengths.values()} == {server.plan.content_hash()}
    short, long = (server.lengths[length] for length in LENGTHS)
    assert set(server) == {short.program.hash(), long.program.hash()}
    for name in short.program.weight_shapes():  # those that clients hold masked: one download serves all lengths
        assert short.weights[name] is long.weights[name]
    assert short.program.weight_shapes() == long.program.weight_shapes()
    tables = [t for t in client.lengths[LENGTHS[0]].tensors.values() if t.ndim == 2]
    assert all(any(t is other for other in client.lengths[LENGTHS[1]].tensors.values()) for t in tables)
    stored = load_file(artifacts.folder / "server" / "tensors.safetensors")
    assert len(stored) < sum(len(item.weights) + len(item.constants) for item in server.lengths.values())
    assert {t.dtype for t in stored.values()} <= {torch.int8, torch.int16, torch.int32, torch.int64}


def test_a_text_is_padded_to_the_least_length_that_fits(artifacts):
    client = load_client(artifacts.folder)
    assert client.encode("good").length == 8
    assert client.encode("good " * 10).length == 16
    for ask, error, words in (
        (lambda: client.encode("good " * 15), InputError, "text has 17 tokens, the model is compiled for 16 at most"),
        (lambda: client.encode("good " * 10, 8), InputError, "text has 12 tokens, the length asked for is 8"),
        (lambda: client.encode("good", 9), ArtifactError, "for the lengths 8, 16, not for 9"),
        (client.for_length, ArtifactError, "for the lengths 8, 16; say which one"),
        (lambda: client.encode(" \n"), InputError, "is empty"),
    ):
        with pytest.raises(error, match=words):
            ask()


def test_every_part_holds_the_programs_and_the_helper_s_no_more_than_public_constants(artifacts):
    everywhere = [load_programs(artifacts.folder / part) for part in (".", "server", "client", "helper")]
    assert all(item == everywhere[0] for item in everywhere)
    assert list(everywhere[0]) == list(LENGTHS)
    client = load_client(artifacts.folder)
    for length, item in load_helper(artifacts.folder).lengths.items():
        expected = client.lengths[length]
        assert item.program == expected.program
        assert item.constants.keys() == expected.constants.keys()
        assert all(torch.equal(item.constants[name], value) for name, value in expected.constants.items())
    helper = artifacts.folder / "helper"
    files = {file.name for file in helper.rglob("*") if file.is_file() and file.parent != helper / "tensors"}
    assert files == {"versions.json", "tensors.safetensors", "tensors.json", "program.json"}


def test_one_call_compiles_a_folder(tiny_encoder, tmp_path):
    folder = compile_folder(tiny_encoder, tmp_path / "new" / "folder", lengths=[16, 8, 16], calibration=TEXTS)
    client = load_client(folder)
    assert list(client.lengths) == [8, 16]
    assert (client.kind, client.task.pipeline, client.task.positions) == ("sentence", "sentence-embedding", 64)
    assert default_lengths(load(tiny_encoder)) == [32, 64]
    for lengths, words in (([65], "the model takes 64"), ([0], "give numbers of tokens")):
        with pytest.raises(LoadError, match=words):
            compile_folder(tiny_encoder, tmp_path / "other", lengths=lengths)
    assert not (tmp_path / "other").exists()


def test_compiling_says_how_much_is_done(tiny_encoder, tmp_path):
    """Of all lengths and all texts, and never less than before."""
    calls: list[tuple[str, float]] = []
    compile_folder(
        tiny_encoder,
        tmp_path,
        lengths=[8, 16],
        calibration=TEXTS,
        progress=lambda what, done, total: calls.append((what, done / total)),
    )
    shares = [share for _, share in calls]
    assert shares == sorted(shares)
    assert shares[0] < 0.1
    assert calls[-1] == ("write", 1)
    assert len([share for what, share in calls if what == "16 tokens: measure"]) == len(TEXTS) + 1
    assert {what for what, _ in calls} >= {"calibrate", "8 tokens: lower", "16 tokens: optimise"}


def test_a_model_alone_is_saved_for_tensors_only(compiled, tmp_path):
    client = load_client(save(compiled, tmp_path))
    assert client.for_length().program == compiled.program
    assert load_server(tmp_path).for_length().program == compiled.program
    with pytest.raises(InputError, match="has no tokenizer"):
        client.encode("good")


# --- images ----------------------------------------------------------------------------------------------------------
def test_a_model_of_images_has_one_program_and_reads_files_of_its_size(tiny_vision, pictures, tmp_path):
    folder = compile_folder(tiny_vision, tmp_path, calibration=[pictures])
    client = load_client(folder)
    assert (client.task.pipeline, list(client.lengths)) == ("image-classification", [0])
    file = sorted(pictures.iterdir())[0]
    loaded = load(tiny_vision)
    with torch.no_grad():
        expected = torch.softmax(loaded.model(**loaded.encode_file(file)).logits[0], -1)
    rows = answer(folder, file)
    assert rows[0]["label"] == loaded.labels[int(expected.argmax())]
    assert rows[0]["score"] == pytest.approx(float(expected.max()), abs=1e-3)
    with pytest.raises(InputError, match="there is no such file"):
        client.encode(tmp_path / "nothing.png")
    with pytest.raises(InputError, match="is no image that can be read"):
        client.encode(folder / "client" / "client.json")
    client.task.processor.do_resize = False
    with pytest.raises(InputError, match=r"pixel_values is 3 x 9 x 7 here, .* for 3 x 16 x 16: resize the image"):
        client.encode(pytest.importorskip("PIL.Image").new("RGB", (7, 9)))
    with pytest.raises(LoadError, match="have no lengths"):
        compile_folder(tiny_vision, tmp_path, lengths=[8], calibration=[pictures])
    with pytest.raises(LoadError, match="typical ones to calibrate on"):
        typical_inputs(loaded, None, None)


# --- whole or not at all ---------------------------------------------------------------------------------------------
def test_versions_are_checked(artifacts, copy):
    with pytest.raises(ArtifactError, match="is the client's part; give the server's"):
        load_server(copy / "client")
    with pytest.raises(ArtifactError, match="holds no compiled model; give the folder that compile wrote"):
        load_server(copy.parent / "nowhere")
    (copy / "client" / "versions.json").unlink()
    with pytest.raises(ArtifactError, match="holds no compiled model"):
        load_client(copy)
    file = copy / "server" / "versions.json"
    about = versions(copy / "server")
    assert about["format"] == FORMAT
    assert set(about["versions"]) == {"python", "blindformer", "torch", "transformers"}
    file.write_text(json.dumps({**about, "format": FORMAT - 1}))
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


@pytest.mark.parametrize(("part", "read"), [("server", load_server), ("client", load_client), ("helper", load_helper)])
def test_a_public_constant_is_the_one_that_the_program_names(copy, part, read):
    """Whole by its digests, and with another number than the other parties have, or with one more."""
    folder = copy / part
    file = folder / "lengths" / "8" / "tensors.json"
    names = json.loads(file.read_text())
    name, other = list(names["constants"])[:2]
    for changed in ({name: names["constants"][other]}, {"more@8": names["constants"][other]}):
        file.write_text(json.dumps({**names, "constants": {**names["constants"], **changed}}))
        rewritten(folder)
        what = f"constant {min(changed)} is not the one of the program; compile the model again"
        with pytest.raises(ArtifactError, match=what):
            read(copy)


def rewritten(folder: Path, tensors: dict[str, torch.Tensor] | None = None) -> None:
    """Add tensors to a part, or replace them, and make it whole by the digests of its files."""
    file = folder / "tensors.safetensors"
    save_file({**load_file(file), **(tensors or {})}, file)
    known = json.loads((folder / "versions.json").read_text())
    (folder / "versions.json").write_text(json.dumps({**known, "files": describe_files(folder)}))


@pytest.mark.parametrize(("part", "read"), [("server", load_server), ("client", load_client), ("helper", load_helper)])
def test_a_tensor_is_the_one_of_its_name(copy, part, read):
    """Also in a folder that somebody else compiled, with digests of its own."""
    rewritten(copy / part, {name: value + 1 for name, value in load_file(copy / part / "tensors.safetensors").items()})
    with pytest.raises(ArtifactError, match="is not the tensor of its digest; compile the model again"):
        read(copy)


def test_tensors_are_named_by_all_of_sha_256(artifacts):
    for part in ("server", "client", "helper"):
        for name, value in load_file(artifacts.folder / part / "tensors.safetensors").items():
            content = f"{value.dtype} {tuple(value.shape)} ".encode() + value.numpy().tobytes()
            assert name.removeprefix("ring-") == hashlib.sha256(content).hexdigest()


def test_a_folder_replaces_no_tensor_of_another(artifacts, tmp_path):
    """An adapter's folder holds tensors under the names of those that a server reads next."""
    other = compile(torch.nn.Linear(4, 4).eval(), [{"input": torch.rand(1, 4)}])
    folder, shared = save(other, tmp_path / "other") / "server", dict[str, torch.Tensor]()
    wanted = load_server(artifacts.folder).lengths[LENGTHS[0]]
    theirs = load_file(artifacts.folder / "server" / "tensors.safetensors")
    rewritten(folder, {name: value + 1 for name, value in theirs.items()})
    load_server(folder, shared)
    loaded = load_server(artifacts.folder, shared).lengths[LENGTHS[0]]
    assert all(torch.equal(loaded.weights[name], value) for name, value in wanted.weights.items())


SCRIPT = """
import os, random, resource, signal, sys, time
from pathlib import Path
import torch
from blindformer.models.artifacts import ArtifactError, load_client, load_server, save
from blindformer.models.compile import compile
from blindformer.protocols.forks import fork

torch.set_num_threads(1)
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 4)).eval()
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = model
    def forward(self, x):
        return {"y": self.inner(x)}
models = [compile(Model(), [{"x": torch.randn(1, n, 64)} for _ in range(3)]) for n in (2, 3)]
folder = Path(sys.argv[1])

chance, seen = random.Random(7), set()
for _ in range(12):
    reading, writing = os.pipe()
    child = fork()
    if not child:
        while True:
            for one in models:
                save(one, folder)
                os.write(writing, b".")
    os.read(reading, 1)  # it has written at least once
    time.sleep(chance.uniform(0.0, 0.05))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    for read in (load_server, load_client):
        try:
            program = read(folder).for_length().program
            assert program in [one.program for one in models]
            seen.add("whole")
        except ArtifactError as error:
            assert "holds no compiled model" in str(error), error
            seen.add("none")
save(models[0], folder)
assert load_server(folder).for_length().program == load_client(folder).for_length().program == models[0].program
print(sorted(path.name for path in folder.iterdir()), "whole" in seen)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # files end here, as on a full disk
try:
    save(models[1], folder)
except ArtifactError as error:
    print(error)
assert load_server(folder).for_length().program == load_client(folder).for_length().program == models[0].program
"""


@pytest.mark.slow
def test_a_compilation_that_is_killed_or_finds_a_full_disk_leaves_whole_parts_or_none(tmp_path):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "out"), "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    killed, full = done.stdout.splitlines()
    assert killed == "['client', 'helper', 'server'] True"
    assert re.search(r"cannot be written \(.*\); free space or choose another folder$", full)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["client", "helper", "server"]


def test_only_compiled_parts_are_replaced(compiled, tmp_path):
    (tmp_path / "client").mkdir()  # empty: nobody's
    save(compiled, tmp_path)
    (tmp_path / "certs").mkdir()
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


@pytest.mark.parametrize(
    ("file", "contents"), [("config.json", "a model"), ("notes.txt", r"other files \(notes\.txt\)")]
)
def test_a_folder_of_something_else_is_left_alone_before_anything_slow_happens(
    compiled, tiny_classifier, tmp_path, file, contents
):
    (tmp_path / file).write_text("mine")
    with pytest.raises(ArtifactError, match=f"holds {contents}; give compile a new folder, such as .*-compiled"):
        save(compiled, tmp_path)
    with pytest.raises(ArtifactError, match=f"holds {contents}"):
        compile_folder(tiny_classifier, tmp_path, lengths=["never looked at"])
    assert [path.name for path in tmp_path.iterdir()] == [file]


def test_a_recompilation_keeps_the_servers_secret(copy, compiled):
    file = load_server(copy).secret_file
    file.write_bytes(b"whatever the server put there")
    file.chmod(0o600)
    save(compiled, copy)
    assert load_server(copy).secret_file == file
    assert file.read_bytes() == b"whatever the server put there"
    assert file.stat().st_mode & 0o777 == 0o600


def test_inputs_of_another_shape_are_explained(artifacts):
    part = load_client(artifacts.folder).for_length(8)
    with pytest.raises(ProgramError, match=r"the program takes \[1, 8\]"):
        part.encode_inputs({name: torch.zeros(1, 9, dtype=torch.int64) for name in part.program.inputs})
