"""Services at a level of processors, and a client at its own: they compute one answer, that of `clear`.

What they compute, and each message, is at every level the same to the bit: protocols/test_kernels.py.
"""

from __future__ import annotations

import pytest
from blindformer.levels import VARIABLE
from blindformer.models.artifacts import load_server
from blindformer.tests import levels
from blindformer.tests.parties.service.answers import check, clear
from blindformer.tests.shared.deployment import Deployment

TEXT = "how is my password ?"


@pytest.mark.parametrize("level", levels.OWN_AND_TORCH)
def test_parties_of_different_levels_answer_as_clear(level, compiled, part, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv(VARIABLE, level)
        site = Deployment(tmp_path, compiled, apart=True).__enter__()
    try:
        assert site.server.ready["kernels"] == site.dealer.ready["kernels"] == level
        expected = clear(load_server(compiled).for_length(8), part.encode(TEXT, 8).sources())
        with site.client() as client:
            check(client.query(TEXT).outputs, expected)
    finally:
        site.__exit__()
