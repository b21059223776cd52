"""Arrays of the libraries that take part: made from NumPy's, read back, and waited for."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.problems import Array, Problem, need, numpy_dtype


class Library:
    """Arrays of NumPy, and of a library that is like it.

    Parameters
    ----------
    device
        ``"cpu"`` or ``"cuda"``.
    problem
        What will be computed: its dtype and threads.
    """

    xp: Any

    def __init__(self, device: str, problem: Problem) -> None:
        self.device, self.dtype, self.threads = device, problem.dtype, problem.threads

    def new(self, x: Array) -> Array:
        """Return a new array with the values of a NumPy array."""
        raise NotImplementedError

    def read(self, x: Array) -> Array:
        """Return the values as NumPy float64."""
        raise NotImplementedError

    def wait(self, arrays: list[Array]) -> None:
        """Wait until the device has computed these."""


class NumPy(Library):
    """NumPy."""

    xp = np

    def new(self, x: Array) -> Array:
        return x.copy()

    def read(self, x: Array) -> Array:
        return x.astype("float64")


class CuPy(Library):
    """CuPy, on the current device."""

    def __init__(self, device: str, problem: Problem) -> None:
        super().__init__(device, problem)
        self.xp = need("cupy")

    def new(self, x: Array) -> Array:
        return self.xp.array(x)

    def read(self, x: Array) -> Array:
        return self.xp.asnumpy(x).astype("float64")

    def wait(self, arrays: list[Array]) -> None:
        self.xp.cuda.get_current_stream().synchronize()


class Torch(Library):
    """PyTorch."""

    def __init__(self, device: str, problem: Problem) -> None:
        super().__init__(device, problem)
        self.xp = need("torch")
        if device == "cpu":
            self.xp.set_num_threads(self.threads)

    def new(self, x: Array) -> Array:
        if self.dtype == "bfloat16":  # torch does not know NumPy's
            return self.xp.from_numpy(x.view("int16").copy()).view(self.xp.bfloat16).to(self.device)
        return self.xp.from_numpy(x.copy()).to(self.device)

    def read(self, x: Array) -> Array:
        return x.detach().to("cpu", self.xp.float64).numpy()

    def wait(self, arrays: list[Array]) -> None:
        if self.device == "cuda":
            self.xp.cuda.synchronize()


class Jax(Library):
    """JAX."""

    def __init__(self, device: str, problem: Problem) -> None:
        super().__init__(device, problem)
        jax = need("jax")
        jax.config.update("jax_enable_x64", problem.dtype == "float64")
        self.jax, self.xp = jax, jax.numpy

    def new(self, x: Array) -> Array:
        return self.jax.device_put(x.copy()).block_until_ready()  # to the default device: bound to none, as a user's

    def read(self, x: Array) -> Array:
        return np.asarray(x).astype(numpy_dtype(self.dtype)).astype("float64")

    def wait(self, arrays: list[Array]) -> None:
        self.jax.block_until_ready(arrays)
