"""The array libraries that every test of the maths runs on."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import inspect
import math
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_ENABLE_X64", "1")

if (_intel := Path(sys.prefix, "lib", "libintelocl.so")).exists():  # SYCL's CPU device is in this package
    os.environ.setdefault("OCL_ICD_FILENAMES", str(_intel))
os.environ.setdefault("SYCL_CACHE_PERSISTENT", "1")  # else each process compiles each function of dpnp anew

import numpy as np
import pytest

pytest.register_assert_rewrite("support")

LIBRARIES = ("numpy", "strict", "torch", "jax", "dask", "mlx", "dpnp", "cubed", "ndonnx", "cupy", "llvm")
OWN_TESTS = ("llvm", "dpnp", "cubed", "ndonnx")
"""What has tests of its own, marked `needs`, and is not given those of every library."""
MODULES = {"llvm": "llvmlite", "strict": "array_api_strict", "mlx": "mlx.core"}


class Lib:
    """An array library in one of its guises."""

    def __init__(self, name: str, guise: str = "") -> None:
        self.name, self.guise = name, guise
        self.id = f"{name}-{guise}" if guise else name

    def module(self) -> Any:
        return importlib.import_module(MODULES.get(self.name, self.name))

    def functions(self, x: Any) -> Any:
        """Return the namespace that a user's functions are written in; of MLX, whose float64 exp is bad, ours."""
        if self.name == "mlx":
            return importlib.import_module("xopt._arrays").namespace(x)
        return self.module() if self.name in ("torch", "cupy") else x.__array_namespace__()

    def array(self, x: Any, dtype: str | None = None) -> Any:
        """Make an array of this library; skip the test where it has no such dtype."""
        x = np.asarray(x)
        dtype = dtype or x.dtype.name
        if self.name == "numpy":
            kind = importlib.import_module("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype
            made = restrided(x, kind)
            made.flags.writeable = self.guise != "read-only"
            return made
        if self.name == "torch":
            torch = self.module()
            made = torch.from_numpy(restrided(x, x.dtype)).to(getattr(torch, dtype))
            return made.requires_grad_() if self.guise == "grad" else made
        if self.name == "jax":
            return self.module().numpy.asarray(x, dtype=getattr(self.module().numpy, dtype))
        if self.name == "mlx":
            return self._mlx(x, dtype)
        if dtype == "bfloat16":
            pytest.skip(f"{self.name} has no bfloat16")
        if self.name == "dask":
            return importlib.import_module("dask.array").from_array(np.asarray(x, dtype).copy())
        if self.name == "cupy":
            return self.module().asarray(x, dtype=dtype)
        if dtype == "float16":
            pytest.skip("array-api-strict has no float16")
        strict = self.module()
        try:
            return strict.asarray(np.asarray(x, dtype).copy(), device=strict.Device(self.guise))
        except ValueError:
            pytest.skip(f"device {self.guise} has no {dtype}")

    def _mlx(self, x: Any, dtype: str) -> Any:
        if dtype == "complex128":
            pytest.skip("mlx has no complex128")
        mx = self.module()
        return mx.array(x.astype("float32") if dtype == "bfloat16" else x, getattr(mx, dtype.replace("bool", "bool_")))

    def numpy(self, x: Any) -> Any:
        """Bring an array back; bfloat16 as float32."""
        if self.name == "dask":
            x = self.settled(x)[0].compute()
        if self.name == "torch":
            x = x.detach()
            x = x.float() if str(x.dtype) == "torch.bfloat16" else x
        if self.name == "cupy":
            x = x.get()
        if self.name == "mlx" and str(x.dtype) == "mlx.core.bfloat16":
            x = x.astype(self.module().float32)
        made = np.from_dlpack(x) if self.name == "strict" else np.asarray(x)
        return made.astype(np.float32) if made.dtype.name == "bfloat16" else made

    def settled(self, *trees: Any) -> tuple[Any, ...]:
        """Compute what is lazy: dask would compute the graph of all steps for every array anew."""
        if self.name != "dask":
            return trees
        with warnings.catch_warnings():  # of NumPy, which computes here at last, in threads of dask
            warnings.simplefilter("ignore", RuntimeWarning)
            found: tuple[Any, ...] = importlib.import_module("dask").persist(*trees)
        return found

    @property
    def writable(self) -> bool:
        """Whether Optimizer can write into these arrays."""
        return self.name in ("torch", "strict", "cupy") or self.guise == "plain"

    def __repr__(self) -> str:
        return self.id


def restrided(x: Any, dtype: Any) -> Any:
    """Copy an array and keep it as discontiguous as it is."""
    if x.ndim == 0 or x.flags.c_contiguous:
        return np.array(x, dtype, order="C")
    if x.flags.f_contiguous:
        return np.array(x, dtype, order="F")
    wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), dtype)
    wide[..., ::2] = x
    return wide[..., ::2]


