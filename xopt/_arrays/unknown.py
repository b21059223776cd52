"""A library that nobody here has named: it works by the standard, and what that leaves open it is asked."""

from __future__ import annotations

from xopt._arrays.library import Array, Library, NDArray, exported


class Unknown(Library):
    """An array library that is known by its arrays alone: whether they can be looked at and written into, for one."""

    known = False
    lazy = True  # until an array was looked at

    def meet(self, x: Array) -> None:
        """Try on an array of one element; what holds of one class of arrays is said of the library."""
        try:
            xp = x.__array_namespace__()
            rows = xp.zeros((1, 1), dtype=xp.float32, **self.beside(x))
            if not hasattr(xp, "uint32"):
                self.random_dtype = "int64"
            self.lazy = self.lazy and float(rows[0, 0]) != 0
            rows[0, :][...] = xp.ones((1,), dtype=xp.float32, **self.beside(x))
            self.writes = self.writes or float(rows[0, 0]) == 1
        except Exception:  # in whichever way it refuses
            return

    def phantom(self, x: Array) -> NDArray | None:
        return exported(x) if self.writes else None
