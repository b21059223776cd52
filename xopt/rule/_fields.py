"""Fields of a rule: how a class declares its hyperparameters and static choices, and how values are checked."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, get_args, get_origin

import numpy as np

from xopt import _arrays
from xopt._arrays import Library
from xopt._engine.program.quantize import CODES
from xopt._public import public

MISSING: Any = object()


class Field(NamedTuple):
    """What a class says about one of its fields."""

    default: Any
    static: bool
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    among: tuple[Any, ...] | None = None
    kw_only: bool = False
    integer: bool = False
    optional: bool = False
    function: bool = False
    kinds: tuple[type, ...] | None = None
    """Of a field that holds another component: its classes."""
    convert: Callable[[str, Any], Any] | None = None
    """Of a static field of another kind: what makes of ``(where, value)`` the one that is kept, or refuses it."""

    def holds(self, x: float) -> bool:
        """Whether a number that is finite is in range."""
        _, _, ge, gt, le, lt, *_ = self
        low = (ge is not None and x < ge) or (gt is not None and x <= gt)
        return not (low or (le is not None and x > le) or (lt is not None and x >= lt))

    def limits(self) -> str:
        """Say the range in words."""
        signs = {"≥": self.ge, ">": self.gt, "≤": self.le, "<": self.lt}
        return " and ".join(f"{sign} {bound:g}" for sign, bound in signs.items() if bound is not None)


@public
def hyper(
    *,
    default: Any = MISSING,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    kw_only: bool = False,
    optional: bool = False,
) -> Any:
    """Declare a hyperparameter of a rule: a number within bounds, or a schedule of such numbers.

    A default of None means that the rule works without it; None is then a choice of formula, like a static field.

    Parameters
    ----------
    default
        Value when none is given; without one the hyperparameter is required.
    ge, gt, le, lt
        Bounds: at least, more than, at most, less than.
    kw_only
        Whether it must be given by name.
    optional
        Whether None may be given where it is not the default.

    Examples
    --------
    >>> import xopt
    >>> from xopt.rule import Hyper
    >>> class Descent(xopt.Rule):
    ...     lr: Hyper = xopt.hyper(default=0.1, ge=0)
    ...
    ...     @staticmethod
    ...     def update(h, xp, p, g):
    ...         return -h.lr * g
    >>> Descent(lr=-1.0)
    Traceback (most recent call last):
    ...
    ValueError: Descent.lr: -1.0 is out of range, it must be ≥ 0
    """
    return Field(default, False, ge, gt, le, lt, None, kw_only, optional=optional or default is None)


@public
def static(
    *,
    default: Any = MISSING,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    kw_only: bool = False,
    convert: Callable[[str, Any], Any] | None = None,
) -> Any:
    """Declare a static field: it chooses a formula or a first value, and cannot change from step to step.

    Annotate it ``bool``, ``int``, ``int | None``, ``float``, ``Literal[...]`` or ``Callable[...]``; the annotation is
    enforced. A field that holds a rule, annotated ``Rule`` or ``Rule | None``, is for ``_route``; ``update``
    does not see it.

    Parameters
    ----------
    default
        Value when none is given; without one the field is required.
    ge, gt, le
        Bounds of a number: at least, more than, at most.
    kw_only
        Whether it must be given by name.
    convert
        For values of another kind, such as tables: ``convert(where, value)`` returns what is kept, which must be
        hashable, or raises a ValueError or TypeError that begins with ``where``. The default goes through it too, and
        the annotation is free.

    Examples
    --------
    >>> import xopt
    >>> from xopt.rule import Hyper
    >>> class Descent(xopt.Rule):
    ...     lr: Hyper = xopt.hyper(default=0.1, ge=0)
    ...     signs: bool = xopt.static(default=False, kw_only=True)
    ...
    ...     @staticmethod
    ...     def update(h, xp, p, g):
    ...         return -h.lr * (xp.sign(g) if h.signs else g)
    >>> Descent(signs=1)
    Traceback (most recent call last):
    ...
    ValueError: Descent.signs: 1, but it must be one of True, False
    """
    return Field(default, True, ge, gt, le, None, None, kw_only, convert=convert)


def check(where: str, field: Field, value: Any) -> Any:
    """Return the value of a field as it is kept, or say what is wrong with it."""
    if field.static:
        return _check_static(where, field, value)
    if value is None:
        if not field.optional:
            raise TypeError(f"{where}: None, but it must be a number or a schedule")
        return None
    if isinstance(value, type):
        raise TypeError(f"{where}: the class {value.__name__}, but it must be a number or a schedule")
    return value if callable(value) else number(where, field, value, "")


def _check_static(where: str, field: Field, value: Any) -> Any:
    if field.convert is not None:
        return field.convert(where, value)
    if field.among is not None:
        if not any(value is x or (type(value) is type(x) and value == x) for x in field.among):
            raise ValueError(f"{where}: {value!r}, but it must be one of {', '.join(map(repr, field.among))}")
        return value
    if field.optional and value is None:
        return None
    if field.function:
        if not callable(value) or isinstance(value, type):
            raise TypeError(f"{where}: {value!r}, but it must be a function")
        return value
    if field.kinds is not None:
        if not isinstance(value, field.kinds):
            words = " or ".join("None" if kind is type(None) else kind.__name__ for kind in field.kinds)
            raise TypeError(f"{where}: {value!r}, but it must be a {words}")
        return value
    if field.integer and type(value) is not int:
        raise TypeError(f"{where}: {value!r}, but it must be an int")
    found = number(where, field, value, "")
    return value if field.integer else found


def number(where: str, field: Field, value: Any, why: str, library: Library | None = None, read: bool = False) -> Any:
    """Return a Python float within the bounds of a field.

    A 0-d array of ``library`` stays as it is, because nobody may read it, unless ``read`` says that it is at hand.
    """
    note = f" ({why})" if why else ""
    if isinstance(value, bool | np.bool_ | str) or not (hasattr(value, "dtype") or isinstance(value, int | float)):
        raise TypeError(f"{where}: {value!r} is a {type(value).__name__}, but it must be a number{note}")
    if hasattr(value, "dtype") and not isinstance(value, np.generic):
        kind = str(value.dtype)
        if tuple(value.shape) != () or not ("float" in kind or "int" in kind):
            raise TypeError(
                f"{where}: an array of shape {tuple(value.shape)} and dtype {kind}, but it must be a number{note}"
            )
        value = _arrays.detached(value)  # a learning rate that is itself learned
        if not isinstance(value, np.ndarray) and not read:
            if library and _arrays.library(value) != library:
                raise TypeError(
                    f"{where}: an array of {_arrays.library(value)}, but the parameters are of {library}{note}"
                )
            return value
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"{where}: {value!r} is not a real number{note}") from error
    if not math.isfinite(found):
        raise ValueError(f"{where}: {value!r}, but it must be finite{note}")
    if not field.holds(found):
        raise ValueError(f"{where}: {found!r} is out of range, it must be {field.limits()}{note}")
    return found


_PLAIN = {"bool": bool, "int": int, "float": float}


def declared(cls: type, name: str, hint: Any) -> Field:
    value = vars(cls).get(name, MISSING)
    field = value if isinstance(value, Field) else Field(value, True)
    if field.convert is not None and field.default is not MISSING:
        return field._replace(default=field.convert(f"{cls.__name__}.{name}", field.default))
    if not field.static or field.convert is not None:
        return field
    if isinstance(hint, str):
        # the annotations of this class, not of a caller
        hint = _PLAIN[hint] if hint in _PLAIN else eval(hint, vars(sys.modules[cls.__module__]))
    if get_origin(hint) is Literal:
        return field._replace(among=get_args(hint))
    if hint is bool:
        return field._replace(among=(True, False))
    if hint is float or hint is int:
        return field._replace(integer=hint is int)
    if hint == int | None:
        return field._replace(integer=True, optional=True)
    if get_origin(hint) is Callable:
        return field._replace(function=True)
    kinds = get_args(hint) or (hint,)
    if all(kind is type(None) or hasattr(kind, "_fields") for kind in kinds):
        return field._replace(kinds=kinds)
    raise TypeError(
        f"{cls.__name__}.{name}: a static field must be annotated bool, int, float or Literal, or int | None, Callable "
        f"or Rule, not {hint}"
    )


def signature(fields: dict[str, Field]) -> inspect.Signature:
    """Return the signature of a class with these fields, for help() and the docs."""
    made = []
    for name, f in sorted(fields.items(), key=lambda x: x[1].kw_only):
        kind = inspect.Parameter.KEYWORD_ONLY if f.kw_only else inspect.Parameter.POSITIONAL_OR_KEYWORD
        default = inspect.Parameter.empty if f.default is MISSING else f.default
        made.append(inspect.Parameter(name, kind, default=default))
    return inspect.Signature(made)


def check_moments(name: str, moments: object, slots: Mapping[str, float | str], fields: Mapping[str, Field]) -> None:
    """Refuse what is no state of a rule, or could not be kept in 8 bits."""
    if not isinstance(moments, Mapping):
        raise TypeError(f"{name}.moments: {moments!r}, but it must be a dict, like {{'m': 'signed'}}")
    for n, kind in moments.items():
        if n not in slots:
            raise TypeError(f"{name}.moments: {n!r} is no state array of update; it has {', '.join(slots) or 'none'}")
        if kind not in CODES:
            raise TypeError(f"{name}.moments: {n!r} is {kind!r}, but it must be 'signed' or 'square'")
        value = slots[n]
        field = fields.get(value) if isinstance(value, str) else None  # else a method, that makes zeros
        if value == "p" or (field and not (field.static and type(field.default) is float)):
            raise TypeError(f"{name}.moments: {n!r} begins with {value!r}, but it must begin with a number")
