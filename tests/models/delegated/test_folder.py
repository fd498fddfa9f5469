"""A delegated model on disk: each damage is refused, and the client holds no weights that others compute with."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from blindformer.approximations import Plan
from blindformer.models.artifacts.layout import VERSIONS, ArtifactError, describe_files
from blindformer.models.delegated import is_delegated
from blindformer.models.delegated.building import delegate_folder
from blindformer.models.delegated.folder import load_part, save_delegated
from blindformer.models.delegated.part import delegated_part
from blindformer.models.delegated.sequences import DelegationError
from blindformer.models.delegated.weights import load_weights
from blindformer.models.loading.load import load
from blindformer.tests.shared.tiny import byte_tokenizer
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="module")
def whole(tiny_causal, tmp_path_factory) -> Path:
    loaded = load(tiny_causal)
    folder = save_delegated(loaded, delegated_part(loaded), tmp_path_factory.mktemp("delegated") / "whole")
    assert sorted(path.name for path in folder.iterdir()) == ["client", "dealer", "server"]
    return folder


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    return shutil.copytree(whole, tmp_path / "copy")


def described(place: Path) -> None:
    """Whoever changes a file can write its hash as well."""
    about = json.loads((place / VERSIONS).read_text())
    about["files"] = describe_files(place)
    (place / VERSIONS).write_text(json.dumps(about))


def other_integers(place: Path) -> None:
    file = place / "integers" / "0.safetensors"
    tensor = load_file(file)["integers"].clone()
    tensor[0, 0] += 1
    save_file({"integers": tensor}, file)


def other_shape(place: Path) -> None:
    """The same bytes: norms would be those of other rows."""
    file = place / "integers" / "0.safetensors"
    tensor = load_file(file)["integers"]
    save_file({"integers": tensor.reshape(len(tensor) * 2, -1).contiguous()}, file)


def other_type(place: Path) -> None:
    file = place / "integers" / "0.safetensors"
    save_file({"integers": load_file(file)["integers"].view(torch.int8)}, file)


def no_tensor(place: Path) -> None:
    (place / "integers" / "0.safetensors").write_bytes(b"nothing")


def other_norms(place: Path) -> None:
    content = json.loads((place / "delegated.json").read_text())
    content["format"] += 1
    (place / "delegated.json").write_text(json.dumps(content))


@pytest.mark.parametrize("part", ["server", "dealer", "client"])
@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (other_integers, r"0.safetensors: is not the manifest's"),
        (other_shape, r"0.safetensors: is not the manifest's"),
        (other_type, r"0.safetensors: is not the manifest's"),
        (no_tensor, r"0.safetensors: cannot be read"),
        (other_norms, r"delegated.json: is not of this version \(format 2, ring 32\)"),
    ],
)
def test_damaged_integers_are_refused(folder, part, damage, what):
    damage(folder / part)
    with pytest.raises(ArtifactError):
        load_weights(folder, part)
    described(folder / part)
    with pytest.raises(ArtifactError, match=what):
        load_weights(folder, part)


def test_damaged_scales_are_refused(folder):
    file = folder / "client" / "scales.safetensors"
    scales = {name: value.clone() for name, value in load_file(file).items()}
    scales["1"][2] *= 2
    save_file(scales, file)
    described(folder / "client")
    with pytest.raises(ArtifactError, match=r"scales.safetensors: is not the manifest's"):
        load_part(folder)


@pytest.mark.parametrize(
    "name", ["transformer.h.0.ln_1.weight", "transformer.wpe.weight", "transformer.h.0.mlp.c_fc.bias"]
)
def test_a_model_with_another_number_of_the_clients_own_is_refused(folder, name):
    file = folder / "client" / "model" / "model.safetensors"
    content = {key: value.clone() for key, value in load_file(file).items()}
    content[name].view(-1)[0] += 1e-3
    file.unlink()  # it may be one file with the source's
    save_file(content, file, {"format": "pt"})
    described(folder / "client")
    with pytest.raises(ArtifactError, match=r"model: is not the model of the manifest"):
        load_part(folder)


def test_a_delegated_weight_that_changed_is_refused_if_the_client_computes_with_it(folder):
    file = folder / "client" / "model" / "model.safetensors"
    content = {key: value.clone() for key, value in load_file(file).items()}
    content["transformer.h.0.mlp.c_fc.weight"].view(-1)[0] += 1
    file.unlink()
    save_file(content, file, {"format": "pt"})
    assert load_part(folder).runner.delegated
    with pytest.raises(ArtifactError, match="is not what was compiled"):
        load_part(folder, memory=1e6)


def test_every_part_names_one_manifest(whole):
    digests = {load_weights(whole, part)[0].digest for part in ("server", "dealer", "client")}
    assert digests == {load_part(whole).model.manifest.digest}
    assert all(is_delegated(place) for place in (whole, whole / "client", whole / "server"))
    assert not is_delegated(whole / "client" / "model")


def test_the_client_has_no_weights_that_others_compute_with(whole, tiny_causal):
    part, module = load_part(whole), load(tiny_causal).model
    own = dict(module.named_parameters())
    for name, parameter in part.runner.module.named_parameters():
        name = name if name in own else next(one for one in own if name.endswith(one) or one.endswith(name))
        assert parameter.shape == own[name].shape
    delegated = part.runner.delegated
    assert len(delegated) == 4
    for name, parameter in part.runner.module.named_parameters():
        if name in delegated:
            parameter.data.fill_(torch.nan)  # nothing reads them
    ids = torch.tensor([[5, 6, 7, 8, 9]])

    class Noise:
        begin = end = abandon = lambda *given: None

        def call(self, group, x):
            return torch.ones(len(x), part.groups[group].outputs)

    answer = part.runner.run(Noise(), part.runner.module, input_ids=ids, use_cache=False)
    assert answer.logits.isfinite().all()


def sharded(folder: Path, size: str, dtype: torch.dtype = torch.bfloat16, **shape: int) -> Path:
    """A Llama in several files, with a head of its own."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(tie_word_embeddings=False, **shape)).to(dtype)
    model.save_pretrained(folder, max_shard_size=size)
    byte_tokenizer().save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 4
    return folder


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_model_in_several_files_has_the_manifest_of_the_model_in_float32(dtype, tmp_path):
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    source = sharded(tmp_path / "source", "30KB", dtype, num_hidden_layers=2, vocab_size=300, **shape)
    (source / "other.bin").write_bytes(b"the weights in another format")
    loaded = load(source)
    whole = save_delegated(loaded, delegated_part(loaded), tmp_path / "whole")
    folder = delegate_folder(source, tmp_path / "open")
    manifest, integers = load_weights(folder, "server")
    assert manifest.to_json() == load_weights(whole, "server")[0].to_json()
    assert "lm_head.weight" in manifest.parameters
    assert load_part(folder).model.manifest.digest == manifest.digest
    matrices = sum(parameter.numel() for parameter in loaded.model.parameters() if parameter.dim() > 1)
    assert sum(map(torch.numel, integers)) == matrices - 64 * 300  # all but the embedding
    assert sorted(path.name for path in folder.iterdir()) == ["client", "dealer", "server"]
    assert not (folder / "client" / "model" / "other.bin").exists()
    files = [folder / part / "integers" / "0.safetensors" for part in ("server", "dealer", "client")]
    assert len({file.stat().st_ino for file in files}) == 1  # mapped, so all processes share its pages


