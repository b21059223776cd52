"""Steps of a trust region: p with min ‖R·p - q‖ where ‖D·p‖ ≤ Δ, for all lanes at once."""

from __future__ import annotations

from typing import Any, NamedTuple

from xopt.solvers.fits._linear import Array, Linear, norm, times, transposed

_CLOSE = 0.1
"""How far ‖D·p‖ may be from Δ, as a part of it."""
_TINY = 1e-30


class Model(NamedTuple):
    """The linear model of the residuals, and where it is believed."""

    r: Array
    q: Array
    scale: Array
    """The diagonal of D."""
    radius: Array
    par: Array
    """λ of the last step, where the next search for it begins."""


def levenberg(linear: Linear, m: Model) -> tuple[Array, Array]:
    """Return p and λ with (RᵀR + λD²)·p = Rᵀq and ‖D·p‖ within a tenth of Δ, or λ = 0 (Moré 1978).

    Newton's method for 1/‖D·p(λ)‖ = 1/Δ, between bounds; where it may not look at numbers, all lanes take all rounds.
    """
    xp, (r, q, scale, radius, par) = linear.xp, regular(linear, m)
    zero = xp.zeros_like(radius)
    p = linear.back(r, q)
    size = norm(xp, scale * p)
    over = size - radius
    inside = (over <= _CLOSE * radius) & xp.isfinite(size)
    if linear.host and bool(xp.all(inside)):
        return p, zero
    if linear.host and radius.ndim and 2 * int(xp.count_nonzero(inside)) > radius.shape[0]:
        rows = xp.nonzero(~inside)[0]  # most steps are short enough: search for the damping of the others alone
        p[..., rows], zero[rows] = levenberg(linear, Model(*(x[..., rows] for x in (r, q, scale, radius, par))))
        return p, zero
    slope = norm(xp, linear.forward(r, scale * scale * p / _safe(xp, size)))
    low = xp.where(xp.isfinite(size) & (slope > 0), over / _safe(xp, radius * slope * slope), zero)
    low = xp.where(xp.isfinite(low) & (low > 0), low, zero)
    high = norm(xp, transposed(xp, r, q) / scale) / radius
    high = xp.where(high > low, high, low + _TINY)
    par = xp.where(par > low, par, low)
    par = xp.where(par < high, par, high)
    par = xp.where(par > 0, par, high * radius / _safe(xp, size))
    done, used = inside, xp.where(inside, zero, par)
    for _ in range(linear.rounds):
        if linear.host and bool(xp.all(done)):
            break
        s, z = linear.augmented(r, q, xp.sqrt(par) * scale)
        found = linear.back(s, z)
        p, used = xp.where(done, p, found), xp.where(done, used, par)
        size = norm(xp, scale * found)
        over = size - radius
        done = done | (xp.abs(over) <= _CLOSE * radius)
        low = xp.where(over > 0, xp.where(par > low, par, low), low)
        high = xp.where(over < 0, xp.where(par < high, par, high), high)
        slope = norm(xp, linear.forward(s, scale * scale * found / _safe(xp, size)))
        new = par + over / _safe(xp, radius * slope * slope)
        between = (new > low) & (new < high)
        par = xp.where(between, new, xp.sqrt(_positive(xp, low, 1e-3 * high) * high))
    return p, used


def dogleg(linear: Linear, m: Model) -> tuple[Array, Array]:
    """Return where the path by the minimum along -D⁻²g to the model's leaves ‖D·p‖ ≤ Δ; 0 if it does not, else 1."""
    xp, (r, q, scale, radius, _) = linear.xp, regular(linear, m)
    zero = xp.zeros_like(radius)
    newton = scale * linear.back(r, q)
    g = transposed(xp, r, q) / scale
    g2, bend = xp.sum(g * g, axis=0), norm(xp, times(xp, r, g / scale))
    cauchy = (g2 / _safe(xp, bend * bend)) * g
    far, near = norm(xp, newton), norm(xp, cauchy)
    far = xp.where(xp.isfinite(far), far, zero)
    way = newton - cauchy
    a, b, c = xp.sum(way * way, axis=0), xp.sum(way * cauchy, axis=0), near * near - radius * radius
    root = xp.sqrt(_positive(xp, b * b - a * c, zero))
    t = xp.where(b > 0, -c / _safe(xp, b + root), (root - b) / _safe(xp, a))
    t = xp.where(t < 1, _positive(xp, t, zero), zero + 1)
    between = cauchy + t * way
    along = g * (radius / _safe(xp, xp.sqrt(g2)))
    p = xp.where(near >= radius, along, between)
    inside = xp.isfinite(norm(xp, newton)) & (far <= radius)
    return xp.where(inside, newton, p) / scale, xp.where(inside, zero, zero + 1)


def regular(linear: Linear, m: Model) -> Model:
    """Return a model without pivots that are 0 but for rounding: parameters whose columns depend on others stay put."""
    xp, r = linear.xp, m.r
    weak = xp.abs(diagonal(xp, r)) <= r.shape[0] * float(xp.finfo(r.dtype).eps) * norm(xp, r)
    if not bool(xp.any(weak)):
        return m
    r, q = linear.augmented(r, m.q, xp.where(weak, m.scale, xp.zeros_like(m.scale)))
    return m._replace(r=r, q=q)


def diagonal(xp: Any, r: Array) -> Array:
    """Return the pivots of a triangle."""
    return xp.stack([r[j, j, ...] for j in range(r.shape[0])])


def _safe(xp: Any, x: Array) -> Array:
    return xp.where(x != 0, x, xp.full_like(x, _TINY))


def _positive(xp: Any, x: Array, otherwise: Array) -> Array:
    return xp.where(x > 0, x, otherwise)
