"""What is called, and raised, in the middle of a run."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from typing import Any

from xopt.solvers._result import OptimizeResult


def caller(callback: Callable[..., Any]) -> Callable[[Callable[[], Any], Any], Any]:
    """Return a function that calls a callback of a user, in either form: with what makes the result so far, and x."""
    try:
        named = "intermediate_result" in inspect.signature(callback).parameters
    except ValueError:  # of a function written in C
        named = False
    return (lambda result, x: callback(intermediate_result=result())) if named else (lambda result, x: callback(x))


def called(
    callback: Callable[..., Any], point: Callable[[Any], Any], shown: Callable[[Any, Any], OptimizeResult]
) -> Callable[[Any], bool]:
    """Return a function that calls a callback of a user with a run, and says whether it ends it."""
    function = caller(callback)

    def call(run: Any) -> bool:
        x = point(run)
        try:
            return _is_true(function(lambda: shown(run, x), x))
        except StopIteration:
            return True

    return call


def _is_true(found: Any) -> bool:
    """Whether a callback returned True, of any library; it may return anything else, as in SciPy."""
    return found is True or ("bool" in str(getattr(found, "dtype", "")) and tuple(found.shape) == () and bool(found))


def progress_bar(wanted: bool, total: float | None = None) -> AbstractContextManager[Any]:
    """Return a bar of tqdm, to be shown while a block runs; of None where none is wanted."""
    bar: Any = importlib.import_module("tqdm.auto").tqdm(total=total) if wanted else None
    return nullcontext() if bar is None else closing(bar)  # a generator would write into exceptions that pass it


def counted(
    bar: Any, call: Callable[[Any], bool] | None, value: Callable[[Any], dict[str, float]]
) -> Callable[[Any], bool] | None:
    """Return what to call with a run after each iteration: what a user wants to be called, and what moves a bar."""
    if bar is None:
        return call

    def both(run: Any) -> bool:
        bar.update()
        bar.set_postfix({name: f"{x:.6g}" for name, x in value(run).items()})
        return call is not None and call(run)

    return both


def annotate(error: BaseException, result: Any) -> None:
    """Give an exception what was reached, if it can be given anything; nothing else is raised."""
    with suppress(Exception):
        error.intermediate_result = result  # type: ignore[attr-defined]
        error.add_note(f"after {result['nfev']} evaluations; this exception's intermediate_result has what was reached")
