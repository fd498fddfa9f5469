"""Preprocessed correlations by the commands, with real services: used without a dealer, then live ones again."""

from __future__ import annotations

import json
import re

import pytest
from blindformer.models.artifacts import ArtifactError
from blindformer.parties.cli.app import app
from blindformer.parties.session.spool import Spool, SpoolError
from blindformer.protocols.errors import PeerGone
from blindformer.tests.shared.deployment import Deployment
from typer.testing import CliRunner

TEXT = "how is my password ?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ahead")


@pytest.fixture(scope="module")
def site(folder, compiled):
    with Deployment(folder, compiled, server={"--spool": str(folder / "server-spool")}) as site:
        yield site


def run(*words: str) -> dict:
    """A command in this process; its JSON. Errors: as the command raises them."""
    result = CliRunner().invoke(app, [*words, "--format", "json"], catch_exceptions=False)
    assert result.exit_code == 0
    return json.loads(result.stdout)


def blindformer(site: Deployment, *words: str) -> dict:
    """A command of the client."""
    return run(
        *words, *site.words(), "--spool", str(site.folder / "client-spool"), "--cache", str(site.folder / "cache")
    )


def query(site: Deployment, *texts: str) -> list[list[dict]]:
    report = blindformer(site, "query", str(site.client_folder), *texts, "--length", "8")
    return [result["labels"] for result in report["results"]]


def test_three_made_ahead_then_live(site):
    live = query(site, TEXT)
    report = blindformer(site, "precompute", str(site.client_folder), "3", "--length", "8")
    assert (report["kept"], report["left"], report["length"], report["stopped"]) == (3, 3, 8, None)
    spools = [Spool(site.folder / name) for name in ("server-spool", "client-spool")]
    assert [spool.left() for spool in spools] == [3, 3]
    site.dealer.stop()
    without = query(site, TEXT, TEXT, TEXT)  # nobody deals
    with pytest.raises(PeerGone, match="dealer: nobody listens"):
        blindformer(site, "query", str(site.client_folder), TEXT, "--length", "8", "--wait", "0")
    site.start("dealer")
    again = query(site, TEXT)
    for labels in (*without, *again):
        for got, expected in zip(labels, live[0], strict=True):
            assert got["label"] == expected["label"]
            assert got["score"] == pytest.approx(expected["score"], abs=0.003)
    audits = [spool.ledger.audit() for spool in spools]
    assert [len({tag for tag, _, _ in audit}) for audit in audits] == [5, 5]
    assert [len(audit) for audit in audits] == [5, 5]
    assert [spool.left() for spool in spools] == [0, 0]


def test_the_spool_command_lists_what_there_is(site, folder):
    blindformer(site, "precompute", str(site.client_folder), "2", "--length", "16")
    for name in ("server-spool", "client-spool"):
        report = run("spool", str(folder / name))
        assert report["ready"] == 2
        assert report["sessions"][-1]["ready"] == 2
        assert (report["sessions"][-1]["bytes"] > 0) is (name == "server-spool")
        text = CliRunner().invoke(app, ["spool", str(folder / name)]).stdout
        assert re.search(r"^2 ready; \d+ uses noted", text, re.MULTILINE)
        assert "key" not in text


def test_what_cannot_be_done_is_explained(site, tmp_path):
    words = ["precompute", str(site.client_folder), "1"]
    with pytest.raises(ArtifactError, match="compiled for the lengths 8, 16; say which one"):
        blindformer(site, *words)
    with pytest.raises(SpoolError, match=r"give --spool, or client\.spool"):
        run(*words, "--length", "8")
    with pytest.raises(SpoolError, match=r"holds no preprocessed correlations; `blindformer precompute` makes them"):
        run("spool", str(tmp_path))
    assert list(tmp_path.iterdir()) == []
