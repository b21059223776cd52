"""What a result was measured with: hardware and versions, without the names of machines, people and paths."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import time
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "numpy", "scipy", "scikit-learn", "numba", "llvmlite",
    "ml_dtypes", "array-api-compat", "optree", "torch", "jax", "jaxlib",
    "optax", "keras", "thinc", "cupy-cuda12x", "cupy-cuda13x", "cuda-core",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Return the versions of Python, xopt and the packages of the benchmark that are installed."""
    import xopt

    found = {"python": platform.python_version(), "xopt": xopt.__version__}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def hardware(device: str) -> dict[str, Any]:
    """Return the processor, its cores that may be used, its caches in bytes, the memory in bytes; and the GPU."""
    found: dict[str, Any] = {"cpu": _cpu(), "cores": cores(), "caches": _caches(), "memory": _memory()}
    found["system"] = f"{platform.system()} {platform.machine()}"
    if device == "cuda":
        import cupy

        about = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
        found["gpu"] = about["name"].decode()
        found["gpu memory"] = int(about["totalGlobalMem"])
        found["cuda driver"] = int(cupy.cuda.runtime.driverGetVersion())
    return found


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def short(found: dict[str, Any]) -> str:
    """Return a name for a file: ``intel-xeon-2-cores``, ``nvidia-h100``."""
    words = str(found.get("gpu") or f"{found['cpu']} {found['cores']} cores")
    words = re.sub(r"\((R|TM|C)\)|\bCPU\b|\bProcessor\b|@.*?(?= \d+ cores|$)", " ", words, flags=re.IGNORECASE)
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _caches() -> dict[str, int]:
    """Return the sizes in bytes of the caches that the first core sees."""
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind = (index / "level").read_text().strip(), (index / "type").read_text().strip()
        size = (index / "size").read_text().strip()
        if kind != "Instruction" and size.endswith("K"):
            found[f"L{level}"] = 1024 * int(size[:-1])
    return found


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError):
        return 0


class Others:
    """How busy other processes keep the machine, from when this is made."""

    def __init__(self) -> None:
        self.start = self._now()

    def cores(self) -> float | None:
        """Return how many cores others have used on average; None where the system does not say."""
        now = self._now()
        if now is None or self.start is None:
            return None
        wall, busy, own = (b - a for a, b in zip(self.start, now, strict=True))
        return round(max(0.0, (busy - own) / wall), 2)

    @staticmethod
    def _now() -> tuple[float, float, float] | None:
        """Return the time, what all cores have worked since boot and what this process has, in seconds."""
        stat = Path("/proc/stat")
        if not stat.exists():
            return None
        user, nice, system, _, _, *rest = map(int, stat.read_text().split(maxsplit=9)[1:9])
        own = os.times()
        return time.monotonic(), (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK"), own.user + own.system
