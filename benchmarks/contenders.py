"""Who is measured. A contender is a subclass of `Contender` and a line of `contenders`.

All are given the same rule, hyperparameters, parameters and gradients. What cannot do the same maths (for instance keep
float32 state for bfloat16 parameters) raises `Unavailable` with the reason, which the results keep.
"""

from __future__ import annotations

import functools
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from benchmarks import problems
from benchmarks.libraries import CuPy, Jax, Library, NumPy, Torch
from benchmarks.problems import Array, Problem, Unavailable, need

Grads = list[Array]


class Contender(ABC):
    """One way to take a step: make it from a problem, `hand` it gradients, `step`, `wait`.

    Parameters
    ----------
    problem
        The rule and the data; the contender copies the parameters.
    library
        What its arrays are.
    """

    modules: ClassVar[tuple[str, ...]] = ()
    """What a user of it imports."""
    caches: ClassVar[bool] = False
    """Whether it keeps compiled code on disk, so that a second process may start faster."""
    tolerance: float = 0.0
    """The relative error that its form of the rule has by itself."""

    def __init__(self, problem: Problem, library: Library) -> None:
        self.problem, self.library, self.rule = problem, library, problem.rule.key
        self.bytes = problem.bytes
        self.params = [library.new(p) for p in problem.params]
        self.grads: Grads = []

    def adopt(self, grads: list[Array]) -> Grads:
        """Return new arrays of its own library with these values."""
        return [self.library.new(g) for g in grads]

    def hand(self, grads: Grads) -> None:
        """Put gradients of `adopt` where the step looks for them; backpropagation would have. Not timed."""
        self.grads = grads

    @abstractmethod
    def step(self) -> None:
        """Take one step."""

    def wait(self) -> None:
        """Wait for the device."""
        self.library.wait(self.params)

    def clock(self) -> float:
        """Return the time in seconds."""
        return time.perf_counter()

    def values(self) -> list[Array]:
        """Return the parameters in float64."""
        return [self.library.read(p) for p in self.params]


def xopt_rule(rule: problems.Rule) -> Any:
    """Return a rule of xopt."""
    import xopt

    adamw = partial(xopt.AdamW, problems.LR, weight_decay=problems.DECAY)
    make: dict[str, Callable[[], Any]] = {
        "sgd": lambda: xopt.SGD(problems.LR, momentum=problems.MOMENTUM),
        "adam": lambda: xopt.Adam(problems.LR),
        "adamw": adamw,
        "clip": lambda: xopt.chain(xopt.ClipByGlobalNorm(problems.MAX_NORM), adamw()),
        "stochastic": lambda: xopt.Adam(problems.LR),
        "int8": lambda: xopt.Adam(problems.LR),
        "lion": lambda: xopt.Lion(problems.LR, b1=problems.B1, b2=problems.LION_B2, weight_decay=0.0),
    }
    if rule.key not in make:
        raise Unavailable(f"xopt has no {rule.title} yet")
    return make[rule.key]()


class Xopt(Contender):
    """xopt on one of its runners."""

    modules = ("xopt",)
    caches = True

    def __init__(self, problem: Problem, library: Library, runner: str | None) -> None:
        super().__init__(problem, library)
        import xopt

        given: Any = {"runner": runner, **problem.rule.precision}
        self.tolerance = problem.rule.tolerance
        try:
            self.opt = xopt.Optimizer(self.params, xopt_rule(problem.rule), **given)
        except (ValueError, ImportError) as error:
            raise Unavailable(str(error)) from error
        self.runner = self.opt.runner

    def step(self) -> None:
        self.opt.step(self.grads)


class XoptLoops(Xopt):
    """What a runner spends in its loops, without what comes before: its clock stands still outside of them."""

    def __init__(self, problem: Problem, library: Library, runner: str | None) -> None:
        super().__init__(problem, library, runner)
        inner, self.inside = self.opt._executor.runner, 0.0
        outer = self

        class Clocked:
            def __getattr__(self, name: str) -> Any:
                return getattr(inner, name)

            def prepare(self, *args: Any, **more: Any) -> Callable[[], Any]:
                finish = inner.prepare(*args, **more)

                def timed() -> Any:
                    start = time.perf_counter()
                    out = finish()
                    outer.inside += time.perf_counter() - start
                    return out

                return timed

            def again(self, *args: Any) -> None:
                """Take every step as the first, which `prepare` takes part in."""

        for batch in self.opt._executor.buckets:
            batch.runner = Clocked()

    def clock(self) -> float:
        return self.inside


