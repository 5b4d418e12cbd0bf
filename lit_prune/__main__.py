"""``python -m lit_prune COMMAND``: what there is to do besides training."""

import sys
from collections.abc import Sequence
from importlib import import_module

from lit_prune.errors import LitPruneError, did_you_mean

__all__ = ["main"]

# Each command is a room of this package with a function run(args), which may return a code.
_COMMANDS = {
    "curve": "draw direct against effective compression, without training",
    "inspect": "show what masks leave of a network, layer by layer and as a picture",
    "report": "collect runs into tables and a page with plots, and say which compare",
    "sweep": "run all combinations of a file, in parallel, here or on a cluster",
}

_USAGE = "usage: python -m lit_prune COMMAND ..."


def main(args: Sequence[str] | None = None) -> int:
    """Run the command that ``args`` (None: those of the command line) name; return the exit code.

    A mistake of the user is one line on stderr and the code 2.
    """
    name, *rest = list(sys.argv[1:] if args is None else args) or [""]
    if name in ("-h", "--help"):
        print(_help())
        return 0
    try:
        return _run(name, rest)
    except LitPruneError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _run(name: str, args: list[str]) -> int:
    if name not in _COMMANDS:
        what = f"unknown command {name!r}{did_you_mean(name, _COMMANDS)}" if name else "no command"
        raise LitPruneError(f"{what} ({_USAGE}; known: {', '.join(_COMMANDS)})")
    return import_module(f"lit_prune.{name}").run(args) or 0


def _help() -> str:
    lines = [f"  {name:10}{what}" for name, what in _COMMANDS.items()]
    return "\n".join([f"{_USAGE}; COMMAND --help says more", "", *lines])


if __name__ == "__main__":
    sys.exit(main())
