"""Components in front of a rule and behind it."""

from __future__ import annotations

from typing import Any

from catalog.links import Link

import xopt

SGD = xopt.SGD(lr=0.1, momentum=0.9)


def chained(row: Link, options: dict[str, Any], rule: Any = SGD) -> Any:
    link = row.link(**options)
    return xopt.chain(link, rule) if row.place == "front" else xopt.chain(rule, link)
