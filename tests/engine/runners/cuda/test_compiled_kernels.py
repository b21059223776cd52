"""Every kernel of every rule compiles for every kind of GPU, and what comes out is looked at. No GPU is needed."""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import catalog
import pytest
from support.coded_rules import RULES as CODED
from support.cuda_rules import DTYPES, EVERY, MODES, Inexact, of
from support.host_cuda import EXPORT, STEP, kernels
from support.runners import CHAIN, RULES, STORED

import xopt
from xopt._engine.program import quantize as _quantize
from xopt._engine.program import trace as _trace
from xopt._engine.runners.cuda import codegen as _codegen
from xopt._engine.runners.cuda import driver as _driver
from xopt._engine.runners.cuda import templates as _templates
from xopt._engine.runners.cuda.codegen import CudaKernel
from xopt._engine.runners.cuda.driver import arch, compiled

pytest.importorskip("cuda.bindings", reason="no cuda.bindings: nothing here can compile for a GPU")
pytestmark = pytest.mark.needs("cupy")

ARCHS = ["sm_75", "sm_80", "sm_90", "sm_100"]
TOGETHER = 40
EVERY_KERNEL = "XOPT_TEST_EVERY_KERNEL"
INEXACT = {*_trace._INEXACT, "hypot"}
"""Their code is NVIDIA's: it contracts, and reads tables of its own."""


@pytest.fixture(scope="module", autouse=True)
def _nvrtc() -> None:
    try:
        compiled("", "sm_90")
    except Exception as error:
        pytest.skip(f"NVRTC cannot be used: {error}")


def tool(name: str) -> str:
    """Find a program of the CUDA toolkit: on the path, or where its wheel puts it."""
    spec = importlib.util.find_spec("nvidia")
    homes = [*(spec.submodule_search_locations or ())] if spec else []
    found = shutil.which(name) or next((str(p) for h in homes for p in Path(h).glob(f"*/bin/{name}")), None)
    if found is None:
        pytest.skip(f"no {name}: the binaries compile, but nobody can read them here")
    return found


def every_kernel() -> list[CudaKernel]:
    """Return the kernels of all rules, options and dtypes in place, and of some fresh; each text once.

    Options other than the last of a rule are compiled for the dtypes that need the fewest and the most registers;
    ``nox -s kernels`` compiles all, and all of them for every GPU.
    """
    found: dict[str, CudaKernel] = {}
    for rule in [*EVERY, CHAIN]:
        for dtype in DTYPES if rule in RULES or os.environ.get(EVERY_KERNEL) else ("float32", "complex128"):
            for mode in MODES if "complex" in dtype else MODES[:1]:
                for fresh in (True, False) if rule in RULES else (False,):
                    found |= {k.source: k for k in kernels(of(rule, mode), dtype, fresh)}
    for dtype in ("float32", "float64"):
        found |= {k.source: k for k in kernels(Inexact(), dtype)}
    for rule, dtype in itertools.product(STORED, ("float16", "bfloat16", "complex128")):
        found |= {k.source: k for k in kernels(rule, dtype, False)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_quantize, "LEAST", 1)
        for rule, dtype in itertools.product(CODED, ("float16", "float32", "float64")):
            found |= {k.source: k for k in kernels(rule, dtype, False)}
    return list(found.values())


KERNELS = every_kernel()
BATCHES = [KERNELS[low : low + TOGETHER] for low in range(0, len(KERNELS), TOGETHER)]


def joined(batch: list[CudaKernel]) -> str:
    """Put texts into namespaces, so that they compile together, which is faster; kernel 7 is then ``k7::xopt_step``."""
    texts = (f"namespace k{i} {{\n{k.source.replace(EXPORT, '')}\n}}\n" for i, k in enumerate(batch))
    return "".join(texts)


