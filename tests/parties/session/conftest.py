"""A site of the small program, for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from blindformer.tests.parties.session.site import Site, small_case
from blindformer.tests.protocols.programs import Case


@pytest.fixture(scope="package")
def case() -> Case:
    return small_case()


@pytest.fixture
def site(case: Case) -> Iterator[Site]:
    site = Site(case)
    yield site
    for channel in site.channels:
        channel.close()