MEASURED = """
import sys
import transformers.models.llama.modeling_llama
from blindformer.models.delegated.building import delegate_folder
from blindformer.models.delegated.folder import load_part
from blindformer.models.delegated.weights import load_weights

def now(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) // 1024 for line in status if line.startswith(name))

def reset():
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return now("VmRSS")

source, folder = sys.argv[1:]
{work}
print(now("VmHWM") - before, now("RssAnon") - anonymous)
"""
WORK = {
    "compile": "before, anonymous = reset(), now('RssAnon'); delegate_folder(source, folder)",
    "client": "before, anonymous = reset(), now('RssAnon'); part = load_part(folder); part.groups",
    "server": "before, anonymous = reset(), now('RssAnon'); weights = load_weights(folder, 'server')",
}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_large_model_is_never_in_memory_as_a_whole(tmp_path):
    """300 MB in float32. Mapped files are not a process's own memory, and count when they are read."""
    shape = {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 8, "num_key_value_heads": 2}
    source = sharded(tmp_path / "source", "25MB", num_hidden_layers=6, vocab_size=4000, **shape)
    megabytes = sum(file.stat().st_size for file in source.glob("*.safetensors")) / 1e6
    assert 140 < megabytes < 160
    taken = {}
    for what, work in WORK.items():
        words = [sys.executable, "-c", MEASURED.replace("{work}", work), source, tmp_path / "open"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert not done.returncode, done.stderr
        taken[what] = tuple(map(int, re.findall(r"-?\d+", done.stdout)))
    peak, left = zip(*taken.values(), strict=True)
    assert taken["compile"][0] < 150, taken  # the files that are open, a group, the embedding
    assert max(peak) < 260, taken  # the client and the server have read all integers once
    assert max(left) < 60, taken  # the client's own embedding, its check, and what libraries keep


def test_a_model_that_was_trained_with_a_plan_s_functions_is_refused(tiny_classifier, tmp_path):
    """As it is, it would compute with others."""
    shutil.copytree(tiny_classifier, tmp_path / "student")
    Plan.preset("fast").save(tmp_path / "student")
    with pytest.raises(DelegationError, match="was trained with the functions of plan fast"):
        delegated_part(load(tmp_path / "student"))