def _guises(name: str) -> list[str]:
    if name == "numpy":
        return ["plain", "read-only"]
    if name == "torch":
        return ["plain", "grad"]
    if name == "jax":
        return ["eager", "jit"]
    if name == "strict":
        info = importlib.import_module("array_api_strict").__array_namespace_info__()
        return [str(d).split("'")[1] for d in info.devices()]
    return [""]


def available(name: str) -> bool:
    """Whether a library can be used here: for CuPy, whether there is a GPU too."""
    if importlib.util.find_spec(MODULES.get(name, name).partition(".")[0]) is None:
        return False
    if name != "cupy":
        return True
    cupy = importlib.import_module("cupy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bool(cupy.cuda.is_available())


_from_module: Any = vars(doctest.DocTestFinder)["_from_module"]


def _written_in(finder: Any, module: Any, thing: Any) -> bool:
    """Whether the examples of a thing are those of this module; what is public says that it is in `xopt`."""
    if inspect.isfunction(thing) and module is not None:
        return inspect.unwrap(thing).__globals__ is vars(module)
    return bool(_from_module(finder, module, getattr(thing, "__wrapped__", thing) if inspect.isclass(thing) else thing))


doctest.DocTestFinder._from_module = _written_in


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--library", choices=LIBRARIES, help="test on this library only (numpy: and all that needs no other)"
    )
    parser.addoption(
        "--record-parity", metavar="FILE", type=Path, help="write the differences to other libraries into this file"
    )


def pytest_configure(config: pytest.Config) -> None:
    chosen = config.getoption("--library", default=None)
    if chosen and chosen != "cupy" and not available(chosen):
        raise pytest.UsageError(f"--library {chosen}: not installed")
    if path := config.getoption("--record-parity", default=None):
        config.pluginmanager.register(importlib.import_module("support.parity").Recorder(path))


def pytest_report_header(config: pytest.Config) -> str:
    chosen = config.getoption("--library", default=None)
    found = [name for name in ([chosen] if chosen else LIBRARIES) if available(name)]
    note = "" if "cupy" in found or chosen not in (None, "cupy") else "; cupy: no GPU here, its arrays are not tested"
    return f"array libraries: {', '.join(found) or 'none'}{note}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "lib" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--library", default=None)
        names = [name for name in ([chosen] if chosen else LIBRARIES) if available(name) and name not in OWN_TESTS]
        libs = [Lib(name, guise) for name in names for guise in _guises(name)]
        marks = {"cupy": [pytest.mark.cuda]}
        metafunc.parametrize("lib", [pytest.param(x, id=x.id, marks=marks.get(x.name, [])) for x in libs])


EAGER = (
    "rules/test_convergence.py::test_on_every_library",  # every rule
    "transforms/test_oracles.py::test_oracle",  # every component
    "transforms/test_accumulate_and_guard.py::test_a_micro_batch_that_is_not_finite_is_gone_with_its_batch",
    "transforms/test_accumulate_and_guard.py::test_raise_names_the_gradient_and_moves_nothing",
    "regressions/test_others.py::test_norms_and_what_is_done_about_them",
    "rule/test_component_declarations.py::test_libraries",
    "rule/test_component_declarations.py::test_whole_arrays",
    "engine/program/test_trace.py::test_carry",
)
"""What JAX is given with and without jit. The rest is not: what never calls jit would be the same test again."""


