"""Where the components of a chain may stand."""

from __future__ import annotations

from xopt.rule._component import Component
from xopt.rule._steady import check_weights


def check_order(links: list[Component], at: int) -> None:
    """Refuse a component that cannot stand where it does."""
    rule = links[at]
    of, landed = type(rule).__name__, next((type(part).__name__ for part in all_in(rule) if part.on_params), "")
    for i, link in enumerate(links):
        name, places = type(link).__name__, link._stands()
        if i == at:
            continue
        if not places:
            raise TypeError(f"chain: {name} is no component of a chain; it takes a function that returns gradients")
        if i < at and "front" not in places:
            why = {"after": "is given the new parameters", "behind": "works on the step of the rule"}[places[0]]
            raise ValueError(f"chain: {name} {why}, so it must stand behind {of}, not in front")
        if i > at and places == ("front",):
            raise ValueError(f"chain: {name} changes the gradient, so it must stand in front of {of}, not behind")
        if landed and "after" not in places:
            raise ValueError(
                f"chain: {name} changes the step, but {landed} in front of it is given the new parameters: put {name} "
                f"directly behind the rule"
            )
        landed = landed or (name if "after" in places else "")
        link._check_before(rule)
    check_weights(links)


def all_in(part: Component) -> list[Component]:
    """Return the components inside one, and those inside these."""
    return [x for inner in part._inner() for x in (inner, *all_in(inner))]
