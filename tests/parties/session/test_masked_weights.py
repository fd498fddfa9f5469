"""Masked weights travel once: a client does not download again what it keeps, unless that was changed. The server's
secret, from which their masks follow, is made once, whole, readable only by its owner."""

from __future__ import annotations

import hashlib
import os
import threading
from dataclasses import replace

import pytest
import torch
from blindformer.models.program.pricing import price
from blindformer.models.program.program import Program
from blindformer.parties.cli.receipt import NONE_MASKED
from blindformer.parties.session import masked_weights
from blindformer.parties.session.masked_weights import (
    Catalogue,
    SecretError,
    Served,
    WeightMasks,
    as_tensor,
    load_secret,
    read_keys,
)
from blindformer.parties.session.weight_transfer import MaskedCache, MaskedModel, masked_files, masked_models
from blindformer.protocols.errors import PeerDisagrees, PeerError
from blindformer.protocols.streams import derive
from blindformer.tests.parties.session.site import SECRET, Site
from blindformer.tests.patience import PATIENCE


def downloaded(site, cache) -> int:
    with site.client(cache=None if cache is None else MaskedCache(cache)) as party:
        site.ask(party)
        return party.setup_bytes


def test_masks_and_differences_add_up_to_the_weights(site, case):
    masked, shapes = site.served.masked, case.program.weight_shapes()
    catalogue = Catalogue.read(masked.catalogue.packed(), shapes)
    lines = catalogue.lines
    masks = WeightMasks(read_keys(masked.all_keys(), shapes), shapes)
    assert catalogue == masked.catalogue
    assert list(masks) == [line.name for line in lines] == sorted(shapes)
    for line in lines:
        assert torch.equal(as_tensor(masked.packed(line.name), line.shape) + masks[line.name], case.weights[line.name])


def test_a_client_asks_only_the_weights_that_it_expects(site, case):
    """One commitment for all clients of one server and one model; another for other weights, and for another secret."""
    mine = site.served.masked.catalogue.commitment
    for _ in range(2):
        with site.client(commitment=mine) as party:
            site.ask(party)
    others = {name: weight + (name == min(case.weights)) for name, weight in case.weights.items()}
    for served in (Served(replace(case, weights=others), SECRET), Served(case, SECRET[::-1])):
        site.served = served
        refusal = f"server: has weights of commitment [0-9a-f]{{64}}, and {mine} is expected"
        with pytest.raises(PeerDisagrees, match=refusal), site.client(commitment=mine):
            pass
    site.join()
    assert site.dialled == 2, "the last two have left no seed"


def test_a_dealer_cannot_try_weights_by_their_commitment(site, case):
    """It has the keys of the masks, and so every D of weights that it guesses, with its id."""
    masked, shapes = site.served.masked, case.program.weight_shapes()
    keys = read_keys(masked.all_keys(), shapes)
    masks = WeightMasks(keys, shapes)
    guessed = b""
    for name in sorted(shapes):
        difference = (case.weights[name] - masks[name]).numpy().tobytes()
        guessed += derive(keys[name], "id")[:16] + hashlib.sha256(difference).digest()
    assert guessed == b"".join(bytes.fromhex(line.id + line.sha256) for line in masked.catalogue.lines)
    salt = masked.catalogue.salt
    assert masked.catalogue.commitment == hashlib.sha256(salt + guessed).hexdigest()
    assert masked.catalogue.commitment not in {hashlib.sha256(more + guessed).hexdigest() for more in (b"", bytes(32))}
    others = {name: weight + 1 for name, weight in case.weights.items()}
    salts = {Served(replace(case, weights=weights), SECRET).masked.catalogue.salt for weights in (case.weights, others)}
    assert salt in salts
    assert len(salts) == 2, "who has the salt of one model's weights has not another's"


def test_a_commitment_binds_the_salt_and_every_line(site, case):
    content, shapes = site.served.masked.catalogue.packed(), case.program.weight_shapes()
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1
        assert Catalogue.read(changed, shapes).commitment != site.served.masked.catalogue.commitment
    site.served.masked.catalogue = replace(site.served.masked.catalogue, salt=bytes(32))
    with site.client() as party:
        assert party.weights.commitment == site.served.masked.catalogue.commitment
    site.join()


def test_no_masked_weights_need_no_salt(case):
    """A receipt says so of public weights by the commitment, which is the same for all servers."""
    catalogue = Served(replace(case, program=Program(), weights={}), SECRET).masked.catalogue
    assert catalogue.packed() == b""
    assert catalogue.commitment == NONE_MASKED
    assert Catalogue.read(b"", {}) == catalogue


def test_a_second_session_downloads_nothing(site, case, tmp_path):
    whole = price(case.program).setup_bytes
    assert [downloaded(site, tmp_path / "cache") for _ in range(2)] == [whole, 0]
    assert downloaded(site, None) == whole
    site.end()


def test_another_secret_means_other_masks(site, case, tmp_path):
    other = Site(case, secret=bytes(16))
    assert downloaded(site, tmp_path) == downloaded(other, tmp_path) > 0
    assert not {line.id for line in site.served.masked.catalogue.lines} & {
        line.id for line in other.served.masked.catalogue.lines
    }


