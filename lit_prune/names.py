"""Names of parameters, the same whether a model is compiled or not."""

__all__ = ["plain_name"]


def plain_name(name: str) -> str:
    """Return ``name`` without the ``_orig_mod.`` that ``torch.compile`` wraps around modules.

    Examples:
        >>> plain_name("backbone._orig_mod.fc1.weight")
        'backbone.fc1.weight'
    """
    return name.replace("_orig_mod.", "")
