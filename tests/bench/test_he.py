"""The packed layer is the layer, at 128 bits, and TenSEAL's own is timed on a sample."""

import pytest
from blindformer.bench import he

pytest.importorskip("tenseal")


def test_a_packed_layer_is_right_at_128_bits_and_faster():
    ours, theirs = he.packed(16, 8), he.vectors(16, 8, sample=1)
    assert ours["degree"] == 8192
    assert ours["largest_error"] < 1e-3
    assert theirs["seconds"] == pytest.approx(8 * theirs["seconds_of_sample"], abs=0.01)
    assert ours["seconds"] < theirs["seconds"]
