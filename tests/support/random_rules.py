"""Rules made of an update function, and of random operations."""

from __future__ import annotations

import random
from typing import Any

from xopt.rule import Rule, abs2, hyper


def make(update: Any, **members: Any) -> Any:
    """Make a rule of an update function."""
    body = {
        "__annotations__": {"lr": "Hyper"},
        "lr": hyper(default=0.1, ge=0),
        "__module__": __name__,
        "update": staticmethod(update),
        **members,
    }
    return type("Mine", (Rule,), body)()


OPS = [
    "add",
    "subtract",
    "multiply",
    "divide",
    "maximum",
    "minimum",
    "negative",
    "abs",
    "sqrt",
    "where",
    "scalar",
    "slot",
]


def random_rule(seed: int, complex: bool) -> Any:
    """Make a rule of random operations whose outputs are shuffled: swapped state, aliases, values used late."""
    plan = random.Random(seed)
    count = plan.randint(0, 4)
    recipe = [(plan.choice(OPS), plan.random(), plan.random(), plan.random()) for _ in range(plan.randint(1, 25))]
    picks = [plan.random() for _ in range(count + 1)]

    def build(h: Any, xp: Any, p: Any, g: Any, *slots: Any) -> Any:
        values = [p, g, *slots]
        take = lambda x: values[int(x * len(values))]
        for op, a, b, c in recipe:
            x, y, z = take(a), take(b), take(c)
            if complex and op in ("maximum", "minimum", "where", "sqrt"):
                op = {"maximum": "add", "minimum": "multiply", "where": "real", "sqrt": "abs2"}[op]
            if op in ("add", "subtract", "multiply", "divide", "maximum", "minimum"):
                values.append(getattr(xp, op)(x, y))
            elif op in ("negative", "abs"):
                values.append(getattr(xp, op)(x))
            elif op == "sqrt":
                values.append(xp.sqrt(xp.abs(x)))
            elif op == "abs2":
                values.append(abs2(xp, x))
            elif op == "real":
                values.append(x + xp.abs(y))
            elif op == "where":
                values.append(xp.where(x < y, y, z))
            elif op == "scalar":
                values.append(h.lr * x + 0.5)
        u, *state = (take(x) for x in picks)
        return (u, *state)

    names = ["a", "b", "c", "d"][:count]
    scope: dict[str, Any] = {"build": build}
    declared = "".join(f", {n}=0.5" for n in names)
    exec(f"def update(h, xp, p, g{declared}):\n    return build(h, xp, p, g{''.join(', ' + n for n in names)})", scope)
    return make(scope["update"], inexact=True)
