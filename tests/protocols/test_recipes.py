"""Recipes: what the dealer derives of masks. The same numbers, whoever computes them, in whichever version."""

import hashlib

from blindformer.models.program.correlations import Correlations
from blindformer.protocols.beaver.source import Corrections
from blindformer.protocols.streams import Stream
from blindformer.tests.protocols.cases import CASES

# Of integers alone: of others the last bit may be the processor's.
READERS = (
    "one_value_many_readers",
    "sums_with_public_numbers_keep_an_opening",
    "operations_on_differences_of_bits-less",
)
DIGEST = "4aef6364508ad6919472abc640f271b98a91935a3cdd12b12eea8d467d38cdfd"


class Digest:
    """The dealer's end of a channel."""

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()

    def send(self, data: bytearray) -> None:
        self.sha256.update(data)


def test_stores_that_an_earlier_version_filled_stay_right():
    """Corrections belong to seeds: those that a store holds must be what would be dealt today."""
    sent = Digest()
    for name in READERS:
        program = CASES[name]().program
        weights = Stream(b"w" * 32, "weight masks")
        masks = {name: weights.integers(name, shape) for name, shape in program.weight_shapes().items()}
        correlations = Correlations(program)
        corrections = Corrections(sent, correlations.layout)
        correlations.deal([Stream(seed * 32, "query") for seed in (b"s", b"c")], corrections, masks)
    assert sent.sha256.hexdigest() == DIGEST