def _spared(item: Any, lib: Lib) -> bool:
    """Whether a test is left to NumPy: options, and dtypes and ways of calling that have others beside them."""
    options = item.get_closest_marker("options") is not None
    params = item.callspec.params
    if lib.name == "jax" and item.nodeid.partition("[")[0].endswith("rules/test_oracles.py::test_float32"):
        return True  # the formulas are traced and compiled in float64 and float16
    if lib.id == "numpy-read-only":
        return options or ("row" in params and item.originalname != "test_float64")
    if lib.name == "numpy":
        return False
    if lib.name == "jax" and "row" in params and getattr(params["row"], "large", False):
        if item.originalname not in ("test_float64", "test_complex", "test_a_gradient_that_is_not_finite"):
            return True  # what the engine does around the rule, others show
        if params.get("mode") == "split" or params.get("bad") == math.inf:
            return True
    if lib.id == "jax-eager" and not item.nodeid.partition("[")[0].endswith(EAGER):
        return True
    if lib.id == "jax-jit" and item.originalname == "test_on_every_library":  # test_float64 has its rules under jit
        return True
    if options or not {"row", "schedule"} & {*params}:
        return options
    if params.get("dtype") in ("bfloat16", "float32", "complex64", "int64"):
        return True
    if lib.guise == "eager":
        return bool(params.get("dtype") == "complex128")
    slow = lib.name == "dask" or (lib.name == "strict" and lib.guise != "CPU_DEVICE")
    return slow and item.originalname not in ("test_float64", "test_oracle")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --library torch, leave out what does not depend on the library: the numpy run has it.

    Of the tests of the catalogue, libraries are given those that may differ between libraries: see `_spared`.
    """
    if moving := [item.nodeid for item in items if " at 0x" in item.nodeid]:
        raise pytest.UsageError(f"{moving[0]}: the name holds an address, so that workers cannot agree on it; pass ids")
    chosen = config.getoption("--library", default=None)
    keep, drop = [], []
    for item in items:
        lib = item.callspec.params.get("lib") if hasattr(item, "callspec") else None
        if isinstance(lib, Lib) and _spared(item, lib):
            drop.append(item)
            continue
        if chosen is None:
            keep.append(item)
            continue
        needs = {m.args[0] for m in item.iter_markers("needs")}
        by_library = "lib" in getattr(item, "fixturenames", ()) and chosen not in OWN_TESTS
        wanted = by_library or (chosen in needs) or (chosen == "numpy" and not needs)
        (keep if wanted else drop).append(item)
    items[:] = keep
    config.hook.pytest_deselected(items=drop)


@pytest.fixture(autouse=True)
def no_llvm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Test the tiled runner as the default, also where llvmlite is installed; its own tests are marked for it."""
    if "llvm" not in {m.args[0] for m in request.node.iter_markers("needs")}:
        monkeypatch.setattr("xopt._engine.runners.llvm.compiler.missing", lambda: "LLVM is left out of this test")


@pytest.fixture(scope="session")
def kernel_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the kernels of the cuda runner are built for the host, each once for all workers of a run."""
    own = tmp_path_factory.getbasetemp()
    found = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "cuda"
    found.mkdir(exist_ok=True)
    return found


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20260101)


@pytest.fixture
def parity(record_property: Callable[[str, Any], None]) -> Callable[..., None]:
    """Return ``parity(library, rule or component, ours, theirs)``, which notes how far two lists are apart."""
    compared = importlib.import_module("support.parity").compared
    return lambda *what, kind="peer": record_property("parity", compared(kind, *what))


def walk(rule: Any, params: Any, grads: list[Any], **kwargs: Any) -> tuple[Any, Any]:
    """Take a step for each gradient: the last parameters and state."""
    state = rule.init(params)
    for g in grads:
        params, state = rule.apply(params, g, state, **kwargs)
    return params, state


def tree(
    rng: np.random.Generator, dtype: str = "float64", scale: float = 1.0, lib: Lib | None = None
) -> dict[str, Any]:
    """Parameters or gradients of every awkward shape: 0-d, empty, tall, wide, one, three axes, not contiguous.

    Half of them for JAX and dask, where it is given: there each leaf is compiled, or is a graph of many tasks, and none
    has strides.
    """

    def draw(*shape: int) -> Any:
        x = rng.standard_normal(shape)
        if dtype.startswith("complex"):
            x = x + 1j * rng.standard_normal(shape)
        return np.asarray(x * scale, dtype if dtype != "bfloat16" else "float32")

    if lib is not None and lib.name in ("jax", "dask"):
        return {"tall": draw(7, 2), "wide": {"w": draw(2, 5), "b": draw(5)}, "list": [draw(), draw(0)]}
    return {
        "tall": draw(7, 2),
        "wide": {"w": draw(2, 5), "b": draw(5)},
        "list": [draw(), draw(0), (draw(0, 3), draw(2, 3, 4))],
        "one": draw(1),
        "turned": draw(3, 4).T,
        "strided": [draw(10)[::2], draw(2, 3, 6)[:, :, ::2]],
    }


@pytest.fixture
def convert(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call `python -m xopt convert` in an empty folder: its exit code, and what it printed and complained of."""
    from xopt.__main__ import main

    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, str, str]:
        code = main(["convert", *words])
        out, err = capsys.readouterr()
        return code, out, err

    return call
