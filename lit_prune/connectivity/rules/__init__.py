"""The rules that come with the house; every file in this folder is loaded."""

import pkgutil
from importlib import import_module

for _info in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_info.name}")
