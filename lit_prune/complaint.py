"""One clear line of what the parser complains about."""

import re
import sys
from collections.abc import Callable, Iterable, Mapping

from lit_prune.errors import did_you_mean

__all__ = ["complaint"]

_NESTED = re.compile(
    r"Problem with given class_path '[\w.]+':\s*Parser key \"([\w.]+)\":\s*?"
    r"(\s*(?:- Expected a (?:path|dot)|Problem with given class_path).*?)(?:\n\s*- Type |\Z)",
    re.DOTALL,
)


def complaint(
    message: str,
    keys: Iterable[str],
    classes: Mapping[str, Iterable[str]],
    arguments_of: Callable[[str], list[str]],
) -> str:
    """Return a parser's message as one line with the key, the value and what is allowed there.

    Args:
        message: of jsonargparse, up to hundreds of lines.
        keys: the keys that the parser knows.
        classes: key -> the short class names that may stand there.
        arguments_of: class path -> the names of its arguments.
    """
    keys = sorted(keys)
    key = found[1] if (found := re.search(r'Parser key "([\w.]+)"', message)) else ""
    if found := _NESTED.search(message):
        # An argument of a class that is named itself: say what is wrong inside.
        nested = f'Parser key "{key}.{found[1]}":{found[2]}'
        return complaint(nested, keys, classes, arguments_of)
    if found := re.match(r"unrecognized arguments: (\S+)", message):
        name = found[1].lstrip("-").partition("=")[0]
        return f"unknown option {found[1]!r}{did_you_mean(name, keys)}"
    if found := re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message):
        name = f"{found[1]}.{found[2]}"
        return f"unknown key {name!r}{did_you_mean(name, keys)}"
    if found := re.search(r"Option '([\w.]+)' is not accepted", message):
        if not key:
            return f"unknown key {found[1]!r}{did_you_mean(found[1], keys)}"
        return f"{key}: {_unknown_argument(found[1], key, message, keys, arguments_of)}"
    if found := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", message):
        near = did_you_mean(found[2], dir(sys.modules.get(found[1])))
        return f"{key}: {found[1]} has no {found[2]!r}{near}"
    if found := re.search(
        r"Problem with given class_path '([\w.]+)':\s*(\S.*)", message, re.DOTALL
    ):
        lines = [line.strip() for line in found[2].splitlines()]
        name = found[1].rpartition(".")[2]
        inner = re.fullmatch(r'Parser key "([\w.]+)":', lines[0])
        return (
            f"{key}.{inner[1]}: {lines[1]}" if inner and lines[1:] else f"{key}: {name}: {lines[0]}"
        )
    if found := re.search(r"Expected a dot import path string: (\S+)", message):
        known = sorted(classes.get(key, ()))
        listed = (
            f"; known: {', '.join(known)}, or a class path" if len(known) in range(1, 20) else ""
        )
        return f"{key}: unknown class {found[1]!r}{did_you_mean(found[1], known)}{listed}"
    if found := re.search(r"File does not exist: '(.+)'", message):
        return f"{key}: no such file: {found[1]}"
    return _first_reason(key, message)


def _unknown_argument(
    name: str,
    key: str,
    message: str,
    keys: list[str],
    arguments_of: Callable[[str], list[str]],
) -> str:
    owner = re.search(r"class_path[:=]?\s?'([\w.]+)'", message)
    if owner:
        known, who = arguments_of(owner[1]), owner[1].rpartition(".")[2]
    else:
        known, who = [k.removeprefix(f"{key}.") for k in keys if k.startswith(f"{key}.")], "it"
    takes = f"; {who} takes {', '.join(known) or 'none'}" if len(known) < 20 else ""
    return f"unknown argument {name!r}{did_you_mean(name, known)}{takes}"


def _first_reason(key: str, message: str) -> str:
    """Return what a check of ours says, else which types are expected, else the first line."""
    start = f"{key}: " if key else ""
    reasons = re.findall(r"^\s*- (.+)$", message, re.MULTILINE)
    told = [r for r in reasons if not r.startswith(("Expected a", "Does not validate"))]
    if told:
        return start + told[0]
    given = re.search(r"Given value: (.+)", message)
    types = dict.fromkeys(re.findall(r"Expected an? <class '(?:\w+\.)*(\w+)'>", message))
    if types and given:
        wanted = " or ".join("null" if name == "NoneType" else name for name in types)
        return f"{start}expected {wanted}, got {given[1]!r}"
    return start + re.sub(r'^Parser key "[\w.]+":\s*', "", message).strip().splitlines()[0]
