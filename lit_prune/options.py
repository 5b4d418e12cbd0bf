"""Options: what a command of ``python -m lit_prune`` takes."""

import argparse
from argparse import Namespace
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from lit_prune.errors import LitPruneError

__all__ = ["Options"]


class Options(argparse.ArgumentParser):
    """The options of a command. A mistake is raised in one line, and no usage is printed.

    Args:
        about: what the command does, for ``--help``.
        helps: what each option does, by its name.
        usage: how it is called; None is made of the options.
        prog: what it is called by, where the usage is made.
        more: what ``--help`` says after the options.
    """

    def __init__(
        self,
        about: str,
        helps: Mapping[str, str],
        usage: str | None = None,
        prog: str | None = None,
        more: str | None = None,
    ) -> None:
        super().__init__(
            prog=prog,
            usage=usage,
            description=about,
            epilog=more,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self._helps = helps

    def add(self, option: str, **form: Any) -> None:
        """Add an option that ``helps`` has."""
        self.add_argument(option, **form, help=self._helps[option])

    def parse_about(self, args: Sequence[str]) -> tuple[Namespace, Path | None, list[str]]:
        """Return our own options, the file or folder that the command is about, and all else.

        What it is about is the first word that is no option, and not the value of one: options of
        others take one value each.
        """
        asked, others = self.parse_known_args(args)
        for number, (before, word) in enumerate(pairwise(["", *others])):
            is_value = before.startswith("--") and "=" not in before
            if not word.startswith("-") and not is_value:
                return asked, Path(word), others[:number] + others[number + 1 :]
        return asked, None, others

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong.

        Raises:
            LitPruneError: always.
        """
        raise LitPruneError(message)
