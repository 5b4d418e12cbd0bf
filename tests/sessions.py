"""Sessions of train.py in processes of their own, which may kill themselves at a given moment.

The processes are forked from one that has imported everything, so that each starts at once.
"""

import contextlib
import hashlib
import os
import resource
import signal
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.util import tensor_util

_CONTEXT = get_context("forkserver")
# What a run imports, and what it imports late.
_CONTEXT.set_forkserver_preload(
    ["lit_prune.cli", "torch.utils.tensorboard", "torchvision", "sklearn.datasets", "sessions"]
)


@dataclass(frozen=True)
class Moment:
    """The process kills itself by SIGKILL when a function is called for the n-th time.

    Args:
        function: by its full name, such as ``os.replace``.
        call: which call, from 1 on.
        after: not before the function runs but when it has returned.
    """

    function: str
    call: int = 1
    after: bool = False


@dataclass(frozen=True)
class Ended:
    """How a session ended: its exit code, minus the signal if one killed it; what it printed."""

    code: int
    out: str
    err: str


def session(
    args: list[str],
    folder: Path,
    moment: Moment | None = None,
    prepare: Callable[[], None] | None = None,
) -> Ended:
    """Run ``train.py ARGS --run_dir FOLDER`` in a process of its own.

    Args:
        prepare: called there first; by its name, so that it must lie at the top of a module.
    """
    everything = [*args, "--run_dir", str(folder)]
    with TemporaryDirectory() as apart:
        written = [Path(apart) / name for name in ("out", "err")]
        process = _CONTEXT.Process(target=_session, args=(everything, moment, prepare, written))
        process.start()
        process.join(300)
        assert process.exitcode is not None, "it hangs"
        return Ended(process.exitcode, *(path.read_text() for path in written))


def _session(
    args: list[str],
    moment: Moment | None,
    prepare: Callable[[], None] | None,
    written: list[Path],
) -> None:
    for path, stream in zip(written, (sys.stdout, sys.stderr), strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream.fileno())
    from lit_prune.cli import main

    torch.set_num_threads(1)
    sys.argv = ["train.py"]
    if prepare is not None:
        prepare()
    if moment is not None:
        _kill_at(moment)
    sys.exit(main(args))


def _kill_at(moment: Moment) -> None:
    *path, name = moment.function.split(".")
    owner = _found(path)
    original, calls = getattr(owner, name), Counter[str]()

    @wraps(original)
    def counted(*args: Any, **options: Any) -> Any:
        calls["all"] += 1
        is_it = calls["all"] == moment.call
        if is_it and not moment.after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **options)
        if is_it:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, counted)


def _found(path: list[str]) -> Any:
    for length in range(len(path), 0, -1):
        with contextlib.suppress(ModuleNotFoundError):
            found = import_module(".".join(path[:length]))
            for name in path[length:]:
                found = getattr(found, name)
            return found
    raise AssertionError(f"no such function: {path}")


def limit_file_size(size: int) -> None:
    """Let no file grow beyond so many bytes: writing fails with EFBIG, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def scalars(folder: Path) -> Counter[tuple[str, int, Any]]:
    """Count (tag, step, value) in all of TensorBoard's files in a folder.

    The value of a picture, a histogram or a table is a hash of it; that of seconds, and of the
    graph, whose nodes are numbered anew by each process, is nothing.
    """
    found: Counter[tuple[str, int, Any]] = Counter()
    for path in sorted(folder.glob("events.out.tfevents*")):
        for event in EventFileLoader(str(path)).Load():
            if event.HasField("graph_def"):
                found["graph", event.step, None] += 1
            for value in event.summary.value:
                found[value.tag, event.step, _value(value)] += 1
    return found


def _value(value: Any) -> float | str | None:
    if value.tag == "seconds":
        return None
    array = tensor_util.make_ndarray(value.tensor)
    if array.dtype.kind in "fiu" and array.ndim == 0:
        return float(array)
    # The content of a table lies in its metadata.
    content = repr(array.tolist()).encode() + value.metadata.plugin_data.content
    return hashlib.sha256(content).hexdigest()
