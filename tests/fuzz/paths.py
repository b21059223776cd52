"""The paths that a composition is run on: a library, a runner, and a form (in place, pure, under jit)."""

from __future__ import annotations

import functools
import importlib
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path as File
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import optree
from conftest import MODULES, available

import xopt
from fuzz import cases
from fuzz.cases import Array, Case, Estimate, Evaluate, Leaf, Perturb, Resume, Set, Step
from xopt._engine.program import quantize as _quantize
from xopt._engine.runners.tiled.runner import Tiled

RUNNERS = {"tiles": Tiled(4, 2)}
"""Runners that have no name: tiles of four elements, on two threads."""

QUIET = [
    (RuntimeWarning, "", "dask"),  # of NumPy, which computes at last, where nobody can say that it is meant
    (UserWarning, "Casting complex values to real discards the imaginary part", "torch"),
]
"""Warnings that are the library's own affair: kind, text, library."""


class Path(NamedTuple):
    """One way to take the steps of a composition."""

    library: str
    device: str = ""
    runner: str | None = None
    form: str = "pure"
    """``"pure"``: init, apply, updates. ``"place"``: Optimizer. ``"jit"``: apply under ``jax.jit``. ``"ranks"``:
    Optimizers of several ranks."""
    rows: bool = False
    """Whether gradients are given by rows, all of them in another order; lazy, where that is not refused."""

    @property
    def name(self) -> str:
        return "-".join(x for x in (self.library, self.device, self.runner, self.form, "rows" * self.rows) if x)

    @property
    def in_place(self) -> bool:
        """Whether it is that of optimizers."""
        return self.form in ("place", "ranks")

    @property
    def family(self) -> str:
        """What differences are grouped by."""
        form = self.form if self.form in ("jit", "ranks") else ""
        return "-".join(x for x in (self.library, self.runner, form, "rows" * self.rows) if x)


REFERENCE = Path("numpy", "", "eager", "pure")


@functools.cache
def _devices(library: str) -> list[str]:
    if library != "strict":
        return [""]
    info = importlib.import_module("array_api_strict").__array_namespace_info__()
    return [str(d).split("'")[1] for d in info.devices()]


def paths(library: str) -> list[Path]:
    """Return the paths of a library, of the compiled runner, or all of several ranks."""
    if library == "numpy":
        forms = [("eager", "place"), ("tiled", "pure"), ("tiled", "place"), ("tiles", "pure"), ("tiles", "place")]
        forms += [("eager", "ranks"), ("tiled", "ranks")]
        return [*(Path("numpy", "", *x) for x in forms), Path("numpy", "", "tiled", "place", rows=True)]
    if library == "llvm":
        tensors = [Path("torch", "", "llvm", "ranks")] if available("torch") else []
        return [*(Path("numpy", "", "llvm", form) for form in ("pure", "place", "ranks")), *tensors]
    if library == "torch":
        forms = [(runner, form) for runner in ("eager", "tiled") for form in ("pure", "place")]
        found = [Path("torch", "", *x) for x in [*forms, ("eager", "ranks"), ("tiled", "ranks")]]
        return [*found, Path("torch", "", "eager", "pure", rows=True)]
    if library == "jax":
        return [Path("jax", "", None, form) for form in ("jit", "place", "pure")]
    if library == "ranks":
        return [x for name in ("numpy", "llvm", "torch") if available(name) for x in paths(name) if x.form == "ranks"]
    if library == "cupy":
        return [Path("cupy", "", runner, form) for runner in ("eager", "cuda") for form in ("pure", "place")]
    return [Path(library, device, None, form) for device in _devices(library) for form in ("pure", "place")]


def libraries() -> list[str]:
    """Return what is installed here."""
    return [name for name in ("numpy", "llvm", "torch", "strict", "jax", "dask", "cupy") if available(name)]


def laid(x: Any, layout: str) -> Any:
    """Return NumPy numbers with another order in memory."""
    if x.ndim == 0 or layout in ("C", "read-only"):
        made = x.copy()
    elif layout == "F":
        made = np.asfortranarray(x)
    elif layout == "reversed":
        made = x[::-1].copy()[::-1]
    elif layout == "strided":
        wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)
        wide[..., ::2] = x
        made = wide[..., ::2]
    else:
        made = np.broadcast_to(x[:1].copy(), x.shape)
    if layout == "read-only":
        made.flags.writeable = False
    return made


