"""Sessions: `nox -s train` runs the main job, `nox -s tests` the tests, `nox -l` lists the rest."""

from __future__ import annotations

import itertools
import shutil

import nox

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "types", "tests", "docs"]

PROJECT = nox.project.load_toml("pyproject.toml")
GPU = shutil.which("nvidia-smi") is not None
TORCH = "torch==2.13.0"  # pinned: an open range brings gigabytes of CUDA
LIBRARIES = {
    "numpy": [],
    "strict": ["array-api-strict>=2.3"],
    "torch": [TORCH, "pytorch-optimizer>=4.1", "keras>=3.10"],
    "jax": ["jax>=0.5", "optax>=0.2.5", "keras>=3.10", "thinc>=9.1", "autograd>=1.7"],
    "dask": ["dask[array]>=2025.1"],
    "mlx": ["mlx[cpu]>=0.32"],
    "dpnp": ["dpnp>=0.20", "intel-opencl-rt"],
    "cubed": ["cubed>=0.27"],
    "ndonnx": ["ndonnx>=0.23", "onnxruntime>=1.22", "array-api-strict>=2.3", "scikit-learn", "matplotlib"],
    "llvm": [TORCH],  # not a library, but the compiled runner of two
    "cupy": [
        "cupy-cuda13x[ctk]>=14" if GPU else "cupy-cuda13x>=14",  # without a GPU it imports, and that is tested
        "cuda-bindings>=13,<14",
        "nvidia-cuda-nvrtc>=13,<14",  # compiles kernels without a GPU
        "nvidia-cuda-cuobjdump>=13,<14",  # and these two read what it made
        "nvidia-cuda-nvdisasm>=13,<14",
    ],
}
THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}
THREADS |= {"PYTHONDONTWRITEBYTECODE": ""}  # else each of hundreds of processes compiles every test again
THREADS |= {"XLA_FLAGS": "--xla_cpu_parallel_codegen_split_count=1"}  # programs are small, and each worker has a core
QUICK = {"XLA_FLAGS": THREADS["XLA_FLAGS"] + " --xla_cpu_use_fusion_emitters=false"}  # compiles twice as fast
HANGS = {"PYTEST_TIMEOUT": "600"}  # seconds for one test, then its stack is shown and it has failed
WORKERS = ["-n", "auto", "--dist", "worksteal"]
LAZY = "--no-compile"  # an import compiles what it needs; of torch that is a part, and pip would do it on one core


def group(name: str) -> list[str]:
    return list(nox.project.dependency_groups(PROJECT, name))


def argument(session: nox.Session, flag: str, default: str) -> str:
    """Return the value of an argument after `--`."""
    for word, value in itertools.pairwise([*session.posargs, ""]):
        if word == flag:
            return str(value)
        if word.startswith(flag + "="):
            return str(word.partition("=")[2])
    return default


def knows(session: nox.Session, flags: dict[str, str]) -> bool:
    """Whether this version of XLA has these flags: it ends the process that begins with others."""
    probe, any_end = "import jax; jax.devices(); print('it does')", range(-64, 256)
    found = session.run("python", "-c", probe, env=THREADS | flags, silent=True, success_codes=any_end)
    return "it does" in str(found)


@nox.session
def train(session: nox.Session) -> None:
    """Train a classifier of handwritten digits: `nox -s train -- --library torch --optimizer rmsprop`."""
    library = argument(session, "--library", "auto")
    needs = LIBRARIES["cupy" if GPU else "numpy"] if library == "auto" else LIBRARIES.get(library, [])
    session.install(*needs, ".[demo]")
    session.run("python", "docs/examples/train_digits.py", *session.posargs)


@nox.session
@nox.parametrize("library", [nox.param(name, id=name) for name in LIBRARIES])
def tests(session: nox.Session, library: str) -> None:
    """Test on one array library: `nox -s "tests(torch)"`. cupy tests what needs no GPU where there is none."""
    drawing = library in ("numpy", "torch", "jax")  # the libraries of the examples
    demo = ["scikit-learn", "scikit-image", "matplotlib", "tqdm"] if drawing else []
    beside = group("mpi") if library == "numpy" else []
    session.install(LAZY, *LIBRARIES[library], *group("test"), *beside, *demo, "-e", ".")
    command = ["pytest", "--library", library, *WORKERS, *session.posargs]
    # half of the time on JAX is XLA's: all that does not hang on how it compiles is compiled by its older generator
    if library == "jax" and not session.posargs and knows(session, QUICK):
        session.run(*command, "-m", "not xla", env=THREADS | QUICK | HANGS)
        command += ["-m", "xla"]
    session.run(*command, env=THREADS | HANGS)


