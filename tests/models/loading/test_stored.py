"""Models whose weights stay in their files: filled in, they are what the same files give in float32."""

from __future__ import annotations

import pytest
import torch
from blindformer.bench.architecture_models import architectures
from blindformer.models.delegated.manifest import fill
from blindformer.models.delegated.part import module_of
from blindformer.models.loading.load import load
from blindformer.models.loading.stored import stored_type
from blindformer.tests.shared.tiny import byte_tokenizer, tiny_llama
from safetensors.torch import load_file, save_file

IDS = torch.arange(1, 8)[None]


def saved(name: str, dtype: torch.dtype, folder):
    """In several files."""
    module = architectures()[name].build().to(dtype)
    module.config.architectures = [type(module).__name__]
    module.save_pretrained(folder, max_shard_size="20KB")
    byte_tokenizer().save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("name", ["Llama", "GPT-2", "Gemma3", "Mixtral", "Bloom"])
def test_a_model_in_several_files_is_the_same_filled_in(name, dtype, tmp_path):
    """Gemma3 scales its embedding by a number that bfloat16 would round."""
    folder = saved(name, dtype, tmp_path)
    assert stored_type(folder) is dtype
    wanted, loaded = load(folder), load(folder, mapped=True)
    exact, module = module_of(wanted), module_of(loaded)
    stored = {one: loaded.stored.pop(own) for one, own in module.named_parameters()}
    assert {numbers.dtype for numbers in stored.values()} == {dtype}
    assert fill(module, stored, list(stored))
    assert not stored
    assert not fill(module, stored, ["nothing"])
    assert loaded.positions == wanted.positions
    own = module.state_dict()
    assert own.keys() == exact.state_dict().keys()
    for one, value in exact.state_dict().items():
        assert own[one].dtype == value.dtype
        assert torch.equal(own[one], value), one
    with torch.no_grad():
        torch.testing.assert_close(module(input_ids=IDS).logits, exact(input_ids=IDS).logits)


def test_weights_of_several_types_are_loaded_as_float32(tmp_path):
    folder = tiny_llama(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    first = next(iter(tensors))
    save_file({**tensors, first: tensors[first].bfloat16()}, folder / "model.safetensors", {"format": "pt"})
    assert stored_type(folder) is None
    assert not load(folder, mapped=True).stored


def test_other_files_are_loaded_as_float32(tmp_path, tiny_classifier):
    folder = tiny_llama(tmp_path)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert stored_type(folder) is None
    assert not load(folder, mapped=True).stored
    assert not load(tiny_classifier, mapped=True).stored
