"""Files that are whole or not there, and open to nobody else."""

import pytest
from blindformer import files
from blindformer.files import make_folder, sync, whole_file


def test_a_file_has_its_name_when_it_is_whole_and_its_mode_from_the_first_byte(tmp_path):
    path = tmp_path / "key"
    with whole_file(path, durable=True) as stream:
        (part,) = tmp_path.iterdir()
        assert part.stat().st_mode & 0o777 == 0o600
        assert not path.exists()
        stream.write(b"one")
    assert path.read_bytes() == b"one"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("new", "last", "error"), [(False, None, TypeError), (True, None, TypeError), (True, b"whole", FileExistsError)]
)
def test_after_an_error_the_old_one_is_there_and_nothing_else(tmp_path, new, last, error):
    """A new file replaces nobody's."""
    path = tmp_path / "key"
    path.write_bytes(b"old")
    with pytest.raises(error), whole_file(path, new=new) as stream:
        stream.writelines([b"half", last])
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_folders_name_is_on_the_disk_and_so_are_those_above_it(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(files, "sync", synced.append)
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    assert synced == [tmp_path, tmp_path / "a"]
    make_folder(tmp_path / "a" / "b")
    assert len(synced) == 2


def test_what_is_not_there_cannot_be_synced(tmp_path):
    sync(tmp_path)
    with pytest.raises(FileNotFoundError):
        sync(tmp_path / "nothing")