@nox.session(python=["3.12", "3.13", "3.14"])
def pythons(session: nox.Session) -> None:
    """Test on later Pythons with the newest NumPy: `nox -s pythons-3.13 -- tests/rules` for some tests."""
    session.install("--upgrade", "--upgrade-strategy", "eager", "numpy", *group("test"), "-e", ".[demo]")
    session.run("pytest", "--library", "numpy", *WORKERS, *session.posargs, env=THREADS | HANGS)


@nox.session
def oldest(session: nox.Session) -> None:
    """Test with the oldest NumPy that is supported: `nox -s oldest -- tests/rules` for some tests."""
    session.install("numpy==2.0.*", *group("test"), "-e", ".[demo]")
    session.run("pytest", "--library", "numpy", *WORKERS, *session.posargs, env=THREADS | HANGS)


@nox.session
def ranks(session: nox.Session) -> None:
    """Compare every rule on ranks of MPI and of gloo with one process: `nox -s ranks -- 2,3` for some numbers."""
    [sizes] = session.posargs or ["1,2,3,4,6"]
    session.install(LAZY, TORCH, *group("test"), *group("mpi"), "-e", ".")
    env = {**THREADS, "XOPT_TEST_RANKS": sizes, "XOPT_TEST_EVERY_RULE": "1"}
    for engine in ("numpy", "torch"):
        session.run("pytest", "--library", engine, "-v", "tests/distributed/test_engines.py", env=env)


@nox.session
def kernels(session: nox.Session) -> None:
    """Compile every CUDA kernel of every option for every dtype, and look at the binaries. It takes minutes."""
    session.install(*LIBRARIES["cupy"], *group("test"), "-e", ".")
    where, env = "tests/engine/runners/cuda/test_compiled_kernels.py", {**THREADS, "XOPT_TEST_EVERY_KERNEL": "1"}
    session.run("pytest", "--library", "cupy", *WORKERS, where, *session.posargs, env=env)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and spelling."""
    session.install(*group("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("typos")


@nox.session
def types(session: nox.Session) -> None:
    """Check types."""
    session.install(*group("types"), "-e", ".")
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into docs/_build/html, and run its examples."""
    examples = [TORCH, "jax", "optax", "keras", "thinc>=9.1", "pennylane>=0.45", *LIBRARIES["ndonnx"]]
    session.install(LAZY, *group("docs"), *examples, "-e", ".[demo]")
    env = {**THREADS, "KERAS_BACKEND": "jax"}
    session.run("sphinx-build", "-n", "-W", "-b", "html", "docs", "docs/_build/html", env=env)
    session.run("sphinx-build", "-n", "-W", "-b", "doctest", "docs", "docs/_build/doctest", env=env)


@nox.session
def clients(session: nox.Session) -> None:
    """Put xopt into scikit-learn, Autograd, SciPy, SigPy, PennyLane and spaCy, in the place of what they have.

    `nox -s clients -- table` prints what SciPy's L-BFGS-B and xopt's do for scikit-learn.
    """
    others = ["scikit-learn>=1.9", "autograd>=1.7", "sigpy>=0.1.27", "pennylane>=0.45", "spacy>=3.8"]
    session.install(LAZY, *others, *group("test"), "-e", ".")
    if session.posargs == ["table"]:
        session.run("python", "tests/clients/test_sklearn_lbfgs.py", env=THREADS)
    else:
        where = ["tests/clients", "tests/solvers/test_scipy_method.py", "tests/adapters/test_examples.py"]
        where.append("tests/adapters/test_thinc.py")  # with the Thinc of spaCy, which is not the last one
        session.run("pytest", *where, *WORKERS, *session.posargs, env=THREADS | HANGS)


@nox.session
def frameworks(session: nox.Session) -> None:
    """Put xopt into the training loops of frameworks for PyTorch and JAX, in the place of their own optimizers.

    `nox -s frameworks -- table` measures them and writes the table of docs/adapters.md.
    """
    loops = ["lightning>=2.6", "accelerate>=1.15", "transformers>=5.24", "skorch>=1.4", "pyro-ppl>=1.9"]
    loops += ["flax>=0.12", "equinox>=0.13", "numpyro>=0.22", "optimistix>=0.1", "optax>=0.2.5"]
    session.install(TORCH, *loops, *group("test"), "-e", ".")
    env = {**THREADS, "PYTHONPATH": "tests", "HF_HUB_OFFLINE": "1"}
    if session.posargs == ["table"]:
        session.run("python", "-m", "frameworks", env=env)
    else:
        session.run("pytest", "tests/frameworks", *WORKERS, *session.posargs, env=env)