def test_programs_that_share_weights_share_the_download(site, case, tmp_path):
    """One weight changed: that one is downloaded anew, under an id of its own."""
    downloaded(site, tmp_path)
    name = min(case.weights, key=lambda name: case.weights[name].numel())
    changed = replace(case, weights={**case.weights, name: case.weights[name] + 1})
    assert downloaded(Site(changed), tmp_path) == 8 * case.weights[name].numel()


@pytest.mark.parametrize("harm", ["other", "shorter", "longer", "empty", "missing"])
def test_a_file_that_is_not_what_it_was_is_downloaded_again(site, tmp_path, harm):
    downloaded(site, tmp_path)
    line = site.served.masked.catalogue.lines[0]
    path = tmp_path / line.id
    whole = path.read_bytes()
    path.unlink()
    if harm != "missing":
        changed = bytes([whole[0] ^ 1])
        path.write_bytes(
            {"other": changed + whole[1:], "shorter": whole[:-1], "longer": whole + b"!", "empty": b""}[harm]
        )
    assert downloaded(site, tmp_path) == line.bytes
    assert path.read_bytes() == whole
    kept = {line.id for line in site.served.masked.catalogue.lines}
    assert {name for name in os.listdir(tmp_path) if name != f"{site.served.masked.catalogue.commitment}.json"} == kept


def test_the_cache_knows_whose_weights_it_keeps(site, case, tmp_path):
    with site.client(cache=MaskedCache(tmp_path, tmp_path / "compiled" / "client")):
        (kept,) = masked_models(tmp_path)
    weights = tuple(sorted(line.id for line in site.served.masked.catalogue.lines))
    assert kept == MaskedModel(
        case.program.model, str(tmp_path / "compiled" / "client"), weights, kept.file, kept.file.stat().st_mtime
    )
    assert sorted(kept.files) == masked_files(tmp_path)
    kept.file.write_text("{")
    (tmp_path / "ledger.sqlite").touch()
    (tmp_path / ("0" * 32)).mkdir()  # of a session in a store
    assert masked_models(tmp_path) == []
    assert sorted(kept.files) == masked_files(tmp_path)


def test_a_cache_that_cannot_be_written_costs_a_download_and_nothing_else(site, case, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    with pytest.warns(UserWarning, match="masked weights cannot be kept"):
        assert downloaded(site, blocked) == price(case.program).setup_bytes


def test_other_weights_than_announced_are_refused(site):
    site.served.prepare()
    honest = site.served.masked.packed
    site.served.masked.packed = lambda name: honest(name)[:-1] + b"!"
    with pytest.raises(PeerError, match="server: sent other weights than it announced"), site.client():
        pass


# --- the server's secret ----------------------------------------------------------------------------------------------
def test_a_secret_is_made_once_and_stays(tmp_path):
    path = tmp_path / "secret.key"
    secret = load_secret(path)
    assert len(secret) == 32
    assert load_secret(path) == secret
    assert load_secret(tmp_path / "other.key") != secret
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(os.listdir(tmp_path)) == ["other.key", "secret.key"]


def test_two_processes_that_make_a_secret_at_once_get_the_same(tmp_path, monkeypatch):
    path, secrets, both = tmp_path / "secret.key", [], threading.Barrier(2, timeout=PATIENCE)
    make = masked_weights._make

    def late(path) -> None:
        both.wait()  # neither has found one
        make(path)

    monkeypatch.setattr(masked_weights, "_make", late)
    threads = [threading.Thread(target=lambda: secrets.append(load_secret(path))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(secrets) == 2
    assert len(set(secrets)) == 1
    assert os.listdir(tmp_path) == ["secret.key"]


def test_a_secret_that_others_can_read_is_refused(tmp_path):
    path = tmp_path / "secret.key"
    load_secret(path)
    path.chmod(0o640)
    with pytest.raises(SecretError, match="can be read by other users; run: chmod 600"):
        load_secret(path)


@pytest.mark.parametrize("content", [b"", b"00", b"zz" * 32, b"00" * 33, bytes(32)])
def test_a_damaged_secret_is_never_replaced(tmp_path, content):
    path = tmp_path / "secret.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(SecretError, match="is damaged; restore it, or remove it"):
        load_secret(path)
    assert path.read_bytes() == content


def test_a_secret_of_16_bytes_from_earlier_versions_stays(tmp_path):
    path = tmp_path / "secret.key"
    path.write_bytes(b"5e" * 16 + b"\n")
    path.chmod(0o600)
    assert load_secret(path) == b"\x5e" * 16


def test_a_folder_that_takes_no_secret_is_explained(tmp_path):
    with pytest.raises(SecretError, match="cannot be written"):
        load_secret(tmp_path / "missing" / "secret.key")
    (tmp_path / "folder").mkdir(mode=0o700)
    with pytest.raises(SecretError, match="cannot be read"):
        load_secret(tmp_path / "folder")
