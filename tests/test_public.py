"""What is public: the names, where they say that they are, and that the source and the examples are found there."""

from __future__ import annotations

import ast
import copy
import doctest
import importlib
import inspect
import pickle
import pickletools
import pydoc
import typing
from pathlib import Path
from typing import Any

import catalog
import folders
import numpy as np
import pytest

import xopt
import xopt.rule

MODULES = {
    "xopt": xopt,
    **{f"xopt.{n}": getattr(xopt, n) for n in ("distributed", "nn", "proximal", "random", "rule", "schedules")},
}


def names(module: Any) -> list[str]:
    return [n for n in getattr(module, "__all__", vars(module)) if not n.startswith("_")]


NAMES = [f"{where}.{n}" for where, module in MODULES.items() for n in names(module)]
THINGS = {name: pydoc.locate(name) for name in NAMES}
THINGS = {name: x for name, x in THINGS.items() if inspect.isclass(x) or inspect.isfunction(x)}
THINGS = {name: x for name, x in THINGS.items() if x is not Any}
CLASSES = {name: x for name, x in THINGS.items() if inspect.isclass(x)}


def test_the_public_names_are_those_of_the_list() -> None:
    """Who adds or removes a name changes tests/public_names.txt with it; a rule has its row of the catalogue."""
    listed = Path(__file__).with_name("public_names.txt").read_text(encoding="utf-8").split()
    rules = {f"xopt.{row.rule.__name__}" for row in catalog.ROWS}
    assert listed == sorted({*NAMES} - rules)
    assert rules <= {*NAMES}


def private(data: bytes) -> set[str]:
    """Return the modules of xopt that a pickle names and that no user imports."""
    texts = {x for _, arg, _ in pickletools.genops(data) if isinstance(arg, str) for x in arg.split()}
    return {x for x in texts if x.startswith("xopt") and x not in MODULES}


@pytest.mark.parametrize(("name", "thing"), THINGS.items(), ids=[*THINGS])
def test_public_things_say_where_they_are_found(name: str, thing: Any) -> None:
    where = name.rpartition(".")[0]
    assert thing.__module__ == ("xopt" if thing.__name__ in xopt.__all__ and where == "xopt.rule" else where)
    assert getattr(MODULES[thing.__module__], thing.__name__) is thing
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        data = pickle.dumps(thing, protocol)
        assert pickle.loads(data) is thing
        assert not private(data)
    assert copy.deepcopy(thing) is thing
    if inspect.isclass(thing):
        assert repr(thing) == f"<class '{thing.__module__}.{thing.__name__}'>"
    assert f" in module {thing.__module__}" in pydoc.render_doc(thing).partition("\n")[0]


OLD = {
    "xopt.rules.adam\nAdam": xopt.Adam,
    "xopt.transforms._clipping\nClipByNorm": xopt.ClipByNorm,
    "xopt.rule\nState": xopt.State,
    "xopt.rule._rule\nChain": xopt.Chain,
    "xopt.optimizer\nOptimizer": xopt.Optimizer,
    "xopt.solvers._minimize\nOptimizeResult": xopt.OptimizeResult,
    "xopt.checkpoint._safetensors\nCheckpointError": xopt.CheckpointError,
    "xopt._arrays.paths\nno_decay_1d": xopt.no_decay_1d,
    "xopt.schedules._curves\ncosine": xopt.schedules.cosine,
}


@pytest.mark.parametrize(("text", "thing"), OLD.items())
def test_pickles_with_the_old_places_load(text: str, thing: Any) -> None:
    assert pickle.loads(f"c{text}\n.".encode()) is thing


