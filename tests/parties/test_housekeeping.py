"""What is removed from the cache, what it frees, and what is never touched: a store least of all."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from blindformer.models.artifacts import load_server, save
from blindformer.models.cached import COMPILED, PRICE, compiled_models
from blindformer.models.compile import compile
from blindformer.parties.housekeeping import (
    UNFINISHED_SECONDS,
    bytes_on_disk,
    files_below,
    leftovers,
    removal_of,
    remove,
)
from blindformer.parties.session.masked_weights import Catalogue, CatalogueLine
from blindformer.parties.session.preprocessing_store import Missing, Ref, answer_proposal
from blindformer.parties.session.weight_transfer import MaskedCache, masked_models
from blindformer.protocols.errors import BlindformerError
from blindformer.tests.parties.session.store.pairs import CLIENT, PROGRAM, SESSION, WEIGHTS, make_pair

DAY = 86400.0
ROWS = (2, 3)


class Wide(torch.nn.Module):
    """One weight of 2**17 bytes, at 16 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(256, 256)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": self.inner(x)}


@pytest.fixture(scope="module")
def compiled():
    """Two programs with the same weights."""
    torch.manual_seed(0)
    model = Wide().eval()
    return [compile(model, [{"x": torch.randn(1, rows, 256)} for _ in range(3)], name="wide") for rows in ROWS]


@pytest.fixture
def cache(compiled, tmp_path) -> Path:
    """The folder, with both."""
    folder = tmp_path / "cache"
    for rows, one in zip(ROWS, compiled, strict=True):
        save(one, folder_of(folder, rows))
    return folder


def folder_of(cache: Path, rows: int) -> Path:
    return cache / COMPILED / f"wide-{rows:016x}"


def keep_masked(cache: Path, name: str, part: Path | None, *weights: bytes) -> list[Path]:
    """Masked weights as a client keeps them; returns the file of the note and those of the weights."""
    lines = [CatalogueLine(str(at), (1,), weight.hex() * 16, "") for at, weight in enumerate(weights)]
    masked = MaskedCache(cache, part)
    for line in lines:
        masked.keep(line, bytes(8))
    masked.note(name, Catalogue(tuple(lines), b""))
    return next(one.files for one in masked_models(cache) if set(one.weights) == {line.id for line in lines})


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def left(cache: Path) -> set[str]:
    return {path.name for path in (cache / COMPILED).iterdir()}


def removed(cache: Path, removal) -> int:
    """What is free afterwards, which is what was said."""
    before = bytes_on_disk(files_below([cache]))
    remove(removal)
    assert bytes_on_disk(files_below([cache])) == before - removal.bytes
    return removal.bytes


# --- by name ---------------------------------------------------------------------------------------------------------
def test_a_model_goes_with_all_that_is_its_own(cache, tmp_path):
    part = folder_of(cache, 2) / "client"
    mine = keep_masked(cache, "wide", part, b"\1", b"\2")
    others = keep_masked(cache, "narrow", tmp_path, b"\2", b"\3")  # of another model, with one of its weights
    removed(cache, removal_of(cache, ["wide"]))
    assert left(cache) == set()
    assert [file.exists() for file in mine] == [False, False, True]
    assert all(file.exists() for file in others)


def test_one_of_several_goes_without_what_the_others_need(compiled, cache):
    mine = keep_masked(cache, "wide", None, b"\1")
    removed(cache, removal_of(cache, [folder_of(cache, 2).name]))
    assert left(cache) == {folder_of(cache, 3).name}
    weights = load_server(folder_of(cache, 3)).for_length().weights
    assert all(torch.equal(weights[name].long(), weight) for name, weight in compiled[1].weights.items())
    assert all(file.exists() for file in mine)
    removed(cache, removal_of(cache, [str(folder_of(cache, 3))]))
    assert not any(file.exists() for file in mine)  # the last of its name


