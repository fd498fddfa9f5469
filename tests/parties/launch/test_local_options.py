"""What a launcher may ask of a service, and what no launcher says."""

from __future__ import annotations

import pytest
from blindformer.parties.launch import LocalOptions
from blindformer.protocols.errors import BlindformerError


def test_what_a_launcher_says_is_read_as_it_was_meant():
    options = LocalOptions(threads=2, any_ring=True, network=("wan", 0.04, 1e8))
    assert LocalOptions.read(options.words()[1]) == options
    assert LocalOptions.read(None) == LocalOptions()


@pytest.mark.parametrize("text", ["{bad", "[1]", '{"colour": 1}'])
def test_what_no_launcher_says_is_one_line(text):
    with pytest.raises(BlindformerError, match="leave it out"):
        LocalOptions.read(text)


def test_only_a_launchers_folder_is_removed_in_the_end(tmp_path):
    with pytest.raises(BlindformerError, match="no launcher's folder"):
        LocalOptions.read(f'{{"scratch": "{tmp_path}"}}')