def array(path: Path, x: Any, layout: str = "C") -> Any:
    """Make an array of a library of NumPy's numbers."""
    dtype = x.dtype.name
    if path.library == "numpy":
        return laid(x, layout)
    module = importlib.import_module(MODULES.get(path.library, path.library))
    if path.library == "torch":
        host = laid(
            np.asarray(x, "float32") if dtype == "bfloat16" else x,
            "C" if layout in ("reversed", "read-only") else layout,
        )
        if layout == "broadcast" and x.ndim:
            made = module.from_numpy(host[:1].copy()).to(getattr(module, dtype))
            return made.expand(x.shape)
        return module.from_numpy(host).to(getattr(module, dtype))
    x = laid(x, "broadcast").copy() if layout == "broadcast" else x
    if path.library == "jax":
        return module.numpy.asarray(x)
    if path.library == "dask":
        return importlib.import_module("dask.array").from_array(x.copy())
    if path.library == "cupy":
        return module.asarray(x)
    return module.asarray(x.copy(), device=module.Device(path.device))


def host(path: Path, x: Any) -> Any:
    """Bring an array back, in its dtype."""
    if x is None or isinstance(x, bool | int | float):
        return x
    if path.library == "torch":
        x = x.detach().cpu() if hasattr(x, "detach") else x
        if str(getattr(x, "dtype", "")) == "torch.bfloat16":
            return x.float().numpy().astype(ml_dtypes.bfloat16)
        x = x.numpy() if hasattr(x, "numpy") else x
    if path.library == "dask" and hasattr(x, "compute"):
        x = x.compute()
    if path.library == "cupy" and hasattr(x, "get"):
        x = x.get()
    if path.library == "strict" and not isinstance(x, np.ndarray | np.generic):
        x = np.from_dlpack(x)
    return np.array(x)


class Refusal(NamedTuple):
    """What was raised."""

    kind: str
    text: str
    where: str
    """The last function of the package that it came through."""


class Record(NamedTuple):
    """What is there after an event."""

    refusal: Refusal | None
    found: dict[str, Any]
    """Arrays by name, on the host."""
    broken: str = ""
    """What was written that should not have been."""


def refused(error: BaseException) -> Refusal:
    """Say what an exception is."""
    where, trace = "", error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if "/xopt/" in code.co_filename:
            where = f"{File(code.co_filename).name}:{code.co_name}"
        trace = trace.tb_next
    return Refusal(type(error).__name__, str(error), where)


@contextmanager
def quietly(path: Path) -> Iterator[None]:
    """Make errors of warnings, but for those that are the library's own affair; keep small leaves in 8 bits too."""
    least = _quantize.LEAST
    _quantize.LEAST = 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for kind, text, library in QUIET:
                if library == path.library:
                    warnings.filterwarnings("ignore", text, kind)
            yield
    finally:
        _quantize.LEAST = least


