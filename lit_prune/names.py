"""Names of parameters, the same whether a model is compiled or not, and short ones to show."""

from collections.abc import Iterable

__all__ = ["plain_name", "titles"]


def plain_name(name: str) -> str:
    """Return ``name`` without the ``_orig_mod.`` that ``torch.compile`` wraps around modules.

    Examples:
        >>> plain_name("backbone._orig_mod.fc1.weight")
        'backbone.fc1.weight'
    """
    return name.replace("_orig_mod.", "")


def titles(names: Iterable[str]) -> dict[str, str]:
    """Return a short title for each weight, without what goes without saying; all are different.

    Examples:
        >>> titles(["backbone.fc1.weight", "backbone.rnn.weight_hh"])
        {'backbone.fc1.weight': 'fc1', 'backbone.rnn.weight_hh': 'rnn.weight_hh'}
    """
    names = list(names)
    short = [name.removeprefix("backbone.").removesuffix(".weight") for name in names]
    return dict(zip(names, short if len({*short}) == len(names) else names, strict=True))
