"""How compositions are drawn. What is simplest comes first everywhere, because failures shrink to that."""

from __future__ import annotations

import math
import re
import warnings
from typing import Any

import catalog
import numpy as np
from catalog.links import LINKS
from hypothesis import strategies as st

import xopt
from fuzz import cases
from fuzz.cases import Array, Case, Estimate, Evaluate, Leaf, Perturb, Resume, Set, Step, made
from xopt.rule._presets import PRESETS

SHAPES = [(3,), (3, 2), (2, 3), (), (1,), (0,), (2, 1, 2), (0, 3)]
DTYPES = ["float32", "float64", "complex64", "float16", "bfloat16", "complex128"]
KEYS = ["w", "b", "a.b", "c/d", "x y", "0", "é"]
ROWS = sorted(catalog.ROWS, key=lambda x: (not x.rule.elementwise, x.rule is not xopt.SGD, x.rule is not xopt.Adam))

SCHEDULES = [
    "S.warmup({b}, steps=3, start={a})",
    "S.polynomial({a}, end={b}, steps=4)",
    "S.cosine({a}, steps=4, end={b})",
    "S.piecewise([{a}, {b}], [2])",
    "S.step({a}, every=2, factor=0.5)",
    "S.multi_step({a}, boundaries=[1, 3], factor=0.5)",
    "S.exponential({a}, rate=0.9)",
    "S.inverse_time({a}, rate=0.5)",
    "S.rex({a}, steps=5, end={b})",
    "S.warmup_cosine({a}, warmup=2, steps=6, end={b}, start={b})",
    "S.wsd({a}, warmup=1, steps=6, cooldown=3, end={b}, start={b}, shape='1-sqrt')",
    "S.one_cycle({a}, steps=6, start={b}, end={b})",
    "S.inverse_sqrt({a}, warmup=2, start={b})",
    "S.noam(64, warmup=3, factor={a})",
    "S.cosine_restarts({a}, steps=2, end={b}, growth=2)",
    "S.cyclic({a}, peak={b}, up=2, shape='cosine')",
    "S.join([S.constant({a}), S.warmup({b}, steps=2, start={a})], [2])",
    "S.delay(S.exponential({a}, rate=0.5), steps=2)",
    "S.staircase(S.polynomial({a}, end={b}, steps=4), every=2)",
    "S.clip(S.exponential({a}, rate=0.5), low={b}, high={a})",
    "0.5 * S.constant({a}) + {b} * S.warmup(0.5, steps=2)",
    "lambda t: {a} / t",
    "lambda t: {a}",
]

FRONT = [
    ("xopt.ClipByGlobalNorm", [{"max_norm": 1.0}, {"max_norm": 0.1}]),
    ("xopt.ClipByNorm", [{"max_norm": 1.0}]),
    ("xopt.ClipByValue", [{"limit": 0.5}]),
    ("xopt.AdaptiveGradientClip", [{"limit": 0.3}, {"limit": 0.3, "units": "last"}]),
    ("xopt.Centralize", [{}, {"units": "last"}]),
    ("xopt.AddNoise", [{}, {"eta": 0.1, "gamma": 1.0, "seed": 3}]),
]
BEHIND = [
    *FRONT[:3],
    ("xopt.ReduceOnPlateau", [{"patience": 0}, {"patience": 0, "factor": 0.5, "threshold_mode": "abs"},
                              {"patience": 1, "cooldown": 1, "mode": "max", "accumulation_size": 2}]),
]  # fmt: skip
LINKS_AT = {
    place: [(f"xopt.{link.link.__name__}", link.options) for link in LINKS if link.place == place]
    for place in ("front", "behind", "after")
}
LINKS_AT["front"] = FRONT + LINKS_AT["front"]
LINKS_AT["behind"] = BEHIND + LINKS_AT["behind"]


PENALTIES = ("xopt.L1", "xopt.L2")
"""Components that stand behind SGD alone."""
REAL = {f"xopt.{link.link.__name__}" for link in LINKS if not link.complex}
"""Components that refuse complex parameters: few of these are drawn for them."""


def source(value: Any) -> str:
    """Return a value as Python."""
    return value.__name__ if callable(value) and not isinstance(value, xopt.schedules.Schedule) else repr(value)


def call(name: str, options: dict[str, Any]) -> str:
    return f"{name}({', '.join(f'{n}={x if isinstance(x, Text) else source(x)}' for n, x in options.items())})"