@nox.session
def faults(session: nox.Session) -> None:
    """Plant every fault of the history and see that the tests catch it: `nox -s faults -- shapes` for some."""
    libraries = [*LIBRARIES["strict"], *LIBRARIES["dask"], *LIBRARIES["llvm"]]  # and torch
    session.install(LAZY, *libraries, *group("test"), "-e", ".")
    session.run("python", "tests/faults.py", *session.posargs, env=THREADS)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Run random compositions of everything on every path: `nox -s fuzz -- --minutes 30 --seed 1`."""
    every = [need for name in LIBRARIES if GPU or name != "cupy" for need in LIBRARIES[name]]
    session.install(*every, *group("test"), "-e", ".")
    session.run("python", "-m", "fuzz", *session.posargs, env={**THREADS, "PYTHONPATH": "tests", "JAX_ENABLE_X64": "1"})


@nox.session
def soak(session: nox.Session) -> None:
    """Take ten million tiny steps: nothing may grow or drift. `nox -s soak -- 1000000` for fewer. It takes an hour."""
    [steps] = session.posargs or ["10000000"]
    session.install(*group("test"), "-e", ".")
    where = "tests/optimizer/test_interrupted.py::test_many_steps_leave_nothing_behind"
    session.run("pytest", "--library", "numpy", where, env={**THREADS, "XOPT_TEST_STEPS": steps})


@nox.session
def parity(session: nox.Session) -> None:
    """Compare the rules with those of other libraries, and write the differences into docs/parity.json."""
    session.install(*LIBRARIES["torch"], *LIBRARIES["jax"], "scikit-learn", *group("test"), "-e", ".")
    session.run("pytest", "--record-parity=docs/parity.json", *session.posargs, env=THREADS)


@nox.session
def rates(session: nox.Session) -> None:
    """Tune the rates of tests/support/convergence.txt: `nox -s rates -- Lion` for one rule, without a name for all."""
    session.install("-e", ".[demo]")
    session.run("python", "-m", "support.convergence", *session.posargs, env={**THREADS, "PYTHONPATH": "tests"})


@nox.session
def curves(session: nox.Session) -> None:
    """Measure the curves of docs/choose.md: `nox -s curves -- Lion` for one rule, without a name for all."""
    session.install("-e", ".[demo]")
    script = "docs/examples/compare_rules.py"
    session.run("python", script, "--output-dir", session.create_tmp(), "--measure", *session.posargs, env=THREADS)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure xopt beside other libraries: `nox -s bench -- --quick`, `-- --only vector,many`, `-- --device cuda`."""
    cuda = argument(session, "--device", "cpu") == "cuda"
    peers = [TORCH, "jax[cuda13]>=0.5" if cuda else "jax>=0.5", "optax>=0.2.5", "keras>=3.10", "thinc>=9.1"]
    peers.append("numba>=0.61")  # which the ceiling is compiled by
    session.install(*peers, *(LIBRARIES["cupy"] if cuda else []), "-e", ".[bfloat16,plot]")
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session(name="bench-solvers")
def bench_solvers(session: nox.Session) -> None:
    """Measure `xopt.minimize` beside SciPy, torch and in scikit-learn, and write docs/minimize.md: `-- --quick`."""
    session.install(TORCH, "scikit-learn>=1.9", *group("test"), "-e", ".")
    session.run("python", "-m", "benchmarks.solvers", *session.posargs)


@nox.session(name="bench-fits")
def bench_fits(session: nox.Session) -> None:
    """Measure `xopt.least_squares` beside SciPy, and write docs/least_squares.md: `-- --quick`, `-- --check`."""
    session.install(*group("test"), "-e", ".")
    session.run("python", "-m", "benchmarks.fits", *session.posargs)


@nox.session(name="bench-proximal")
def bench_proximal(session: nox.Session) -> None:
    """Count iterations of `xopt.proximal` beside PyProximal and ODL, and write docs/proximal.md: `-- --quick`."""
    session.install("pyproximal>=0.13", "odl>=1.0", "-e", ".")
    session.run("python", "-m", "benchmarks.proximal", *session.posargs)


@nox.session(name="bench-checkpoints")
def bench_checkpoints(session: nox.Session) -> None:
    """Measure saving and loading beside safetensors and torch.save, and write docs/save_and_resume.md: `-- --quick`."""
    session.install(TORCH, *LIBRARIES["strict"], *LIBRARIES["jax"], *LIBRARIES["dask"], *group("test"), "-e", ".")
    session.run("python", "-m", "benchmarks.checkpoints", *session.posargs)


@nox.session(name="bench-distributed")
def bench_distributed(session: nox.Session) -> None:
    """Measure sharded state on two ranks beside Allreduce and torch's ZeRO: `-- --check`, `-- --engines mpi`."""
    session.install(TORCH, *group("mpi"), "-e", ".")
    session.run("python", "-m", "benchmarks.distributed", *session.posargs)


@nox.session(name="bench-precision")
def bench_precision(session: nox.Session) -> None:
    """Measure what each way to keep few digits costs and brings, and write docs/precision.md: `-- --quick`."""
    session.install("scikit-learn", "-e", ".[bfloat16]")
    session.run("python", "-m", "benchmarks.precision", *session.posargs)
