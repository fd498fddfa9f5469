"""Compiled folders of one cache: what is equal in them is stored once, and each stays whole by itself."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from blindformer.models.artifacts import load_client, load_server, save
from blindformer.models.artifacts.layout import LARGE
from blindformer.models.artifacts.sharing import bytes_on_disk, share
from blindformer.models.compile import compile

ROWS = (2, 3)  # of two programs with the same weights


class Wide(torch.nn.Module):
    """One weight of 2**17 bytes, at 16 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(256, 256)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": self.inner(x)}


@pytest.fixture(scope="module")
def compiled():
    torch.manual_seed(0)
    model = Wide().eval()
    return [compile(model, [{"x": torch.randn(1, rows, 256)} for _ in range(3)]) for rows in ROWS]


@pytest.fixture
def folders(compiled, tmp_path) -> list[Path]:
    return [save(one, tmp_path / str(rows)) for one, rows in zip(compiled, ROWS, strict=True)]


@pytest.fixture
def store(tmp_path) -> Path:
    return tmp_path / "shared"


def files(*folders: Path) -> list[Path]:
    return [file for folder in folders for file in folder.rglob("*") if file.is_file()]


def large(folder: Path) -> list[Path]:
    return [file for file in files(folder) if file.stat().st_size >= LARGE]


def readable(folder: Path, compiled) -> bool:
    server, client = load_server(folder).for_length(), load_client(folder).for_length()
    same = all(torch.equal(server.weights[name].long(), weight) for name, weight in compiled.weights.items())
    return same and server.program == client.program == compiled.program


def test_equal_tensors_of_two_programs_are_one_file_on_the_disk(compiled, folders, store):
    """Their programs and small tensors differ."""
    alone = [bytes_on_disk(files(folder)) for folder in folders]
    for folder in folders:
        share(folder, store)
    (first,), (second,) = (large(folder) for folder in folders)
    assert first.samefile(second)
    assert bytes_on_disk(files(*folders, store)) == sum(alone) - first.stat().st_size
    assert all(readable(folder, one) for folder, one in zip(folders, compiled, strict=True))


def test_sharing_again_changes_nothing(folders, store):
    share(folders[0], store)
    before = {file: file.stat() for file in files(folders[0], store)}
    share(folders[0], store)
    assert {file: file.stat() for file in files(folders[0], store)} == before


@pytest.mark.parametrize("copy", [["cp", "-r"], ["rsync", "-a"]])
def test_a_folder_is_whole_by_itself(compiled, folders, store, tmp_path, copy):
    if shutil.which(copy[0]) is None:
        pytest.skip(f"{copy[0]} is not installed")
    for folder in folders:
        share(folder, store)
    subprocess.run([*copy, f"{folders[0]}/", tmp_path / "copy"], check=True)
    for gone in (folders[0], store):
        shutil.rmtree(gone)
    assert readable(folders[1], compiled[1])
    assert readable(tmp_path / "copy", compiled[0])


def test_compiling_into_a_shared_folder_leaves_the_others(compiled, folders, store):
    for folder in folders:
        share(folder, store)
    save(compiled[1], folders[0])
    assert readable(folders[0], compiled[1])
    assert readable(folders[1], compiled[1])


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EROFS])
def test_where_there_are_no_links_folders_have_files_of_their_own(compiled, folders, store, monkeypatch, number):
    def refuse(source: Path, target: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    for folder, one in zip(folders, compiled, strict=True):
        share(folder, store)
        assert readable(folder, one)
    assert not any(file.stat().st_nlink > 1 for file in files(*folders))
    assert files(store) == []


def test_a_stored_file_that_was_damaged_damages_no_other_folder(compiled, folders, store):
    share(folders[0], store)
    (stored,) = files(store)
    content = stored.read_bytes()
    stored.unlink()
    stored.write_bytes(content[:-1] + b"x")
    share(folders[1], store)
    assert readable(folders[1], compiled[1])
    assert stored.samefile(large(folders[1])[0])


def test_links_have_one_mode(compiled, folders, store):
    """What a client may read and what is the server's own are two files, though their content is one."""
    share(folders[0], store)
    (mine,), (others,) = (large(folder) for folder in folders)
    others.chmod(0o644)
    share(folders[1], store)
    assert [file.stat().st_mode & 0o777 for file in (mine, others)] == [0o600, 0o644]
    mine.chmod(0o640)  # and the store's with it
    share(save(compiled[1], folders[1]), store)
    assert [file.stat().st_mode & 0o777 for file in (mine, *large(folders[1]))] == [0o640, 0o600]
    assert all(readable(folder, one) for folder, one in zip(folders, compiled, strict=True))