class Text(str):
    """What is Python already."""

    __slots__ = ()


def within(field: Any, x: Any) -> bool:
    """Whether a number is in the range of a field."""
    return (
        isinstance(x, int | float)
        and math.isfinite(x)
        and not (field.ge is not None and x < field.ge)
        and not (field.gt is not None and x <= field.gt)
        and not (field.le is not None and x > field.le)
        and not (field.lt is not None and x >= field.lt)
    )


@st.composite
def values(draw: Any, fits: Any, around: float, arrays: bool = False) -> Any:
    """Draw a value of a hyperparameter near another one: a number, a schedule as text, or an array."""
    near = [x for x in (around, 0.5 * around, 2 * around, 0.25, 0.0) if fits(x)] or [around]
    a, b = draw(st.sampled_from(near)), draw(st.sampled_from(near))
    how = draw(st.sampled_from(["number", "number", "schedule", "array"] if arrays else ["number", "schedule"]))
    if how == "array":
        return Array(a)
    text = draw(st.sampled_from(SCHEDULES)).format(a=a, b=b) if how == "schedule" else ""
    try:
        follows = made(text) if text else None
        if follows and all(fits(follows(t)) for t in range(1, 14)):
            return Text(text)
    except (ValueError, ZeroDivisionError):  # of numbers that this schedule does not take
        pass
    return a


