"""A Ctrl-C in the middle of a step."""

from __future__ import annotations

from typing import Any

import pytest

from xopt._engine.runners import eager


def interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupt the eager runner once, where it stores the second array from now on."""
    stores: list[Any] = []

    def stored(work: Any, home: Any, x: Any, real: Any = eager._stored) -> Any:
        stores.append(home)
        if len(stores) == 2:
            raise KeyboardInterrupt
        return real(work, home, x)

    monkeypatch.setattr(eager, "_stored", stored)
