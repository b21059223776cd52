"""Proximal solvers for inverse problems: convex functions with a kink or constraints, f(K·x) + g(x).

`fista` where f is smooth, `pdhg` and `admm` where both have a prox; functions with a prox; finite differences.
"""

from xopt.proximal._admm import admm
from xopt.proximal._fista import fista
from xopt.proximal._pdhg import pdhg
from xopt.proximal._penalties import group_l1, l1, nuclear, squared, zero
from xopt.proximal._prox import Prox, separable
from xopt.proximal._sets import box, simplex
from xopt.proximal._tv import divergence, gradient, tv

__all__ = [
    "Prox",
    "admm",
    "box",
    "divergence",
    "fista",
    "gradient",
    "group_l1",
    "l1",
    "nuclear",
    "pdhg",
    "separable",
    "simplex",
    "squared",
    "tv",
    "zero",
]
