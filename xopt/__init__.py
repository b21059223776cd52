"""Gradient-based optimizers, written once against the Python Array API standard.

The names are in ``__init__.pyi``; each is imported when it is first used.
"""

import ast as _ast
import importlib as _importlib
import pkgutil as _pkgutil

from xopt._version import __version__ as __version__


def _names() -> dict[str, str]:
    """Find in which module each public name is."""
    stub = _pkgutil.get_data("xopt", "__init__.pyi") or b""  # also from a zip
    imports = [node for node in _ast.parse(stub).body if isinstance(node, _ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


_WHERE = _names()
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module 'xopt' has no attribute {name!r}")
    module = _WHERE[name]
    found = _importlib.import_module(f"xopt.{name}") if module == "xopt" else None
    globals()[name] = value = found or getattr(_importlib.import_module(module), name)
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
