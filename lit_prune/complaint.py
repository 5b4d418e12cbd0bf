"""One clear line of what the parser complains about."""

import re
import sys
from collections.abc import Callable, Iterable, Mapping

from lit_prune.errors import did_you_mean

__all__ = ["complaint"]

_INNER_KEY = re.compile(r'Parser key "([\w.]+)":\s*$')
# What is expected, as the parser writes it: a class, or a choice of values.
_EXPECTED = re.compile(
    r"Expected an? (?:<class '(?:\w+\.)*(\w+)'>|typing\.Literal\[(.*?)\](?=[\s.]|\Z))"
)
_GIVEN = re.compile(r"(?:Got|Given) value: (.+?)(?:\. Got value: |\n|\Z)")
_IN_WORDS = {"NoneType": "null", "bool": "true or false"}


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
    if inner := _inside(message):
        # An argument of a class that is named itself: say what is wrong inside.
        return complaint(f'Parser key "{key}.{inner[0]}":\n{inner[1]}', keys, classes, arguments_of)
    if found := re.match(r"argument (\S+): expected one argument", message):
        return f"{found[1]} lacks its value; one that begins with a dash is written OPTION=VALUE"
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
        return f"{key}: {found[1].rpartition('.')[2]}: {found[2].splitlines()[0].strip()}"
    is_number = {"int", "float"} & {name for name, _ in _EXPECTED.findall(message)}
    found = re.search(r"Expected a dot import path string: (\S+)", message)
    if found and not is_number:
        known = sorted(classes.get(key, ()))
        listed = (
            f"; known: {', '.join(known)}, or a class path" if len(known) in range(1, 20) else ""
        )
        return f"{key}: unknown class {found[1]!r}{did_you_mean(found[1], known)}{listed}"
    if found := re.search(r"File does not exist: '(.+)'", message):
        return f"{key}: no such file: {found[1]}"
    return _first_reason(key, message)


def _inside(message: str) -> tuple[str, str] | None:
    """Return the key that a message goes into, and what it says of it: the lines set in further."""
    lines = message.splitlines()
    for number, line in enumerate(lines[1:], 1):
        if found := _INNER_KEY.search(line):
            depth = _depth(line)
            rest = lines[number + 1 :]
            ends = (n for n, x in enumerate(rest) if x.strip() and _depth(x) <= depth)
            return found[1], "\n".join(rest[: next(ends, len(rest))])
    return None


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip())


def _forms(name: str, choices: str) -> list[str]:
    """Return what may stand in a place, of a class or a choice of values."""
    if name:
        return [_IN_WORDS.get(name, name)]
    return [repr(choice.strip("'")) for choice in choices.split(", ")]


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
    given = _GIVEN.search(message)
    wanted = dict.fromkeys(form for found in _EXPECTED.findall(message) for form in _forms(*found))
    if wanted and given:
        return f"{start}expected {' or '.join(wanted)}, got {given[1]!r}"
    return start + re.sub(r'^Parser key "[\w.]+":\s*', "", message).strip().splitlines()[0]
