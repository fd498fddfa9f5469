"""Masked weights travel once: what a client has kept it does not download again, unless it was changed."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from blindformer.models.program.pricing import price
from blindformer.parties.session.masked_weights import (
    WeightMasks,
    as_tensor,
    catalogue_id,
    read_catalogue,
    read_keys,
    serve_parts,
)
from blindformer.parties.session.weight_transfer import MaskedCache, MaskedModel, masked_files, masked_models
from blindformer.protocols.errors import PeerError
from blindformer.tests.parties.session.site import SECRET, Site


def downloaded(site, cache) -> int:
    with site.client(cache=None if cache is None else MaskedCache(cache)) as party:
        site.ask(party)
        return party.setup_bytes


def test_masks_and_differences_add_up_to_the_weights(site, case):
    masked, shapes = site.served.masked, case.program.weight_shapes()
    lines = read_catalogue(masked.catalogue(), shapes)
    masks = WeightMasks(read_keys(masked.all_keys(), shapes), shapes)
    assert catalogue_id(lines) == masked.id
    assert list(masks) == [line.name for line in lines] == sorted(shapes)
    for line in lines:
        assert torch.equal(as_tensor(masked.packed(line.name), line.shape) + masks[line.name], case.weights[line.name])


def test_a_second_session_downloads_nothing(site, case, tmp_path):
    whole = price(case.program).setup_bytes
    assert [downloaded(site, tmp_path / "cache") for _ in range(2)] == [whole, 0]
    assert downloaded(site, None) == whole
    site.end()


def test_another_secret_means_other_masks(site, case, tmp_path):
    other = Site(case, secret=bytes(16))
    assert downloaded(site, tmp_path) == downloaded(other, tmp_path) > 0
    assert not {line.id for line in site.served.masked.lines} & {line.id for line in other.served.masked.lines}


def test_programs_that_share_weights_share_the_download(site, case, tmp_path):
    """One weight changed: that one is downloaded anew, under an id of its own."""
    downloaded(site, tmp_path)
    name = min(case.weights, key=lambda name: case.weights[name].numel())
    changed = replace(case, weights={**case.weights, name: case.weights[name] + 1})
    assert downloaded(Site(changed), tmp_path) == 8 * case.weights[name].numel()


@pytest.mark.parametrize("harm", ["other", "shorter", "longer", "empty", "missing"])
def test_a_file_that_is_not_what_it_was_is_downloaded_again(site, tmp_path, harm):
    downloaded(site, tmp_path)
    line = site.served.masked.lines[0]
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
    kept = {line.id for line in site.served.masked.lines}
    assert {name for name in os.listdir(tmp_path) if name != f"{site.served.masked.id}.json"} == kept


def test_the_cache_knows_whose_weights_it_keeps(site, case, tmp_path):
    with site.client(cache=MaskedCache(tmp_path, tmp_path / "compiled" / "client")):
        (kept,) = masked_models(tmp_path)
    weights = tuple(sorted(line.id for line in site.served.masked.lines))
    assert kept == MaskedModel(
        case.program.model, str(tmp_path / "compiled" / "client"), weights, kept.file, kept.file.stat().st_mtime
    )
    assert sorted(kept.files) == masked_files(tmp_path)
    kept.file.write_text("{")
    (tmp_path / "ledger.sqlite").touch()
    (tmp_path / ("0" * 32)).mkdir()  # of a session in a spool
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


def test_a_server_offers_programs_by_hash(case):
    other = replace(case, program=case.program.model_copy(update={"model": "another"}))
    served = serve_parts([case, other], SECRET)
    assert set(served) == {case.program.hash(), other.program.hash()}
    assert len({part.masked.id for part in served.values()}) == 1  # the same weights