def test_masked_weights_of_a_model_that_lies_elsewhere_have_its_name_too(cache, tmp_path):
    mine = keep_masked(cache, "narrow", tmp_path, b"\1")
    removed(cache, removal_of(cache, ["narrow"]))
    assert not any(file.exists() for file in mine)
    assert len(left(cache)) == 2


@pytest.mark.parametrize(
    ("name", "lengths", "words"),
    [
        ("wid", (), r"^wid: is not in the cache .*; did you mean wide\?$"),
        ("mobile", (), r"^mobile: is not in the cache .*; `blindformer models` says what is$"),
        ("wide", (8,), "^wide-0000000000000002: has no lengths; leave --length out, or give another$"),
    ],
)
def test_what_is_not_there_is_one_line(cache, name, lengths, words):
    before = sorted(files_below([cache]))
    with pytest.raises(BlindformerError, match=words):
        removal_of(cache, [folder_of(cache, 2).name, name], lengths)
    assert sorted(files_below([cache])) == before


def test_a_folder_outside_the_cache_is_not_a_name(cache, compiled, tmp_path):
    save(compiled[0], tmp_path / "wide")
    with pytest.raises(BlindformerError, match="is not in the cache"):
        removal_of(cache, [str(tmp_path / "wide")])


# --- what can be used no more ----------------------------------------------------------------------------------------
def other_version(cache: Path) -> None:
    for file in folder_of(cache, 2).glob("*/versions.json"):
        about = json.loads(file.read_text())
        file.write_text(json.dumps({**about, "versions": {**about["versions"], "torch": "1.0"}}))


def older_code(cache: Path) -> None:
    for file in folder_of(cache, 2).glob("*/versions.json"):
        age(file, 10 * 365 * DAY)


def unfinished(cache: Path) -> None:
    for part in ("server", "client", "helper"):
        (folder_of(cache, 2) / part / "versions.json").unlink()
    age(folder_of(cache, 2), 2 * UNFINISHED_SECONDS)


@pytest.mark.parametrize("harm", [other_version, older_code, unfinished])
def test_a_folder_that_no_command_finds_again(cache, harm):
    assert leftovers(cache).items == []
    harm(cache)
    removed(cache, leftovers(cache))
    assert left(cache) == {folder_of(cache, 3).name}


def test_what_somebody_may_just_be_writing_stays(cache):
    unfinished(cache)
    age(folder_of(cache, 2), 60)
    draft = folder_of(cache, 3) / ".compiling-x"
    draft.mkdir()
    (cache / f"{'0' * 32}.{'0' * 16}.part").touch()
    assert leftovers(cache).items == []
    for path in (draft, cache / f"{'0' * 32}.{'0' * 16}.part"):
        age(path, 2 * UNFINISHED_SECONDS)
    removed(cache, leftovers(cache))
    assert not draft.exists()
    assert not list(cache.glob("*.part"))
    assert len(left(cache)) == 2


def test_masked_weights_of_a_model_that_is_gone_or_not_known(cache, compiled, tmp_path):
    mine = keep_masked(cache, "wide", tmp_path / "mine" / "client", b"\1")
    save(compiled[0], tmp_path / "mine")
    (cache / ("f" * 32)).write_bytes(bytes(8))  # as versions before kept them
    removed(cache, leftovers(cache))
    assert not (cache / ("f" * 32)).exists()
    assert all(file.exists() for file in mine)
    shutil.rmtree(tmp_path / "mine")
    removed(cache, leftovers(cache))
    assert not any(file.exists() for file in mine)


def test_what_was_not_used_for_long(cache, tmp_path):
    mine = keep_masked(cache, "wide", tmp_path, b"\1")
    age(folder_of(cache, 2), 31 * DAY)
    assert len(leftovers(cache, 30 * DAY).items) == 1
    age(mine[0], 31 * DAY)
    assert leftovers(cache).items == []
    removed(cache, leftovers(cache, 30 * DAY))
    assert left(cache) == {folder_of(cache, 3).name}
    assert not any(file.exists() for file in mine)


