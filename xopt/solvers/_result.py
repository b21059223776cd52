"""What a run ends with."""

from __future__ import annotations

from typing import Any

from xopt._public import public


@public
class OptimizeResult(dict[str, Any]):
    """Result of `minimize`, under SciPy's names, as attributes and as keys.

    ``x`` the parameters, ``fun`` the value there, ``jac`` the gradient there, ``nit`` iterations, ``nfev`` evaluations,
    ``njev`` of the gradient, ``status`` (0 converged, 1 a limit was reached, 2 no better point was found, or the value
    is infinite or NaN, 3 interrupted, 99 stopped by the callback), ``success`` (status 0), ``message``. Of ``"lbfgs"``
    and ``"lbfgs-b"`` without a preconditioner also ``hess_inv``, an :class:`InverseHessian`; of ``"bfgs"`` it is a
    matrix (n, n) of the library of x, where n numbers are those of x in the order of its leaves; of a complex leaf
    first all real parts. Of methods that use the Hessian ``nhev``, how often it was computed, or if it is no matrix
    multiplied; of trust regions that converged ``hess``, the matrix at x, where they have one.

    Examples
    --------
    >>> import xopt
    >>> result = xopt.OptimizeResult(fun=0.5, nit=3)
    >>> result.fun, result["nit"]
    (0.5, 3)
    """

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"{name}: there is {', '.join(map(str, self))}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        if name not in self:
            raise AttributeError(f"{name}: there is {', '.join(map(str, self))}")
        del self[name]

    def __dir__(self) -> list[str]:
        return [*map(str, self)]

    def __repr__(self) -> str:
        width = max((len(str(name)) for name in self), default=0)
        lines = (
            f"{name!s:>{width}}: " + repr(value).replace("\n", "\n" + " " * (width + 2)) for name, value in self.items()
        )
        return "\n".join(lines) or f"{type(self).__name__}()"
