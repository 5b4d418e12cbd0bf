"""Options: what a command of ``python -m lit_prune`` takes."""

import argparse
from collections.abc import Mapping
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

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong.

        Raises:
            LitPruneError: always.
        """
        raise LitPruneError(message)