@st.composite
def hypers(draw: Any, kind: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Draw other values of up to two hyperparameters."""
    free = [n for n, f in kind._fields.items() if not f.static]
    found = {}
    for n in draw(st.lists(st.sampled_from(free), max_size=2, unique=True)) if free else []:
        field, around = kind._fields[n], given.get(n, kind._fields[n].default)
        if isinstance(around, int | float) and not isinstance(around, bool):
            found[n] = draw(values(lambda x, f=field: within(f, x), float(around)))
    return found


def first_that_works(*sources: str) -> str:
    """Return the first of several texts that makes something."""
    for text in sources[:-1]:
        try:
            made(text)
        except (TypeError, ValueError):
            continue
        return text
    return sources[-1]


@st.composite
def rules(draw: Any, among: Any = ROWS) -> str:
    """Draw a rule of the catalogue with its options, those that all rules have, presets and hyperparameters."""
    row = draw(st.sampled_from(among))
    name = f"xopt.{row.rule.__name__}"
    plain = {"lr": row.lr, **row.base}
    own = plain | draw(st.sampled_from([{}, *row.options]))
    extra = dict(draw(st.sampled_from([{}, {}, *catalog.COMMON, *catalog.DECAYS])))
    if draw(st.integers(0, 5)) == 5:
        extra["complex"] = "split"
    if draw(st.integers(0, 7)) == 7:
        others = [n for n, table in PRESETS.items() if row.rule.__name__ in table]
        extra |= {"like": draw(st.sampled_from(others))} if others else {}
    more = draw(hypers(row.rule, own))
    options = [own | extra | more, own | extra, own, plain]
    text = first_that_works(*(call(name, x) for x in options))
    if draw(st.integers(0, 9)) == 9:  # singular vectors of such gradients are each library's choice
        text = first_that_works(f"xopt.LowRank({text}, 1, update_every=2, projection='random')", text)
    return text


@st.composite
def predicates(draw: Any, tree: Any, k: int) -> str:
    """Draw a predicate that matches leaf ``k``, and perhaps others."""
    name = cases.names(tree)[k]
    plain = name if name and not set("*?[]") & set(name) else "**"
    found = [repr(plain), f"re.compile({'^' + re.escape(name) + '$'!r})", "lambda path, x: True"]
    if "/" in name:
        found.append(repr("**/" + name.rpartition("/")[2]))
    if len(cases.leaves(tree)[k].shape) < 2:
        found.append("xopt.no_decay_1d")
    return draw(st.sampled_from(found))


@st.composite
def links(draw: Any, place: str, tree: Any) -> str:
    """Draw a component for a place in a chain."""
    found = LINKS_AT[place]
    if any("complex" in x.dtype for x in cases.leaves(tree)) and draw(st.integers(0, 9)) < 9:
        found = [x for x in found if x[0] not in REAL]
    name, options = draw(st.sampled_from(found))
    own = draw(st.sampled_from(options))
    more = draw(hypers(getattr(xopt, name.removeprefix("xopt.")), own))
    text = first_that_works(call(name, own | more), call(name, own))
    if draw(st.integers(0, 4)) == 4:
        k = draw(st.integers(0, len(cases.leaves(tree)) - 1))
        text = f"xopt.Masked({text}, {draw(predicates(tree, k))})"
    return text


@st.composite
def chains(draw: Any, tree: Any, depth: int) -> str:
    """Draw a chain around a rule."""
    at = [st.lists(links(place, tree), max_size=2) for place in ("front", "behind", "after")]
    front, behind, after = map(draw, at)
    penalized = any(name in link for name in PENALTIES for link in after)
    rule = draw(rules(ROWS[:1]) if penalized else methods(tree, depth - 1, False))
    found = [[*front, rule, *behind, *after], [rule, *after], [rule]]
    return first_that_works(*(f"xopt.chain({', '.join(parts)})" if len(parts) > 1 else parts[0] for parts in found))


def hyperparams(text: str, tree: Any) -> dict[str, float]:
    """Return the hyperparameters that a rule has for a tree and the numbers that they are; none if it is refused."""
    try:
        params = cases.mapped(lambda k, x: np.zeros(x.shape, "complex64" if "complex" in x.dtype else "float32"), tree)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = xopt.Optimizer(params, made(text), runner="eager").hyperparams()
    except (TypeError, ValueError):
        return {}
    now = {n: x(1) if callable(x) else x for n, x in found.items()}
    return {n: float(x) for n, x in now.items() if isinstance(x, int | float)}


def fits(text: str, name: str) -> Any:
    """Return whether a rule takes a value of a hyperparameter, as a function of the value."""
    rule = made(text)

    def works(x: Any) -> bool:
        try:
            rule._with({name: x})
        except (TypeError, ValueError):
            return False
        return isinstance(x, int | float) and math.isfinite(x)

    return works


@st.composite
def groups(draw: Any, tree: Any, depth: int) -> str:
    """Draw Groups: other hyperparameters, other rules, Freeze."""
    inner = draw(methods(tree, depth - 1, True))
    count = len(cases.leaves(tree))
    found, now = [], None
    for k in draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=2, unique=True)):
        how = draw(st.sampled_from(["numbers", "numbers", "rule", "freeze"]))
        what = "xopt.Freeze"
        if how == "numbers":
            now = hyperparams(inner, tree) if now is None else now
            named = {}
            for n in draw(st.lists(st.sampled_from([*now]), min_size=1, max_size=2, unique=True)) if now else []:
                scaled = draw(st.booleans())
                value = (
                    f"xopt.scaled({draw(st.sampled_from([0.5, 0.25]))})"
                    if scaled
                    else draw(values(fits(inner, n), now[n]))
                )
                named[n] = value
            what = "{" + ", ".join(f"{n!r}: {x}" for n, x in named.items()) + "}"
        if how == "rule":
            what = draw(methods(tree, depth - 1, False))
        found.append(f"({draw(predicates(tree, k))}, {what})")
    texts = [
        f"xopt.Groups({inner}, {', '.join(found)}, unmatched='ignore')",
        f"xopt.Groups({inner}, {found[0]}, unmatched='ignore')",
    ]
    return first_that_works(*texts, inner)


@st.composite
def methods(draw: Any, tree: Any, depth: int, chained: bool = True) -> str:
    """Draw a rule, a chain or Groups."""
    hows = ["rule", "groups", "rule", "groups", *(["chain"] if chained else [])]
    how = draw(st.sampled_from(hows)) if depth else "rule"
    if how == "chain":
        return draw(chains(tree, depth))
    return draw(groups(tree, depth)) if how == "groups" else draw(rules())


KEEPING = [
    {"rounding": "kahan"},
    {"rounding": "stochastic"},
    {"rounding": "stochastic", "seed": 7},
    {"master_weights": True},
    {"state_dtype": "bfloat16"},
    {"state_dtype": "float16"},
    {"state_dtype": "float32"},
    {"state_dtype": "int8"},
    {"rounding": "kahan", "state_dtype": "bfloat16"},
    {"rounding": "stochastic", "state_dtype": "int8"},
    {"master_weights": True, "state_dtype": "float16"},
]
AROUND = [
    "xopt.LossScale({})",
    "xopt.LossScale({}, initial=4.0, every=2)",
    "xopt.LossScale({}, initial=8.0, growth=4.0, backoff=0.25, every=1, least=2.0, most=64.0)",
    "xopt.Accumulate({}, every=2)",
    "xopt.Accumulate({}, every=3, total='sum')",
    "xopt.Guard({}, 'skip')",
    "xopt.Guard({}, 'zero')",
    "xopt.Guard({}, 'raise')",
    "xopt.Guard({}, 'propagate')",
    *(call("xopt.Precision", {"rule": Text("{}"), **x}).replace("rule=", "") for x in KEEPING),
]


@st.composite
def wrapped(draw: Any, tree: Any) -> str:
    """Draw a rule with others around it."""
    text = draw(st.one_of(chains(tree, 2), methods(tree, 2)))
    for around in draw(st.lists(st.sampled_from(AROUND), max_size=3)):
        text = first_that_works(around.replace("{}", text), text)
    return text


@st.composite
def trees(draw: Any) -> Any:
    """Draw a tree of parameters."""
    count = draw(st.integers(1, 4))
    kinds = draw(st.sampled_from([*DTYPES, "mixed"]))
    layouts = draw(st.sampled_from([["C"], ["C"], ["C"], list(cases.LAYOUTS)]))
    found = [
        Leaf(
            draw(st.sampled_from(SHAPES)),
            draw(st.sampled_from(DTYPES)) if kinds == "mixed" else kinds,
            draw(st.sampled_from(layouts)),
        )
        for _ in range(count)
    ]
    keys = KEYS if draw(st.integers(0, 3)) == 0 else draw(st.permutations(KEYS))
    how = draw(st.sampled_from(["dict", "list", "nest", "tuple", "one"]))
    if how == "one":
        return found[0]
    if how == "nest":
        return {keys[0]: found[0], keys[1]: [{keys[2]: x} if i % 2 else x for i, x in enumerate(found[1:])]}
    return dict(zip(keys, found, strict=False)) if how == "dict" else found if how == "list" else tuple(found)


@st.composite
def steps(draw: Any, text: str, now: dict[str, float], count: int, asks: bool) -> Step:
    """Draw a step."""
    how = draw(st.sampled_from(["normal", "normal", "normal", "same", "each"]))
    grads: Any = "normal"
    if how == "same":
        grads = draw(st.sampled_from(cases.KINDS))
    if how == "each":
        grads = tuple(draw(st.sampled_from(("normal", *cases.KINDS))) for _ in range(count))
    overrides = {}
    if now and draw(st.integers(0, 4)) == 4:
        n = draw(st.sampled_from([*now]))
        overrides[n] = draw(values(fits(text, n), now[n], True))
    value = draw(st.sampled_from([1.0, 0.5, 2.0, -1.0])) if asks else None
    layout = draw(st.sampled_from(["C", "C", "C", *cases.LAYOUTS]))
    return Step(grads, value, {n: str(x) if isinstance(x, Text) else x for n, x in overrides.items()}, layout)


@st.composite
def compositions(draw: Any) -> Case:
    """Draw a composition."""
    tree = draw(trees())
    text = draw(wrapped(tree))
    keeping = draw(st.sampled_from(KEEPING)) if "Precision" not in text and draw(st.integers(0, 5)) == 5 else {}
    now, count = hyperparams(text, tree), len(cases.leaves(tree))
    one = steps(text, now, count, "ReduceOnPlateau" in text)
    events: list[Any] = []
    for _ in range(draw(st.integers(1, 5))):
        asked = ["estimate"] * 4 if "Sophia" in text else []
        what = draw(st.sampled_from(["step"] * 8 + ["set", "resume", "evaluate", "perturb"] + asked))
        if what == "set" and now:
            n = draw(st.sampled_from([*now]))
            value = draw(values(fits(text, n), now[n]))
            events.append(Set({n: str(value) if isinstance(value, Text) else value}))
        elif what == "resume":
            events.append(Resume(draw(st.sampled_from(["dict", "file"]))))
        elif what == "evaluate":
            events.append(Evaluate())
        elif what == "estimate":
            events.append(Estimate(draw(st.sampled_from(["normal", "normal", *cases.KINDS]))))
        elif what == "perturb":
            events.append(Perturb(draw(st.sampled_from([0.1, 1.0])), draw(st.booleans())))
        else:
            events.append(draw(one))
    return Case(tree, text, tuple(events), keeping, draw(st.integers(0, 3)), draw(st.integers(0, 4)) == 4)