def test_everything_leaves_what_the_cache_did_not_write(cache, compiled, tmp_path):
    keep_masked(cache, "wide", tmp_path, b"\1")
    save(compiled[0], cache / COMPILED / "my own")
    (cache / "uci.zip").touch()  # a data set
    save(compiled[1], tmp_path / "elsewhere")
    linked = cache / COMPILED / "wide-00000000000000ff"
    linked.symlink_to(tmp_path / "elsewhere")
    removed(cache, leftovers(cache, everything=True))
    assert left(cache) == {"my own"}
    assert (cache / "uci.zip").exists()
    assert len(load_server(tmp_path / "elsewhere")) == 1


def test_a_price_is_listed_as_one_and_goes_too(cache, compiled):
    save(compiled[0], folder_of(cache, 4), parts=("helper",))
    priced = compiled_models(cache)[-1]
    assert (priced.name, priced.task, priced.problem) == ("wide", PRICE, "")
    removed(cache, removal_of(cache, [folder_of(cache, 4).name]))
    assert len(left(cache)) == 2


# --- while others use it ---------------------------------------------------------------------------------------------
def test_a_model_that_is_loaded_can_be_used_on(cache, compiled):
    loaded = load_server(folder_of(cache, 2)).for_length()
    removed(cache, leftovers(cache, everything=True))
    assert all(torch.equal(loaded.weights[name].long(), weight) for name, weight in compiled[0].weights.items())


def test_what_cannot_be_removed_is_one_line_and_stays_whole(cache, compiled, monkeypatch):
    def refuse(self: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(BlindformerError, match=r"cannot be removed \(Permission denied\); make .* writable") as caught:
        remove(leftovers(cache, everything=True))
    assert "\n" not in str(caught.value)
    assert len(load_server(folder_of(cache, 2))) == 1


# --- stores ----------------------------------------------------------------------------------------------------------
def use(server, client, number: int) -> bool:
    """Whether both use it; as a query does."""
    ref = Ref(session=SESSION, number=number)
    taken = not isinstance(answer_proposal(server, ref, PROGRAM, WEIGHTS, CLIENT), Missing)
    return taken and client.ledger.take(SESSION, number) is not None


@pytest.mark.parametrize("place", ["", "compiled/wide-0000000000000002", "compiled/wide-0000000000000002/server"])
def test_no_mask_is_used_twice_whatever_is_removed(cache, tmp_path, place):
    """Stores that a configuration puts into the cache, a client's or a server's. Without a server's ledger, a copy of
    the client's that was made before a query would use its masks again."""
    server, client = make_pair(tmp_path / "stores", 3)
    shutil.copytree(client.folder, tmp_path / "copy")
    assert use(server, client, 0)
    shutil.copytree(server.folder, cache / place, dirs_exist_ok=True)
    server = type(server)(cache / place)
    kept = {file: file.read_bytes() for file in files_below([cache / place]) if "ledger" in file.name}
    for removal in (removal_of(cache, ["wide"]), leftovers(cache, everything=True)):
        if place:
            assert [item.why for item in removal.left] == ["holds ledger.sqlite, which is not the cache's"]
        remove(removal)
    assert {file: file.read_bytes() for file in kept} == kept
    old = type(client)(tmp_path / "copy")
    assert [use(server, old, number) for number in (0, 1, 1, 2)] == [False, True, False, True]


def test_keys_and_counts_that_are_in_a_compiled_folder_stay(cache):
    for name in ("gateway.key", "client.pem", "queries.sqlite"):
        (folder_of(cache, 2) / name).touch()
        remove(leftovers(cache, everything=True))
        assert (folder_of(cache, 2) / name).exists()
        (folder_of(cache, 2) / name).unlink()
    (folder_of(cache, 2) / "server" / "secret.key").touch()  # goes with the weights that it masks
    remove(leftovers(cache, everything=True))
    assert left(cache) == set()
