"""What this installation found, and which runner serves which library."""

from __future__ import annotations

from typing import Any

from xopt._arrays import KNOWN, named
from xopt._engine.runners import threads as _threads
from xopt._public import public


def _version(package: str) -> str:
    from importlib import metadata  # 20 ms that `import xopt` does without

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "installed"


def configuration() -> dict[str, Any]:
    """Return what was found, and which runner serves which library, as JSON has it. Imports nothing."""
    import platform
    from importlib import util

    found = sorted(map(named, KNOWN), key=lambda library: (not library.host, library.name))
    rows = [(library.name, library.packages, library.served) for library in found]
    libraries = []
    for module, packages, runner in [*rows, ("llvmlite", ("llvmlite",), "llvm")]:
        version = None
        if util.find_spec(module) is not None:
            versions = [_version(package) for package in packages]
            version = next((v for v in versions if v != "installed"), "installed")
        libraries.append({"name": module, "version": version, "runner": runner})
    return {
        "xopt": _version("xopt-array"), "python": platform.python_version(),
        "system": platform.system(), "machine": platform.machine(),
        "libraries": libraries, "cache": _threads.cache(), "threads": _threads.threads(),
    }  # fmt: skip


@public
def show_config() -> None:
    """Print what was found and which runner serves which library. Imports nothing.

    ``python -m xopt config`` prints the same.

    Examples
    --------
    >>> import xopt
    >>> xopt.show_config()  # doctest: +ELLIPSIS
    xopt ...
    """
    found = configuration()
    print(f"xopt {found['xopt']}, Python {found['python']}, {found['system']} {found['machine']}")
    for x in found["libraries"]:
        if x["version"] is None:
            print(f"  {x['name']:17} not installed")
        else:
            print(f"  {x['name']:17} {x['version']:14} runner: {x['runner']}")
    print(f"  second-level cache of {found['cache'] >> 10:,} KiB, up to {found['threads']} threads")
