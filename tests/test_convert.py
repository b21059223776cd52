"""`python -m xopt convert`: files of torch and checkpoints, turned into each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xopt

pytestmark = pytest.mark.needs("torch")
torch = pytest.importorskip("torch")

RULE = 'AdamW(lr=0.05, like="torch")'


def take_step(model: Any, opt: Any) -> None:
    opt.zero_grad()
    (model(model[0].weight) ** 2).sum().backward()
    opt.step()


def trained(named: bool) -> tuple[Any, Any]:
    """Train a model of torch, and save it and its optimizer."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
    opt = torch.optim.AdamW(model.named_parameters() if named else model.parameters(), lr=0.05)
    for _ in range(3):
        take_step(model, opt)
    torch.save(model.state_dict(), "model.pt")
    torch.save(opt.state_dict(), "optimizer.pt")
    return model, opt


@pytest.mark.parametrize("named", [True, False])
def test_there_and_back(named: bool, convert: Any) -> None:
    model, theirs = trained(named)
    code, out, err = convert("optimizer.pt", "run.safetensors", "--rule", RULE, "--model", "model.pt")
    assert (code, out, err) == (0, "run.safetensors: the state of 4 parameters\n", "")
    ours = {n: torch.zeros_like(x) for n, x in model.state_dict().items()}
    opt = xopt.Optimizer(ours, xopt.AdamW(lr=0.05, like="torch"))
    opt.load("run.safetensors")
    assert opt.steps_taken == 3
    take_step(model, theirs)
    opt.step({n: p.grad for n, p in model.named_parameters()})
    for n, p in model.named_parameters():
        torch.testing.assert_close(ours[n], p.detach(), rtol=0, atol=1e-6)

    opt.save("later.safetensors")
    names = [] if named else ["--model", "model.pt"]
    code, out, _ = convert("later.safetensors", "back.pt", "--rule", RULE, "--like", "optimizer.pt", *names, "--json")
    assert code == 0
    assert json.loads(out) == {"from": "later.safetensors", "to": "back.pt", "parameters": 4}
    after = torch.optim.AdamW(model.named_parameters() if named else model.parameters(), lr=1.0)
    after.load_state_dict(torch.load("back.pt", weights_only=True))
    assert after.param_groups[0]["lr"] == 0.05
    for p, own in theirs.state.items():
        for n, x in own.items():
            torch.testing.assert_close(after.state[p][n], x, rtol=1e-5, atol=1e-7)


def test_what_does_not_fit(convert: Any) -> None:
    model, _ = trained(False)
    torch.save({**model.state_dict(), "running": torch.ones(1)}, "buffers.pt")
    torch.save(3, "three.pt")
    Path("text.pt").write_text("no pickle", encoding="utf-8")
    there = ["x.safetensors", "--model", "model.pt", "--rule"]
    for words, text in [
        (
            ["optimizer.pt", "x.safetensors", "--model", "buffers.pt", "--rule", RULE],
            "5 tensors, but the optimizer has 4",
        ),
        (
            ["optimizer.pt", "x.safetensors", "--model", "three.pt", "--rule", RULE],
            "three.pt: it is no state_dict of a model",
        ),
        (["three.pt", *there, RULE], "three.pt: it is no state_dict of an optimizer"),
        (["model.pt", *there, RULE], "it has no param_groups"),
        (["text.pt", *there, RULE], "text.pt: torch cannot load it"),
        (["none.pt", *there, RULE], "No such file"),
        (["optimizer.pt", *there, "Lion()"], "Lion"),
        (["optimizer.pt", *there, 'SGD(like="torch")'], "exp_avg"),
    ]:
        code, out, err = convert(*words)
        assert (code, out) == (2, ""), words
        assert text in err, words
        assert err.startswith("xopt convert: ")
        assert err.count("\n") == 1
        assert not Path("x.safetensors").exists()


def test_groups_without_names_are_refused(convert: Any) -> None:
    """torch numbers parameters group by group, and nobody knows which these are."""
    model = torch.nn.Sequential(torch.nn.LayerNorm(4), torch.nn.LayerNorm(4))
    torch.save(model.state_dict(), "model.pt")
    for named in (False, True):
        every = list(model.named_parameters())
        groups = [[x for x in every if x[0].endswith(end)] for end in ("weight", "bias")]
        opt = torch.optim.AdamW([{"params": own if named else [p for _, p in own]} for own in groups], lr=0.05)
        (model(torch.arange(4.0)) ** 2).sum().backward()
        opt.step()
        torch.save(opt.state_dict(), "optimizer.pt")
        code, _, err = convert("optimizer.pt", "x.safetensors", "--rule", RULE, "--model", "model.pt")
        if named:
            assert code == 0
            with xopt.checkpoint._files.opened("x.safetensors", True) as file:
                for n, p in every:
                    np.testing.assert_array_equal(file.read(f"state/0.adamw.m/{n}"), opt.state[p]["exp_avg"].numpy())
        else:
            assert code == 2
            assert "2 groups and no names of its parameters" in err


def test_what_does_not_fit_on_the_way_back(convert: Any) -> None:
    trained(False)
    assert convert("optimizer.pt", "x.safetensors", "--rule", RULE, "--model", "model.pt")[0] == 0
    code, _, err = convert("x.safetensors", "y.pt", "--rule", RULE, "--like", "optimizer.pt")
    assert code == 2
    assert "--model: missing, but it is needed: the optimizer has no names of its parameters" in err
    opt = xopt.Optimizer({"w": np.ones(2)}, xopt.AdamW(like="torch"))
    opt.save("bare.safetensors", only_state=True)
    code, _, err = convert("bare.safetensors", "y.pt", "--rule", RULE, "--like", "optimizer.pt", "--model", "model.pt")
    assert code == 2
    assert "it has no parameters; save without only_state" in err
    assert not Path("y.pt").exists()
