"""The inverse of the Hessian as L-BFGS knows it: a linear operator made of the last steps."""

from __future__ import annotations

from typing import Any

import numpy as np

from xopt._arrays.layout import Layout
from xopt._public import public
from xopt.solvers._space import Array, Space, space


@public
class InverseHessian:
    r"""Inverse of the Hessian at the end of ``"lbfgs"`` or ``"lbfgs-b"``, as a linear operator (``result.hess_inv``).

    With the last steps s and changes of the gradient y in the columns of S and Y (Byrd, Nocedal & Schnabel 1994)::

        H·v = γ·v + [S  γ·Y]·[R⁻ᵀ·(D + γ·YᵀY)·R⁻¹  -R⁻ᵀ; -R⁻¹  0]·[Sᵀ·v; γ·Yᵀ·v],   γ = sᵀy/yᵀy of the last step

    R is the upper triangle of SᵀY, D its diagonal; without any step H is the identity. It has the memory of the solver,
    2·history vectors, which ``del result.hess_inv`` gives back.

    Attributes
    ----------
    shape
        (n, n), where n is the number of real numbers in x: of complex ones, real and imaginary parts are two.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> a = np.diag([1.0, 4.0])
    >>> found = xopt.minimize(lambda x: (x @ a @ x / 2, a @ x), np.ones(2))
    >>> (found.hess_inv @ np.asarray([1.0, 4.0])).round(1)
    array([1., 1.])
    >>> found.hess_inv.todense().round(2)
    array([[1.  , 0.  ],
           [0.  , 0.25]])
    """

    def __init__(self, space: Space, memory: Array, order: list[int]) -> None:
        self._space, self._memory, self._order = space, memory, list(order)
        self.shape = (space.size, space.size)
        self._made: tuple[float, Any, Any] | None = None

    def _host(self, x: Array) -> np.ndarray[Any, Any]:
        return np.asarray(self._space.host(x), float).reshape(tuple(x.shape))

    def _tables(self) -> tuple[float, Any, Any]:
        """Return γ, R, and D + γ·YᵀY, from the products of all rows."""
        if self._made is None:
            rows, xp = self._memory, self._space.xp
            gram = self._host(xp.matmul(rows, xp.matrix_transpose(rows)))
            steps, changes = [2 * i for i in self._order], [2 * i + 1 for i in self._order]
            inner, square = gram[np.ix_(steps, changes)], gram[np.ix_(changes, changes)]
            gamma = float(inner[-1, -1] / square[-1, -1])
            self._made = gamma, np.triu(inner), np.diag(inner.diagonal()) + gamma * square
        return self._made

    def _weights(self, products: Any) -> tuple[float, Any]:
        """Return γ, and of which sum of the rows H·v - γ·v is made; from the products of all rows with v."""
        gamma, upper, middle = self._tables()
        steps, changes = [2 * i for i in self._order], [2 * i + 1 for i in self._order]
        a = np.linalg.solve(upper, products[steps])
        found = np.zeros_like(products)
        found[steps] = np.linalg.solve(upper.T, middle @ a - gamma * products[changes])
        found[changes] = -gamma * a
        return gamma, found

    def __matmul__(self, v: Any) -> Any:
        """Return H·v for a v that is like x: an array, or a tree of arrays."""
        made = self._space
        vector = made.gradient(v, "v")
        if self._order:
            gamma, weights = self._weights(self._host(made.xp.matmul(self._memory, vector)))
            vector = gamma * vector + made.xp.matmul(made.uploaded(weights), self._memory)
        return made.tree(made.copied(vector))

    matvec = dot = __matmul__

    def todense(self) -> np.ndarray[Any, Any]:
        """Return H as a matrix of NumPy, of n² numbers."""
        if not self._order:
            return np.eye(self._space.size)
        rows = self._host(self._memory)
        gamma, weights = self._weights(rows)
        found: np.ndarray[Any, Any] = gamma * np.eye(self._space.size) + weights.T @ rows
        return found

    def __repr__(self) -> str:
        return f"<InverseHessian of {self.shape[0]:,} numbers, from {len(self._order)} steps>"

    def __reduce__(self) -> tuple[Any, ...]:
        made = self._space
        return _again, (self._memory, self._order, made.tree(made.copied(self._memory[0, :])))

    def pairs(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Return steps and changes of the gradient, the oldest first, as rows of NumPy."""
        rows = self._host(self._memory)
        return rows[[2 * i for i in self._order]], rows[[2 * i + 1 for i in self._order]]


def _again(memory: Array, order: list[int], like: Any) -> InverseHessian:
    return InverseHessian(space(Layout(like)), memory, order)
