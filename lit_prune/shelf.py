"""A folder of one-class files, offered by name: adding a member is adding a file."""

import inspect
import pkgutil
from collections.abc import Iterable
from importlib import import_module

__all__ = ["members"]


def members(package: str, path: Iterable[str], base: type) -> dict[str, type]:
    """Return every public, concrete subclass of ``base`` that a module of ``package`` defines."""
    found: dict[str, type] = {}
    for info in pkgutil.iter_modules(path):
        module = import_module(f"{package}.{info.name}")
        for name, member in vars(module).items():
            is_own = inspect.isclass(member) and member.__module__ == module.__name__
            is_public = is_own and not name.startswith("_")
            if is_public and issubclass(member, base) and not inspect.isabstract(member):
                found[name] = member
    return found