def expected(kernel: CudaKernel) -> tuple[int, int]:
    """Return how many accesses of 16 bytes a round of the kernel makes: what its arrays need and no more."""
    sizes = {m[2]: BYTES[m[0]] * int(m[1]) // 16 for m in re.findall(r"Pack<([\w<>]+), (\d+)> (\w+);", kernel.source)}
    count = lambda verb: sum(sizes[name] for name in re.findall(rf"{verb}\((\w+_pack), ", kernel.source))
    return count("read"), count("write")


BYTES = {"Half": 2, "BFloat": 2, "float": 4, "double": 8, "Complex<float>": 8, "Complex<double>": 16}


def owners(text: str, pattern: str) -> dict[int, str]:
    """Cut a listing at the lines that name a kernel: number of the kernel in its batch to what follows."""
    parts = re.split(pattern, text)
    return {int(n): body for n, body in zip(parts[1::2], parts[2::2], strict=True)}


def test_all_are_there() -> None:
    rules = {type(rule).__name__ for rule in EVERY}
    assert rules == {row.rule.__name__ for row in catalog.TRACED}
    ops = {node.op for k in KERNELS for node in k.program.nodes} - {"load", "largest"}
    assert ops == set(_codegen.operations("float64")), "every operation is compiled"
    types = {t for k in KERNELS for t in re.findall(r"Pack<([\w<>]+), \d", k.source)}
    assert types == {*BYTES}


def pairs() -> list[tuple[str, int]]:
    """Return for which GPUs each batch is compiled: one after the other; or all of them."""
    every = os.environ.get(EVERY_KERNEL)
    return [(gpu, i) for i in range(len(BATCHES)) for gpu in (ARCHS if every else [ARCHS[i % len(ARCHS)]])]


@pytest.mark.parametrize(("gpu", "batch"), pairs())
def test_binary(gpu: str, batch: int, tmp_path: Path) -> None:
    """No spills, registers for a full multiprocessor, accesses of 16 bytes and as many as there must be."""
    path = tmp_path / "k.cubin"
    path.write_bytes(compiled(joined(BATCHES[batch]), gpu))
    usage, listing = resources(path), instructions(path)
    for i, k in enumerate(BATCHES[batch]):
        registers, stack, local = usage[i]
        used = Counter(listing[i])
        assert registers <= (128 if "(256, 1)" not in k.source else 255), f"{registers} registers:\n{k.source}"
        if not {"sin", "cos"} & {
            n.op for n in k.program.nodes
        }:  # these have a table of 2/π for arguments that are huge
            assert (stack, local) == (0, 0), f"spills:\n{k.source}"
            assert not [op for op in used if op.startswith(("LDL", "STL"))], k.source
        if k.name == STEP:
            wide = [sum(n for op, n in used.items() if op.startswith(verb) and ".128" in op) for verb in ("LDG", "STG")]
            assert tuple(wide) == expected(k) or (INEXACT & {n.op for n in k.program.nodes}), k.source


def resources(path: Path) -> dict[int, tuple[int, int, int]]:
    """Return registers, stack and local memory of each kernel of a binary."""
    out = subprocess.run([tool("cuobjdump"), "--dump-resource-usage", path], capture_output=True, text=True, check=True)
    parts = owners(out.stdout + out.stderr, r"Function _ZN\d+k(\d+)\d+xopt_[^:]*:")
    number = lambda body, name: int(re.search(rf"{name}:(\d+)", body)[1])  # type: ignore[index]
    return {i: (number(x, "REG"), number(x, "STACK"), number(x, "LOCAL")) for i, x in parts.items()}


def instructions(path: Path) -> dict[int, list[str]]:
    """Return the machine instructions of each kernel of a binary."""
    out = subprocess.run([tool("nvdisasm"), "-c", path], capture_output=True, text=True, check=True)
    parts = owners(out.stdout, r"\.section\s+\.text\._ZN\d+k(\d+)\d+xopt_")
    opcode = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", re.MULTILINE)
    return {i: opcode.findall(body) for i, body in parts.items()}


def contracted(ptx: str) -> list[str]:
    """Return what has no place in a kernel of + - × ÷ √: contraction, flushed denormals, approximations."""
    return re.findall(r"\b(?:fma|mad)\.r\w[\w.]*|\b[\w.]+\.(?:ftz|approx)\b[\w.]*", ptx)


@pytest.mark.parametrize("batch", range(len(BATCHES)))
def test_arithmetic_is_that_of_the_standard(batch: int) -> None:
    exact = [k for k in BATCHES[batch] if not {n.op for n in k.program.nodes} & INEXACT]
    ptx = compiled(joined(exact), "compute_90").decode()
    assert contracted(ptx) == []
    if any(n.op == "divide" for k in exact for n in k.program.nodes):
        assert re.search(r"div\.rn\.f(32|64)", ptx)


def test_what_the_checks_see(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Break what they guard: contraction and flushing on, registers that are too few."""
    [kernel] = kernels(xopt.AdamW(), "float32")
    monkeypatch.setattr(_driver, "OPTIONS", ("--std=c++17", "--fmad=true"))
    assert any("fma.rn.f32" in x for x in contracted(compiled(kernel.source, "compute_90").decode()))
    monkeypatch.setattr(_driver, "OPTIONS", ("--std=c++17", "--fmad=false", "--ftz=true"))
    assert any("ftz" in x for x in contracted(compiled(kernel.source, "compute_90").decode()))
    path = tmp_path / "k.cubin"
    path.write_bytes(compiled(joined([kernel]).replace("(256, 2)", "(256, 8)"), "sm_90"))
    assert max(resources(path)[0][1:]) > 0, "spills are seen"
    narrow = kernel._replace(source=kernel.source.replace("(const uint4*)from + (k * count + i)", "(uint4*)from + k"))
    path.write_bytes(compiled(joined([narrow]).replace("uint4", "uint2"), "sm_90"))
    assert not any(".128" in op for op in instructions(path)[0] if op.startswith("LDG"))


def test_tools(tmp_path: Path) -> None:
    for gpu in ARCHS:
        compiled(_templates.TOOLS, gpu)
    ptx = compiled(_templates.TOOLS, "compute_90").decode()
    assert contracted(ptx) == []
    assert ".local" not in ptx


def test_arguments_fit() -> None:
    """Every device takes 4 KiB of arguments."""
    assert 8 * (2 + _templates.UPLOAD) <= 4096
    assert 8 * (5 + 3 * _codegen.SCALARS) <= 4096
    assert max(len(k.program.scalars) for k in KERNELS) <= _codegen.SCALARS


def test_an_error_of_the_compiler_is_shown() -> None:
    with pytest.raises(RuntimeError, match=r"NVRTC could not compile for sm_90:\n(.|\n)*nonsense"):
        compiled("nonsense;", "sm_90")


@pytest.mark.parametrize(
    ("own", "known", "want"),
    [(90, [75, 80, 90], "sm_90"), (121, [75, 90, 120], "compute_120"), (89, [80, 90], "compute_80")],
)
def test_arch(own: int, known: list[int], want: str) -> None:
    assert arch(own, known) == want


def test_gpu_that_is_too_old() -> None:
    with pytest.raises(RuntimeError, match=r"compute capability 6\.1, but this NVRTC compiles for 7\.5 and newer"):
        arch(61, [75, 80])


def test_same_text_for_all_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of a hyperparameter compiles nothing: the text does not have it."""
    made: list[Any] = [kernels(xopt.Adam(lr=lr, b1=b1), "float32")[0] for lr, b1 in [(0.1, 0.9), (7.0, 0.0)]]
    assert made[0] is made[1]
    assert made[0].source != kernels(xopt.Adam(eps_mode="inside"), "float32")[0].source
