"""The server's secret: made once, whole, for its owner's eyes alone."""

from __future__ import annotations

import os
import threading

import pytest
from blindformer.parties.session import masked_weights as secrets_
from blindformer.parties.session.masked_weights import SecretError, load_secret
from blindformer.tests.patience import PATIENCE


def test_it_is_made_once_and_stays(tmp_path):
    path = tmp_path / "secret.key"
    secret = load_secret(path)
    assert len(secret) == 32
    assert load_secret(path) == secret
    assert load_secret(tmp_path / "other.key") != secret
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(os.listdir(tmp_path)) == ["other.key", "secret.key"]


def test_two_that_make_it_at_once_get_the_same(tmp_path, monkeypatch):
    path, found, both = tmp_path / "secret.key", [], threading.Barrier(2, timeout=PATIENCE)
    make = secrets_._make

    def late(path) -> None:
        both.wait()  # neither has found one
        make(path)

    monkeypatch.setattr(secrets_, "_make", late)
    threads = [threading.Thread(target=lambda: found.append(load_secret(path))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert len(set(found)) == 1
    assert os.listdir(tmp_path) == ["secret.key"]


def test_one_that_others_can_read_is_refused(tmp_path):
    path = tmp_path / "secret.key"
    load_secret(path)
    path.chmod(0o640)
    with pytest.raises(SecretError, match="can be read by other users; run: chmod 600"):
        load_secret(path)


@pytest.mark.parametrize("content", [b"", b"00", b"zz" * 32, b"00" * 33, bytes(32)])
def test_a_damaged_one_is_never_replaced(tmp_path, content):
    path = tmp_path / "secret.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(SecretError, match="is damaged; restore it, or remove it"):
        load_secret(path)
    assert path.read_bytes() == content


def test_one_of_16_bytes_from_before_stays(tmp_path):
    path = tmp_path / "secret.key"
    path.write_bytes(b"5e" * 16 + b"\n")
    path.chmod(0o600)
    assert load_secret(path) == b"\x5e" * 16


def test_a_place_that_cannot_be_written_is_explained(tmp_path):
    with pytest.raises(SecretError, match="cannot be written"):
        load_secret(tmp_path / "missing" / "secret.key")
    (tmp_path / "folder").mkdir(mode=0o700)
    with pytest.raises(SecretError, match="cannot be read"):
        load_secret(tmp_path / "folder")