class Textbook(Contender):
    """The rule as in its paper, on whole arrays: NumPy, and plain CuPy."""

    def __init__(self, problem: Problem, library: Library) -> None:
        super().__init__(problem, library)
        if problem.rule.precision:
            raise Unavailable("the textbook keeps all in the dtype of the parameters")
        self.t, self.dtype = 0, problem.dtype
        kept = "float32" if problems.ITEMSIZE[self.dtype] == 2 else self.dtype
        self.state = [tuple(library.xp.zeros(p.shape, kept) for _ in range(problem.rule.state)) for p in self.params]

    def step(self) -> None:
        self.t += 1
        params, grads = self.params, self.grads
        if problems.ITEMSIZE[self.dtype] == 2:
            params, grads = ([x.astype("float32") for x in column] for column in (params, grads))
        rows = [(p, *state) for p, state in zip(params, self.state, strict=True)]
        rows = problems.textbook_step(self.library.xp, self.problem.rule, self.t, rows, grads)
        self.params = [row[0].astype(p.dtype, copy=False) for row, p in zip(rows, self.params, strict=True)]
        self.state = [row[1:] for row in rows]


class CupyFuse(Textbook):
    """The rule in one ``cupy.fuse`` kernel an array; what depends on the step is folded and passed as an argument."""

    modules = ("cupy",)

    def __init__(self, problem: Problem, library: Library) -> None:
        super().__init__(problem, library)
        if self.rule in ("lion", "clip") or problems.ITEMSIZE[self.dtype] == 2:
            raise Unavailable("only SGD, Adam and AdamW in float32 and float64 were written with cupy.fuse")
        self.fused = library.xp.fuse()(partial(_fusible, library.xp) if self.rule != "sgd" else _fusible_sgd)

    def step(self) -> None:
        self.t += 1
        real = np.dtype(self.dtype).type
        root = (1 - problems.B2**self.t) ** 0.5
        scalars = [problems.LR * root / (1 - problems.B1**self.t), problems.EPS * root, 1.0]
        if self.rule == "adamw":
            scalars[2] -= problems.LR * problems.DECAY
        scalars = [] if self.rule == "sgd" else [real(x) for x in scalars]
        for k, (p, g, state) in enumerate(zip(self.params, self.grads, self.state, strict=True)):
            self.params[k], *rest = self.fused(p, g, *state, *scalars)
            self.state[k] = tuple(rest)


def _fusible_sgd(p: Array, g: Array, m: Array) -> tuple[Array, ...]:
    m = problems.MOMENTUM * m + g
    return p - problems.LR * m, m


def _fusible(xp: Any, p: Array, g: Array, m: Array, v: Array, lr: Array, eps: Array, keep: Array) -> tuple[Array, ...]:
    m = problems.B1 * m + (1 - problems.B1) * g
    v = problems.B2 * v + (1 - problems.B2) * g * g
    return keep * p - lr * m / (xp.sqrt(v) + eps), m, v


class InTorch(Contender):
    """An optimizer of torch, which finds its gradients in the parameters."""

    def hand(self, grads: Grads) -> None:
        for p, g in zip(self.params, grads, strict=True):
            p.grad = g


