"""Parameters chosen by a predicate: a glob over the path, a regular expression, a function of path and array."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, TypeAlias

from xopt._arrays.layout import Layout
from xopt._public import public

Predicate: TypeAlias = str | re.Pattern[str] | Callable[[str, Any], bool]
"""Which parameters: a glob over the path, a regular expression searched in it, or a function of path and array."""


@functools.lru_cache(maxsize=1024)
def _glob(pattern: str) -> re.Pattern[str]:
    """Translate a glob over a path with slashes."""
    found, i = "", 0
    while i < len(pattern):
        rest = pattern[i:]
        if rest.startswith("**/") and pattern[i - 1 : i] in ("", "/"):
            found, i = f"{found}(?:.*/)?", i + 3
        elif rest == "/**":
            found, i = f"{found}(?:/.*)?", i + 3
        elif rest.startswith("**"):
            found, i = f"{found}.*", i + 2
        elif rest[0] in "*?":
            found, i = f"{found}[^/]{rest[0].replace('?', '')}", i + 1
        elif (group := re.match(r"\[(!?)(\]?[^\]]*)\]", rest)) and group[2]:
            among = re.escape(group[2]).replace(r"\-", "-")
            found, i = f"{found}[{'^/' if group[1] else ''}{among}]", i + len(group[0])
        else:
            found, i = found + re.escape(rest[0]), i + 1
    return re.compile(found, re.DOTALL)


def _matches(predicate: Predicate, path: str, x: Any) -> bool:
    if isinstance(predicate, str):
        return _glob(predicate).fullmatch(path) is not None
    if isinstance(predicate, re.Pattern):
        return predicate.search(path) is not None
    return bool(predicate(path, x))


def shown(x: Any) -> str:
    """Show a predicate, or what becomes of a group, as it was written."""
    if isinstance(x, re.Pattern):
        flags = x.flags & ~re.UNICODE
        return f"re.compile({x.pattern!r}{f', {re.RegexFlag(flags)!r}' if flags else ''})"
    return str(getattr(x, "__qualname__", None) or repr(x))


def check_predicate(who: str, predicate: Any) -> None:
    if isinstance(predicate, re.Pattern) and not isinstance(predicate.pattern, str):
        raise TypeError(f"{who}: {predicate!r} searches bytes, but a path is a str")
    if not isinstance(predicate, str | re.Pattern) and not (callable(predicate) and not isinstance(predicate, type)):
        raise TypeError(
            f"{who}: {predicate!r}, but a predicate is a glob, a compiled regular expression or a function of path and "
            f"array"
        )


def chosen(who: str, predicates: tuple[Predicate, ...], layout: Layout, unmatched: str) -> list[int | None]:
    """Return for each leaf the first predicate that it matches; found out once for each tree."""
    key = (who, unmatched, *map(id, predicates))
    if key not in layout.memo:
        names, first = layout.names(), list[int | None]()
        matched = set[int]()
        for name, x in zip(names, layout.leaves, strict=True):
            found = [n for n, predicate in enumerate(predicates) if _matches(predicate, name, x)]
            matched |= {*found}
            first.append(found[0] if found else None)
        for n, predicate in enumerate(predicates):
            if n not in first and names and unmatched == "error":
                why = "only what predicates before it take, of" if n in matched else "none of"
                more = f" and {len(names) - 20} more" if len(names) > 20 else ""
                raise ValueError(
                    f"{who}: {shown(predicate)} matches {why} the parameters: {', '.join(names[:20])}{more}; if that "
                    f'is meant, say unmatched="ignore"'
                )
        layout.memo[key] = predicates, first  # which are kept, so that nobody else gets their ids
    found_before: list[int | None] = layout.memo[key][1]
    return found_before


def check_unmatched(who: str, unmatched: Any) -> None:
    if unmatched not in ("error", "ignore"):
        raise ValueError(f"{who}: unmatched={unmatched!r}, but it must be one of 'error', 'ignore'")


@public
def no_decay_1d(path: str, x: Any) -> bool:
    """Select biases and the scales of norms, which are not to decay: arrays of fewer than two axes.

    A predicate for :class:`Groups`.

    Examples
    --------
    >>> import xopt
    >>> xopt.Groups(xopt.AdamW(weight_decay=0.1), (xopt.no_decay_1d, {"weight_decay": 0.0}))
    Groups(AdamW(weight_decay=0.1), (no_decay_1d, {'weight_decay': 0.0}))
    """
    del path
    return bool(x.ndim < 2)
