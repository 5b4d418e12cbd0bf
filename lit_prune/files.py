"""Files appear whole or not at all: written aside, synced, then renamed."""

import csv
import io
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from lit_prune.errors import LitPruneError, UnwritableFile

__all__ = [
    "as_csv",
    "cut_back",
    "os_error",
    "remove_asides",
    "require_file_place",
    "require_folder_place",
    "sizes",
    "sync",
    "whole",
    "write_all",
    "write_whole",
]

# Of the file that is written aside; no file of another origin has this name.
_PREFIX, _SUFFIX = ".", ".part"


@contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file for writing that appears at ``path`` when all is written and synced.

    A kill at any moment leaves the old file or the new one, and perhaps an aside, which
    :func:`remove_asides` finds.

    Raises:
        UnwritableFile: the disk is full, the folder cannot be written, or the like.
    """
    path = Path(path)
    aside = None
    try:
        handle, aside = tempfile.mkstemp(_SUFFIX, f"{_PREFIX}{path.name}.", path.parent)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o666 & ~_umask())
        os.replace(aside, path)
        aside = None
        sync(path.parent)
    except BaseException as error:
        if aside is not None:
            with suppress(OSError):
                os.unlink(aside)
        if isinstance(error, Exception) and (why := os_error(error)) is not None:
            raise UnwritableFile.of(path, why) from error
        raise


def write_whole(path: str | os.PathLike[str], content: bytes | str) -> None:
    """Write ``content`` to ``path``; a kill at any moment leaves the old file or the new one."""
    with whole(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_all(folder: Path, contents: Mapping[str, bytes | str]) -> None:
    """Write several files, by their names, into a folder, which is made if it is not there.

    Raises:
        UnwritableFile: the disk is full, the folder cannot be written, or the like.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnwritableFile.of(folder, error) from error
    for name, content in contents.items():
        write_whole(folder / name, content)


def require_folder_place(option: str, folder: Path) -> None:
    """Require that ``folder`` can be made or written, before anything is computed for it.

    Raises:
        LitPruneError: there is a file in its place, or its nearest folder cannot be written.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise LitPruneError(f"{option} {folder}: {there} is a file, not a folder")
    if not os.access(there, os.W_OK):
        raise LitPruneError(f"{option} {folder}: cannot write to {there}")


def require_file_place(option: str, file: Path) -> None:
    """Require that ``file`` can be written, before anything is computed for it.

    Raises:
        LitPruneError: it is a folder, its folder is not there, or cannot be written.
    """
    if file.is_dir():
        raise LitPruneError(f"{option} {file} is a folder, not a file")
    if not file.parent.is_dir():
        raise LitPruneError(f"{option} {file}: there is no folder {file.parent}")
    if not os.access(file.parent, os.W_OK):
        raise LitPruneError(f"{option} {file}: cannot write to {file.parent}")


def as_csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    r"""Return a table as text.

    Examples:
        >>> as_csv(["name", "kept"], [["fc", 3], ["out", None]])
        'name,kept\nfc,3\nout,\n'
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def sync(path: str | os.PathLike[str]) -> None:
    """Wait until a file, or what is in a folder, would survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def os_error(error: BaseException | None) -> OSError | None:
    """Return the error of the operating system behind ``error``, if there is one.

    ``torch.save`` and others raise a RuntimeError or ValueError on top of it.
    """
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def is_aside(path: Path) -> bool:
    """Tell whether a file was being written aside when the writer was killed."""
    return path.name.startswith(_PREFIX) and path.name.endswith(_SUFFIX)


def remove_asides(folder: Path) -> None:
    """Remove what killed writers left in ``folder`` and the folders in it."""
    for path in folder.rglob(f"{_PREFIX}*{_SUFFIX}"):
        path.unlink(missing_ok=True)


def sizes(folder: Path, pattern: str) -> dict[str, int]:
    """Return how many bytes the files of ``folder`` have whose names match ``pattern``."""
    return {path.name: path.stat().st_size for path in sorted(folder.glob(pattern))}


def cut_back(folder: Path, pattern: str, noted: Mapping[str, int]) -> None:
    """Make files that only ever grow as they were when their :func:`sizes` were noted.

    A file that has become smaller is left alone: what it lacks is lost.
    """
    for name, size in sizes(folder, pattern).items():
        if name not in noted:
            (folder / name).unlink()
        elif size > noted[name]:
            os.truncate(folder / name, noted[name])


def _umask() -> int:
    # mkstemp makes the file private; the mask can only be read by setting it.
    mask = os.umask(0)
    os.umask(mask)
    return mask
