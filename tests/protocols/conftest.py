"""A model on ciphertexts."""

import pytest


@pytest.fixture(scope="session")
def encrypted():
    """A classifier of two layers on ciphertexts, in a ring that protects nothing."""
    pytest.importorskip("tenseal")
    from blindformer.models.encrypted import Encrypted
    from blindformer.tests.models.conftest import make
    from blindformer.tests.protocols.test_ckks import small

    compiled = make("bert-labels", "he").compiled
    return Encrypted(compiled, small(compiled))
