"""A server that audits, as a process: a client that lies is found and not served again, and honest ones are."""

from __future__ import annotations

import re
from functools import partial

import pytest
from blindformer.models.artifacts import load_server
from blindformer.parties.certificates.issuing import add_certificate
from blindformer.parties.config import ConfigError, load_settings
from blindformer.parties.service.quota import Deviations, DeviationsError, deviations_of
from blindformer.protocols.errors import PeerDisagrees, PeerRefused
from blindformer.tests.parties.service.answers import check, clear
from blindformer.tests.parties.service.test_services import TEXT, client
from blindformer.tests.parties.session.delegated_site import Lying
from blindformer.tests.shared.deployment import Deployment, Running

RATE, LIAR = 0.5, "commonName=blindformer liar"


def lie(number: int, frame: bytearray) -> None:
    """In each frame to the server after the first two: the request for masked weights, and the values of the first
    run."""
    frame[-1] ^= number >= 2


def audited(site: Deployment) -> Running:
    return site.start("server", audits=RATE, state="audited", metrics="127.0.0.1:0")


def lie_until_found(site: Deployment, server: Running, part) -> int:
    """How many answers a client gets that lies in all its messages."""
    with client(site, part, server=server, name="liar", audits=RATE, shaped=partial(Lying, change=lie)) as mine:
        for answers in range(100):
            try:
                mine.party.query(mine.question.sources())
            except PeerRefused:
                return answers
    raise AssertionError("a lie was never found")


def test_a_liar_is_found_and_not_served_again_and_others_are(site, compiled, part):
    for name in ("liar", "honest"):
        add_certificate(site.certificates, "client", name=name, force=True)
    server = audited(site)
    wanted = clear(load_server(compiled).for_length(8), part.encode(TEXT, 8).sources())
    assert lie_until_found(site, server, part) < 60  # once in 2^60
    line = server.wait_for("session-failed", kind="PeerDeviated")
    assert line["peer"] == "client"
    with pytest.raises(
        PeerRefused, match=r"has deviated from the protocol, as an audit showed on \d{4}-\d\d-\d\d, and is not"
    ):
        client(site, part, server=server, name="liar", audits=RATE)
    with client(site, part, server=server, name="honest", audits=RATE) as other:
        for _ in range(4):
            check(other.ask(), wanted)
    server.wait_for_metrics(
        r"blindformer_queries_total [1-9].*", r'blindformer_errors_total\{kind="PeerDeviated"\} 1\.0'
    )
    server.end()
    again = audited(site)
    add_certificate(site.certificates, "client", name="liar", force=True)  # with a new key
    with pytest.raises(PeerRefused, match="has deviated from the protocol"):
        client(site, part, server=again, name="liar", audits=RATE)
    with pytest.raises(PeerDisagrees, match=r"has audits 0\.5, this side has 0; write audits = 0\.5 in"):
        client(site, part, server=again)
    again.end()


@pytest.mark.parametrize("shared", [False, True], ids=["SQLite", "Postgres"])
def test_a_name_is_noted_once_and_for_all(request, tmp_path, shared):
    where = request.getfixturevalue("postgres").new() if shared else tmp_path / "state"
    first = Deviations(where)
    first.check(LIAR)
    first.note(LIAR)
    first.note(LIAR)
    with pytest.raises(PeerRefused, match="is not served any more; find out why"):
        Deviations(where).check(LIAR)
    Deviations(where).check("commonName=blindformer honest")


def test_audits_ask_for_a_place_to_note_who_was_found(tmp_path):
    assert deviations_of(load_settings()) is None
    with pytest.raises(DeviationsError, match=r"no folder is given to note that in; set server\.state"):
        deviations_of(load_settings(**{"session.audits": 0.25}))
    assert deviations_of(load_settings(**{"session.audits": 0.25, "server.state": tmp_path})) is not None


@pytest.mark.parametrize("other", [{"session.topology": "helper"}, {"session.protocol": "ckks"}])
def test_audits_are_of_clients_that_compute(other):
    with pytest.raises(ConfigError, match=re.escape("session.audits = 0.25: a server audits a client that computes")):
        load_settings(**{"session.audits": 0.25, **other})