class TorchOptim(InTorch):
    """``torch.optim``: ``"single"``, ``"foreach"`` or ``"fused"``."""

    modules = ("torch",)

    def __init__(self, problem: Problem, library: Library, kind: str) -> None:
        super().__init__(problem, library)
        if problems.ITEMSIZE[problem.dtype] == 2:
            raise Unavailable(f"torch.optim keeps the state of {problem.dtype} parameters in {problem.dtype}")
        self.torch, self.foreach, optim = library.xp, kind != "single", library.xp.optim
        make = {
            "sgd": partial(optim.SGD, momentum=problems.MOMENTUM),
            "adam": optim.Adam,
            "adamw": partial(optim.AdamW, weight_decay=problems.DECAY),
            "clip": partial(optim.AdamW, weight_decay=problems.DECAY),
        }
        if self.rule not in make:
            raise Unavailable(f"torch.optim has no {problem.rule.title}")
        self.params = [p.requires_grad_() for p in self.params]
        self.opt = make[self.rule](self.params, lr=problems.LR, foreach=kind == "foreach", fused=kind == "fused")

    def step(self) -> None:
        if self.rule == "clip":  # in place: the next step finds gradients of norm 1, and does the same work
            self.torch.nn.utils.clip_grad_norm_(self.params, problems.MAX_NORM, foreach=self.foreach)
        self.opt.step()


class XoptAdapter(InTorch):
    """xopt as a ``torch.optim.Optimizer``."""

    modules = ("torch", "xopt.adapters.torch")
    caches = True

    def __init__(self, problem: Problem, library: Library) -> None:
        super().__init__(problem, library)
        from xopt.adapters.torch import Optimizer

        self.tolerance = problem.rule.tolerance
        self.params = [p.requires_grad_() for p in self.params]
        self.opt = Optimizer(self.params, xopt_rule(problem.rule), **problem.rule.precision)

    def step(self) -> None:
        self.opt.step()


class Optax(Contender):
    """optax under ``jax.jit``; parameters and state are donated."""

    modules = ("jax", "optax")

    def __init__(self, problem: Problem, library: Library) -> None:
        super().__init__(problem, library)
        if problem.rule.precision:
            raise Unavailable("optax keeps all in the dtype of the arithmetic")
        self.compiled, first = _optax(self.rule, problem.dtype)
        self.state = first(self.params)

    def step(self) -> None:
        self.params, self.state = self.compiled(self.params, self.state, self.grads)


@functools.cache
def _optax(rule: str, dtype: str) -> tuple[Any, Any]:
    jax, optax = need("jax"), need("optax")
    adamw = optax.adamw(problems.LR, weight_decay=problems.DECAY)
    make = {
        "sgd": lambda: optax.sgd(problems.LR, momentum=problems.MOMENTUM),
        "adam": lambda: optax.adam(problems.LR),
        "adamw": lambda: adamw,
        "lion": lambda: optax.lion(problems.LR, b1=problems.B1, b2=problems.LION_B2, weight_decay=0.0),
        "clip": lambda: optax.chain(optax.clip_by_global_norm(problems.MAX_NORM), adamw),
    }
    opt = make[rule]()

    def wide(arrays: list[Array]) -> list[Array]:
        return [x.astype("float32") for x in arrays] if problems.ITEMSIZE[dtype] == 2 else arrays

    def step(params: list[Array], state: Any, grads: list[Array]) -> tuple[list[Array], Any]:
        updates, state = opt.update(wide(grads), state, wide(params))
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1)), lambda params: jax.jit(opt.init)(wide(params))


class Keras(Contender):
    """Keras on its JAX backend, as its own trainer runs it: ``stateless_apply`` under ``jax.jit``, with donation."""

    modules = ("jax", "keras")
    tolerance = 5e-4  # ε stands beside the uncorrected √v, which is small after a clip

    def __init__(self, problem: Problem, library: Library) -> None:
        if problems.ITEMSIZE[problem.dtype] == 2:
            raise Unavailable(f"Keras keeps the state of {problem.dtype} parameters in {problem.dtype}")
        os.environ.setdefault("KERAS_BACKEND", "jax")
        keras, jax = need("keras"), need("jax")
        if keras.backend.backend() != "jax":
            raise Unavailable("Keras runs on another backend than JAX")
        super().__init__(problem, library)
        adam = {"learning_rate": problems.LR, "epsilon": problems.EPS}
        make = {
            "sgd": lambda: keras.optimizers.SGD(problems.LR, momentum=problems.MOMENTUM),
            "adam": lambda: keras.optimizers.Adam(**adam),
            "adamw": lambda: keras.optimizers.AdamW(weight_decay=problems.DECAY, **adam),
            "lion": lambda: keras.optimizers.Lion(problems.LR, beta_1=problems.B1, beta_2=problems.LION_B2),
            "clip": lambda: keras.optimizers.AdamW(
                weight_decay=problems.DECAY, global_clipnorm=problems.MAX_NORM, **adam
            ),
        }
        opt = make[self.rule]()
        opt.build([keras.Variable(p, dtype=problem.dtype) for p in self.params])
        self.state = [v.value for v in opt.variables]
        self.compiled = jax.jit(opt.stateless_apply, donate_argnums=(0, 2))

    def step(self) -> None:
        self.params, self.state = self.compiled(self.state, self.grads, self.params)


