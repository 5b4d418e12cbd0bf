"""One clear line of what the parser complains about."""

import re
from collections.abc import Iterable, Mapping

from lit_prune.errors import did_you_mean

__all__ = ["complaint"]


def complaint(
    message: str, keys: Iterable[str], classes: Mapping[str, Iterable[str]]
) -> str:
    """Return a parser's message as one line with the key, the value and what is allowed there.

    Args:
        message: of jsonargparse, up to hundreds of lines.
        keys: the keys that the parser knows, for the nearest match.
        classes: key -> the short class names that may stand there.
    """
    keys = sorted(keys)
    if found := re.match(r"unrecognized arguments: (\S+)", message):
        name = found[1].lstrip("-").partition("=")[0]
        return f"unknown option {found[1]!r}{did_you_mean(name, keys)}"
    if found := re.search(r"[Kk]ey [\"']([\w.]+)[\"'] is not expected", message):
        return f"unknown key {found[1]!r}{did_you_mean(found[1], keys)}"
    key = found[1] if (found := re.search(r'Parser key "([\w.]+)"', message)) else ""
    if found := re.search(r"Option '([\w.]+)' is not accepted", message):
        owner = re.search(r"class_path '([\w.]+)'", message)
        where = f" by {owner[1].rpartition('.')[2]}" if owner else ""
        allowed = [k.rpartition(".")[2] for k in keys if k.startswith(f"{key}.init_args.")]
        return f"{key}: {found[1]!r} is not taken{where}{did_you_mean(found[1], allowed)}"
    if found := re.search(r"Expected a dot import path string: (\S+)", message):
        known = sorted(classes.get(key, ()))
        listed = f"; known: {', '.join(known)}, or a class path" if known else ""
        return f"{key}: unknown class {found[1]!r}{did_you_mean(found[1], known)}{listed}"
    return _shortened(key, message)


def _shortened(key: str, message: str) -> str:
    given = re.search(r"Given value: (.+)", message)
    types = dict.fromkeys(re.findall(r"Expected an? <class '(?:\w+\.)*(\w+)'>", message))
    if types and given:
        wanted = " or ".join("null" if name == "NoneType" else name for name in types)
        return f"{key}: expected {wanted}, got {given[1]!r}"
    lines = [line.strip(" -") for line in message.splitlines()]
    told = [line for line in lines if line and not line.startswith(("Parser key", "Subtypes"))]
    noise = re.compile(r"(Does not validate|Errors:|Given value type|Expected a path but)")
    told = [line for line in told if not noise.match(line)] or lines
    return f"{key}: {told[0]}" if key else re.sub(r'^Parser key "([\w.]+)": ', r"\1: ", told[0])