def test_pickles_of_objects() -> None:
    old = (
        b"\x80\x02cxopt.rules.adam\nAdam\n)\x81}(X\x02\x00\x00\x00lrcxopt.schedules._schedule\n_rebuild\n"
        b"X\x08\x00\x00\x00constantG?\xb9\x99\x99\x99\x99\x99\x9a\x85}\x87RX\x06\x00\x00\x00_given}ub."
    )
    assert pickle.loads(old).lr == xopt.schedules.constant(0.1)
    masked, groups = (pickle.loads(f"cxopt.transforms._{n}\n_{n}\n.".encode()) for n in ("masked", "groups"))
    assert masked(xopt.L1(0.1), "b", "error") == xopt.Masked(xopt.L1(0.1), "b")
    assert groups(xopt.SGD(), [("b", xopt.Freeze)], "ignore") == xopt.Groups(
        xopt.SGD(), ("b", xopt.Freeze), unmatched="ignore"
    )
    rule = xopt.chain(
        xopt.ClipByGlobalNorm(1.0),
        xopt.Masked(xopt.AddDecay(0.1), xopt.no_decay_1d),
        xopt.Adam(lr=2 * xopt.schedules.cosine(0.1, steps=9)),
    )
    error = xopt.CheckpointError("here", ["missing"])
    groups = xopt.Groups(xopt.Adam(), ("b", xopt.Freeze), (xopt.no_decay_1d, {"lr": 0.1}), unmatched="ignore")
    made = (xopt.Optimizer(np.ones(2), rule), rule.init(np.ones(2)), xopt.OptimizeResult(x=1))
    for x in (rule, groups, error, *made):
        data = pickle.dumps(x)
        assert not private(data)
        assert repr(pickle.loads(data)) == repr(x)


@pytest.mark.parametrize(("name", "thing"), CLASSES.items(), ids=[*CLASSES])
def test_what_is_read_of_a_public_class(name: str, thing: Any) -> None:
    """`inspect.getsource` finds no class by its public place, but by `__wrapped__`; IPython's `??` unwraps."""
    if thing.__module__ not in ("xopt.distributed", "xopt.nn", "xopt.random"):
        source = inspect.getsource(thing.__wrapped__)
        assert f"\nclass {thing.__name__}" in f"\n{source}".replace("\n@public", "")
    assert not any(isinstance(x, str | typing.ForwardRef) for x in inspect.get_annotations(thing).values())
    hints = typing.get_type_hints(thing)
    assert {*inspect.get_annotations(thing)} <= {*hints}
    for n, x in vars(thing).items():
        if inspect.isfunction(x) and x.__module__.startswith("xopt"):
            assert f"def {x.__name__}(" in inspect.getsource(x), n


def test_signatures_and_methods_of_public_classes() -> None:
    assert "lr: 'float'" not in str(inspect.signature(xopt.Adam))
    assert [*inspect.signature(xopt.Adam).parameters][:4] == ["lr", "b1", "b2", "eps"]
    assert [*inspect.signature(xopt.Optimizer).parameters][:2] == ["params", "rule"]
    assert [*inspect.signature(xopt.State).parameters] == ["step", "slots", "carry"]
    assert "m = h.b1 * m" in inspect.getsource(xopt.Adam.update)
    assert typing.get_type_hints(xopt.Adam)["amsgrad"] is bool


def test_classes_of_users_are_where_they_are_written() -> None:
    class Adam(xopt.Adam):
        """The name of another."""

    assert Adam.__module__ == __name__
    assert not hasattr(Adam, "__wrapped__")
    assert not hasattr(xopt.Adam(), "__wrapped__")
    assert inspect.getsource(Adam).split() == ["class", "Adam(xopt.Adam):", '"""The', "name", "of", 'another."""']


def written() -> dict[str, str]:
    """Return in which module each docstring with an example is; adapters/test_examples.py has the adapters."""
    found = {}

    def look(node: Any, module: str, name: str) -> None:
        if ">>>" in (ast.get_docstring(node) or ""):
            found[name] = module
        for inner in node.body:
            if isinstance(inner, ast.ClassDef | ast.FunctionDef):
                look(inner, module, f"{name}.{inner.name}")

    for name, tree in folders.modules().items():
        module = f"xopt.{name}".rstrip(".")
        if not name.startswith("adapters."):
            look(tree, module, module)
    return found


def test_every_example_is_found_once_and_where_it_is_written() -> None:
    """This is how pytest collects them; conftest.py tells doctest where a public class is written."""
    finder, found = doctest.DocTestFinder(), []
    for module in {*written().values()} | {*MODULES}:
        loaded = importlib.import_module(module)
        assert loaded.__file__ is not None
        for test in finder.find(loaded, module):
            if test.examples:
                found.append(test.name)
                assert test.filename == loaded.__file__
                if inspect.isclass(pydoc.locate(test.name)):
                    lines = Path(loaded.__file__).read_text(encoding="utf-8").splitlines()
                    first = test.examples[0]
                    assert lines[int(test.lineno or 0) + first.lineno].strip() == f">>> {first.source}".split("\n")[0]
    assert sorted(found) == sorted(written())
    assert len(found) > 120