class Thinc(Contender):
    """Thinc's Adam in Cython. It sets the gradients to zero, so it is handed copies; that is part of its step."""

    modules = ("thinc.api",)
    tolerance = 2 * problems.LR * problems.DECAY  # it decays after the step, not before

    def __init__(self, problem: Problem, library: Library) -> None:
        if problem.dtype != "float32" or problem.rule.key not in ("adam", "adamw"):
            raise Unavailable("Thinc has Adam and AdamW in float32")
        api = need("thinc.api")
        super().__init__(problem, library)
        decay = problems.DECAY if self.rule == "adamw" else 0.0
        more = {"eps": problems.EPS, "L2": decay, "grad_clip": 0.0, "use_averages": False}
        self.opt = api.Adam(problems.LR, beta1=problems.B1, beta2=problems.B2, **more)

    def hand(self, grads: Grads) -> None:
        self.grads = self.adopt(grads)

    def step(self) -> None:
        for k, g in enumerate(self.grads):
            self.params[k], _ = self.opt((k, ""), self.params[k], g)


@dataclass(frozen=True)
class Entry:
    """How to make a contender: its class, the library of its arrays, its device and what else it takes."""

    kind: type[Contender]
    library: type[Library]
    device: str
    more: tuple[Any, ...] = ()

    def __call__(self, problem: Problem) -> Contender:
        """Make it, or raise `Unavailable`."""
        make: Callable[..., Contender] = self.kind
        return make(problem, self.library(self.device, problem), *self.more)


def contenders(device: str, threads: int) -> dict[str, Entry]:
    """Return the contenders of a device, ``"cpu"`` or ``"cuda"``, by the names that they have in the results."""
    from benchmarks import streams

    def entry(kind: type[Contender], library: type[Library], *more: Any) -> Entry:
        return Entry(kind, library, device, more)

    peers = {
        "torch single": entry(TorchOptim, Torch, "single"),
        "torch foreach": entry(TorchOptim, Torch, "foreach"),
        "torch fused": entry(TorchOptim, Torch, "fused"),
        "optax": entry(Optax, Jax),
        "Keras": entry(Keras, Jax),
    }
    if device == "cuda":
        return {
            "copy": entry(streams.CudaCopy, CuPy),
            "stream": entry(streams.CudaStream, CuPy),
            "xopt cuda": entry(Xopt, CuPy, "cuda"),
            "xopt cuda, torch": entry(Xopt, Torch, "cuda"),
            "xopt torch adapter": entry(XoptAdapter, Torch),
            "xopt eager": entry(Xopt, CuPy, "eager"),
            "xopt default": entry(Xopt, CuPy, None),
            "CuPy": entry(Textbook, CuPy),
            "cupy.fuse": entry(CupyFuse, CuPy),
            **peers,
        }
    return {
        **{f"stream, {n} thread{'s' * (n > 1)}": entry(streams.Stream, NumPy, n) for n in sorted({1, threads})},
        "xopt llvm": entry(Xopt, NumPy, "llvm"),
        "xopt llvm, loops alone": entry(XoptLoops, NumPy, "llvm"),
        "xopt llvm, torch": entry(Xopt, Torch, "llvm"),
        "xopt torch adapter": entry(XoptAdapter, Torch),
        "xopt tiled": entry(Xopt, NumPy, "tiled"),
        "xopt eager": entry(Xopt, NumPy, "eager"),
        "xopt default": entry(Xopt, NumPy, None),
        "NumPy": entry(Textbook, NumPy),
        **peers,
        "Thinc": entry(Thinc, NumPy),
    }
