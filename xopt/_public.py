"""Where public classes and functions say that they are: where users find them, not where they are written.

Pickles, ``repr`` and tracebacks have the public place, so that private modules may move. ``inspect.getfile`` of a class
is that place too, and on late versions of Python ``inspect.getsource`` finds no class there; ``xopt.Adam??`` in IPython
does, and so does ``inspect.getsource`` of a method or of ``xopt.Adam.__wrapped__``.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any, TypeVar

T = TypeVar("T")

_WHERE: dict[str, str] = vars(sys.modules["xopt"])["_WHERE"]


def offered(thing: Any) -> bool:
    """Whether ``xopt`` offers this; a class of a user may have the same name."""
    return thing.__name__ in _WHERE and f"{thing.__module__}.".startswith(f"{_WHERE[thing.__name__]}.")


def public(thing: T) -> T:
    """Let a class or function say that it is in ``xopt``, or else in the public folder that it is written in."""
    x: Any = thing
    module = "xopt" if offered(x) else x.__module__.partition("._")[0]
    if isinstance(x, type):
        names = vars(sys.modules[x.__module__])  # annotations are looked up where a class says that it is
        texts = {n: getattr(hint, "__forward_arg__", hint) for n, hint in vars(x).get("__annotations__", {}).items()}
        x.__annotations__ = {n: eval(text, names) if isinstance(text, str) else text for n, text in texts.items()}
        x.__wrapped__ = _Written(x)  # type: ignore[attr-defined]
        with contextlib.suppress(AttributeError):
            del x.__firstlineno__  # type: ignore[attr-defined]  # Python 3.13.0 would show a line of another file
    x.__module__ = module
    return thing


class _Written:
    """The ``__wrapped__`` of a public class: a class of its name that says where it is written."""

    def __init__(self, cls: type) -> None:
        self._cls = cls
        self._body = {n: vars(cls)[n] for n in ("__module__", "__firstlineno__") if n in vars(cls)}

    def __get__(self, instance: object, owner: type) -> type:
        if instance is not None or owner is not self._cls:  # a subclass is where it says
            raise AttributeError("__wrapped__")
        import inspect

        body: dict[str, Any] = {**self._body, "__qualname__": owner.__qualname__}
        with contextlib.suppress(ValueError):  # a dict has none
            body["__signature__"] = inspect.signature(owner, follow_wrapped=False)
        return type(owner.__name__, (), body)
