"""Files appear whole or not at all; and folders are tidied up after a kill."""

import errno
import io
import os
import stat

import pytest
import torch

from lit_prune import LitPruneError
from lit_prune.errors import UnwritableFile
from lit_prune.files import (
    cut_back,
    is_aside,
    os_error,
    remove_asides,
    sizes,
    whole,
    write_whole,
)


@pytest.fixture
def calls(monkeypatch):
    """The calls that make a file durable, in their order."""
    made = []

    def noting(name):
        original = getattr(os, name)

        def noted(*args):
            if name == "fsync":
                kind = "folder" if stat.S_ISDIR(os.fstat(args[0]).st_mode) else "file"
                made.append((name, kind, os.fstat(args[0]).st_size if kind == "file" else None))
            else:
                made.append((name, *map(os.path.basename, args)))
            return original(*args)

        return noted

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, noting(name))
    return made


def test_a_file_is_synced_before_it_is_renamed_and_its_folder_after(tmp_path, calls):
    write_whole(tmp_path / "a.txt", "12345")
    (_, kind, size), (name, aside, path), (_, last, _) = calls
    assert (kind, size, name, path, last) == ("file", 5, "replace", "a.txt", "folder")
    assert is_aside(tmp_path / aside)
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_file_that_breaks_off_leaves_the_old_one_and_no_aside(tmp_path):
    path = tmp_path / "a.txt"
    write_whole(path, b"old")

    def break_off():
        with whole(path) as file:
            file.write(b"new")
            raise KeyError

    with pytest.raises(KeyError):
        break_off()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("function", ["fsync", "replace", "fchmod"])
def test_what_the_system_refuses_is_one_line_with_the_file(function, tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, function, refuse)
    path = tmp_path / "a.txt"
    with pytest.raises(LitPruneError) as caught:
        write_whole(path, "new")
    assert str(caught.value) == f"cannot write {path}: No space left on device"
    assert isinstance(caught.value, OSError)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_one_line_with_the_file(tmp_path):
    path = tmp_path / "none" / "a.txt"
    with pytest.raises(UnwritableFile, match="No such file or directory") as caught:
        write_whole(path, "new")
    assert str(caught.value).startswith(f"cannot write {path}: ")


def test_torch_hides_what_the_system_says_and_we_find_it(tmp_path):
    class Full(io.BytesIO):
        def write(self, data):
            if self.tell() + len(data) > 2000:
                raise OSError(errno.ENOSPC, "full")
            return super().write(data)

    with pytest.raises(RuntimeError) as caught:
        torch.save({"a": torch.zeros(1000)}, Full())
    assert os_error(caught.value).errno == errno.ENOSPC
    assert os_error(ValueError()) is None
    assert os_error(None) is None


def test_asides_alone_are_removed_wherever_they_lie(tmp_path):
    (tmp_path / "masks").mkdir()
    asides = [tmp_path / ".a.txt.x1.part", tmp_path / "masks" / ".level.safetensors.x2.part"]
    others = [tmp_path / name for name in (".lock", "a.part", ".part.txt", "masks/level")]
    for path in [*asides, *others]:
        path.touch()
    remove_asides(tmp_path)
    assert [path.exists() for path in asides] == [False, False]
    assert all(path.exists() for path in others)


def test_files_are_cut_back_to_what_was_noted(tmp_path):
    for name, content in {"log.1": "12345", "log.2": "123", "other": "12345"}.items():
        (tmp_path / name).write_text(content)
    noted = sizes(tmp_path, "log.*")
    assert noted == {"log.1": 5, "log.2": 3}
    (tmp_path / "log.1").write_text("1234567")
    (tmp_path / "log.3").write_text("new")
    (tmp_path / "log.2").write_text("1")
    (tmp_path / "other").write_text("1234567")
    cut_back(tmp_path, "log.*", noted)
    left = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert left == {"log.1": "12345", "log.2": "1", "other": "1234567"}