class Run:
    """A composition on a path, event by event."""

    def __init__(self, case: Case, path: Path, bump: Any = None) -> None:
        self.case, self.path, self.bump = case, path, bump
        self.leaves = cases.leaves(case.params)
        self.rule = cases.made(case.rule)
        self.runner = RUNNERS.get(path.runner or "", path.runner)
        self.sticky: dict[str, Any] = {}

    def numbers(self, where: int, k: int, leaf: Leaf, kind: str = "normal", layout: str = "C") -> Any:
        """Make a parameter or a gradient."""
        x = cases.numbers(self.case, where, k, leaf, kind)
        if x is None:
            return None
        x = laid(x, layout) if layout == "broadcast" else x
        return array(self.path, self.bump.array(x) if self.bump else x, layout)

    def start(self) -> None:
        """Make parameters and state."""
        self.params = cases.mapped(lambda k, leaf: self.numbers(0, k, leaf, layout=leaf.layout), self.case.params)
        if self.path.form == "place":
            self.opt = xopt.Optimizer(self.params, self.rule, runner=self.runner, **self.case.keeping)
        else:
            self.state = self.rule.init(self.params, **self.case.keeping)

    def hyper(self, values: dict[str, Any]) -> dict[str, Any]:
        """Make hyperparameters of what a case says."""
        dtype = "float64" if any(x.dtype in ("float64", "complex128") for x in self.leaves) else "float32"
        found = {}
        for n, x in values.items():
            if isinstance(x, Array):
                x = array(self.path, np.asarray(x.value, dtype))
            found[n] = cases.made(x) if isinstance(x, str) else x
        return found

    def step(self, event: Step, number: int) -> dict[str, Any]:
        """Take a step."""
        grads = cases.mapped(
            lambda k, leaf: self.numbers(number + 1, k, leaf, cases.kind_of(event, k), event.layout), self.case.params
        )
        overrides = self.hyper(event.overrides)
        more = {} if event.value is None else {"value": event.value}
        self.inputs = (grads, cases.mapped(lambda k, leaf: None, self.case.params))
        before = self.bits(grads)
        try:
            if not self.path.rows:
                return self.taken(grads, more, overrides)
            now = self.all_bits()
            try:
                return self.taken(self.rows(grads, lazy=True), more, overrides)
            except TypeError as error:
                if "SparseRows with lazy=True" not in str(error):
                    raise
                assert self.all_bits() == now, "what was refused has written"
            return self.taken(self.rows(grads, lazy=False), more, overrides)
        finally:
            self.touched = "" if self.bits(grads) == before else "the gradients"

    def taken(self, grads: Any, more: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
        """Take a step with these gradients; return what it gave."""
        if self.path.form == "place":
            found = self.opt.step(grads, **more, **overrides)
            assert found is self.opt.params, "step does not return the parameters"
            return {}
        out: dict[str, Any] = {}
        words = {**self.sticky, **overrides, **more}
        if self.bump:
            words = self.bump.hyper(words)
            self.params, self.state = self.bump.tree(self.params), self.bump.state(self.state)
        if self.case.updates:
            change, _ = self.call("updates", grads, words)
            out = self.tree("change", change)
        self.params, self.state = self.call("apply", grads, words)
        if self.path.library == "dask":  # else each array is computed from the first step on
            self.params, self.state = importlib.import_module("dask").persist(self.params, self.state)
        return out

    def rows(self, grads: Any, lazy: bool) -> Any:
        """Return gradients by rows."""

        def by_rows(g: Any) -> Any:
            if g is None or len(g.shape) == 0:
                return g
            order = array(self.path, np.random.default_rng(self.case.seed).permutation(g.shape[0]))
            return xopt.SparseRows(order, g[order], lazy=lazy)

        return optree.tree_map(by_rows, grads, none_is_leaf=True)

    def call(self, name: str, grads: Any, words: dict[str, Any]) -> Any:
        """Call apply or updates."""
        function = getattr(self.rule, name)
        if self.path.form != "jit":
            return function(self.params, grads, self.state, runner=self.runner, **words)
        jax = importlib.import_module("jax")
        traced = {n: x for n, x in words.items() if not callable(x)}
        rest = {n: x for n, x in words.items() if callable(x)}
        key = (name, *rest)
        jitted = self.__dict__.setdefault("jitted", {})
        if key not in jitted or rest:
            jitted[key] = jax.jit(lambda p, g, s, more: function(p, g, s, **more, **rest))
        return jitted[key](self.params, grads, self.state, traced)

    def now(self) -> Any:
        """Return parameters and state."""
        return (self.opt.params, self.opt.state) if self.path.form == "place" else (self.params, self.state)

    def tree(self, name: str, tree: Any) -> dict[str, Any]:
        """Return the arrays of a tree by name, on the host."""
        found = optree.tree_leaves(tree, none_is_leaf=True)
        return {f"{name}[{k}]": host(self.path, x) for k, x in enumerate(found)}

    def found(self) -> dict[str, Any]:
        """Return all that there is, by name."""
        params, state = self.now()
        out = self.tree("params", params) | {"step": int(state.step)}
        for n, tree in state.slots.items():
            out |= self.tree(f"slots.{n}", tree)
        return out | {f"carry.{n}": host(self.path, x) for n, x in state.carry.items()}

    def bits(self, *trees: Any) -> list[Any]:
        """Return trees as bytes."""
        found = [host(self.path, x) for x in optree.tree_leaves(trees, none_is_leaf=True)]
        return [x.tobytes() if hasattr(x, "tobytes") else x for x in found]

    def all_bits(self) -> list[Any]:
        params, state = self.now()
        return self.bits(params, dict(state.slots), dict(state.carry), state.step)

    def set(self, event: Set) -> None:
        """Change hyperparameters from here on."""
        if self.path.form == "place":
            self.opt.set(**self.hyper(event.values))
        else:
            self.rule._with(self.hyper(event.values))  # refused now, as by Optimizer
            self.sticky |= self.hyper(event.values)

    def resume(self, event: Resume) -> None:
        """Save, and go on in a new run, which begins at zeros."""
        path, case = self.path, self.case
        fresh = cases.mapped(
            lambda k, leaf: array(
                path,
                np.zeros(leaf.shape, cases.numbers(case, 0, k, leaf).dtype),
                leaf.layout if path.in_place else "C",
            ),
            case.params,
        )
        if path.form != "place":
            with tempfile.TemporaryDirectory() as folder:
                file = xopt.save_state(
                    File(folder) / "run.safetensors", self.rule, self.params, self.state, fsync=False
                )
                self.params, self.state, _ = xopt.load_state(file, self.rule, fresh)
            return
        new = xopt.Optimizer(fresh, cases.made(case.rule), runner=self.runner, **case.keeping)
        new.set(**self.sticky)
        if event.by == "dict":
            new.load_state_dict(self.opt.state_dict(only_state=False))
        else:
            with tempfile.TemporaryDirectory() as folder:
                new.load(self.opt.save(File(folder) / "run.safetensors", fsync=False))
        self.opt = new

    def estimate(self, event: Estimate, number: int) -> Any:
        """Make an estimate of the curvature: real, but of complex parameters that are split."""

        def one(k: int, leaf: Leaf) -> Any:
            x = cases.numbers(self.case, number + 1, k, leaf, event.kind)
            if x is None:
                return None
            x = x if "complex='split'" in self.case.rule else x.real
            return array(self.path, self.bump.array(x) if self.bump else x)

        return cases.mapped(one, self.case.params)

    def observe(self, event: Estimate, number: int) -> None:
        """Take an estimate of the curvature."""
        if self.path.form == "place":
            self.opt.update_curvature(self.estimate(event, number))
        else:
            rule = self.rule._with(self.sticky)
            self.state = rule.update_curvature(self.params, self.estimate(event, number), self.state)

    def do(self, event: Any, number: int) -> dict[str, Any]:
        """Do what an event says; return what it gave."""
        if isinstance(event, Step):
            return self.step(event, number)
        if isinstance(event, Estimate):
            self.observe(event, number)
        if isinstance(event, Set):
            self.set(event)
            if self.path.form == "place":
                self.sticky |= self.hyper(event.values)
        if isinstance(event, Resume):
            self.resume(event)
        if isinstance(event, Evaluate):
            params, state = self.now()
            return self.tree(
                "eval", self.opt.eval_params() if self.path.form == "place" else self.rule.eval_params(params, state)
            )
        if isinstance(event, Perturb):
            grads = cases.mapped(lambda k, leaf: self.numbers(number + 1, k, leaf), self.case.params)
            return self.tree("worst", xopt.SAM(event.rho, adaptive=event.adaptive).perturb(self.now()[0], grads))
        return {}


def run(case: Case, path: Path, *, resume: bool = True, bump: Any = None) -> list[Record]:
    """Run a composition on a path: what is there at first and after each event."""
    records: list[Record] = []
    with quietly(path):
        try:
            kind = importlib.import_module("fuzz.ranks").RanksRun if path.form == "ranks" else Run
            this = kind(case, path, bump)
            this.start()
            records.append(Record(None, this.found()))
        except Exception as error:
            return [Record(refused(error), {})]
        for number, event in enumerate(case.events):
            if isinstance(event, Resume) and not resume:
                records.append(Record(None, this.found()))
                continue
            this.touched = ""
            pure = not path.in_place
            old = this.now() if pure else None
            before = this.all_bits()
            try:
                out, refusal = this.do(event, number), None
            except Exception as error:
                out, refusal = {}, refused(error)
            broken = this.touched
            if refusal is not None and this.all_bits() != before:
                broken = "something, by what was refused"
            if pure and bump is None and this.bits(old[0], dict(old[1].slots), dict(old[1].carry)) != before[:-1]:
                broken = "what was passed to a pure function"
            records.append(Record(refusal, this.found() | out, broken))
    return records
