"""What this installation found, and which runner serves which library."""

from __future__ import annotations

from xopt._engine.runners import threads as _pool
from xopt._public import public

_LIBRARIES = {
    "numpy": ("numpy", "numba if installed, else tiled"),
    "cupy": ("cupy", "cuda"),
    "torch": ("torch", "like NumPy on CPU, cuda on GPUs, eager elsewhere"),
    "jax": ("jax", "eager, under jit in Optimizer"),
    "dask": ("dask", "eager"),
    "array_api_strict": ("array-api-strict", "eager"),
    "numba": ("numba", "numba"),
}


def _version(package: str) -> str:
    from importlib import metadata  # 20 ms that `import xopt` does without

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "installed"


@public
def show_config() -> None:
    """Print what was found and which runner serves which library. Imports nothing.

    Examples
    --------
    >>> import xopt
    >>> xopt.show_config()  # doctest: +ELLIPSIS
    xopt ...
    """
    import platform
    from importlib import util

    print(
        f"xopt {_version('xopt-array')}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    )
    for module, (package, runner) in _LIBRARIES.items():
        if util.find_spec(module) is not None:
            version = _version(package)
            if module == "cupy" and version == "installed":
                wheels = (_version(f"cupy-cuda{n}x") for n in (13, 12))
                version = next((v for v in wheels if v != "installed"), version)
            print(f"  {module:17} {version:14} runner: {runner}")
        else:
            print(f"  {module:17} not installed")
    print(f"  second-level cache of {_pool.cache() >> 10:,} KiB, up to {_pool.threads()} threads")
