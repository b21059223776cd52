"""What this installation found, and which runner serves which library."""

from __future__ import annotations

from xopt._arrays import KNOWN, named
from xopt._engine.runners import threads as _threads
from xopt._public import public


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
    found = sorted(map(named, KNOWN), key=lambda library: (not library.host, library.name))
    rows = [(library.name, library.packages, library.served) for library in found]
    for module, packages, runner in [*rows, ("llvmlite", ("llvmlite",), "llvm")]:
        if util.find_spec(module) is not None:
            versions = [_version(package) for package in packages]
            version = next((v for v in versions if v != "installed"), "installed")
            print(f"  {module:17} {version:14} runner: {runner}")
        else:
            print(f"  {module:17} not installed")
    print(f"  second-level cache of {_threads.cache() >> 10:,} KiB, up to {_threads.threads()} threads")
