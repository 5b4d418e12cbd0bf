"""Lets mkdocs read the roles of our docstrings: formulas become MathML, and names become code.

Browsers draw MathML by themselves, so that the pages fetch no script.
"""

import re
import textwrap
from typing import Any

from griffe import Extension, Object
from latex2mathml.converter import convert

__all__ = ["ReadRoles"]

_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`~?([^`]+)`")
_INLINE = re.compile(r":math:`([^`]+)`")
_BLOCK = re.compile(r"^( *)\.\. math::[ \n]*?(.*?)(?=\n\s*\n(?!\1 )|\Z)", re.MULTILINE | re.DOTALL)


class ReadRoles(Extension):
    """Rewrites the docstring of every object as it is read."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """Return a docstring with its roles and formulas as Markdown understands them.

    Examples:
        >>> as_markdown("Calls :func:`prune`.")
        'Calls `prune`.'
    """
    text = _BLOCK.sub(_block, text)
    text = _INLINE.sub(lambda found: convert(_joined(found[1])), text)
    return _ROLE.sub(lambda found: f"`{found[1]}`", text)


def _block(found: re.Match[str]) -> str:
    return textwrap.indent(convert(_joined(found[2]), display="block"), found[1])


def _joined(formula: str) -> str:
    return " ".join(formula.split())
