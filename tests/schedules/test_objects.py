"""Schedules as objects: combined, compared, pickled, shown, drawn; and what they refuse."""

from __future__ import annotations

import importlib
import math
import operator
import pickle
import sys

import numpy as np
import pytest
from support.schedules import EVERY, half

import xopt
from xopt import schedules as s


def test_arithmetic() -> None:
    a, b = s.warmup(1.0, steps=4), s.constant(2.0)
    for name in ("add", "sub", "mul", "truediv", "pow"):
        operation = getattr(operator, name)
        for x, y in ((a, b), (a, 3.0), (3, a), (a, np.float64(3)), (np.float64(3), a), (a, half), (half, a)):
            got, value = operation(x, y), lambda z: z(3) if callable(z) else z
            assert type(got) is s.Schedule
            assert got(3) == operation(value(x), value(y))
    assert (-a)(3) == -0.5
    assert (1 / a)(1) == math.inf  # as it is for arrays; no rule takes it
    assert math.isnan(((-b) ** 0.5)(1))
    for wrong in ("0.1", None, True, [1.0], 1j, np.ones(3)):
        with pytest.raises(TypeError, match="operand"):
            a / wrong
        with pytest.raises(TypeError, match="operand"):
            wrong - a
    with pytest.raises(TypeError, match=r"an operand of \* is nan, but it must be a finite number"):
        a * math.nan
    with pytest.raises(ValueError, match=r"SGD.lr: inf.*the schedule returned this at step 1"):
        xopt.SGD(lr=1 / a).apply(np.ones(1), np.ones(1), xopt.SGD().init(np.ones(1)))


def test_arithmetic_is_shown_as_it_was_written() -> None:
    for text in (
        "constant(1.0) + constant(2.0) + 3",
        "constant(1.0) + (constant(2.0) + 3)",
        "1 - constant(1.0) - constant(2.0)",
        "1 - (constant(1.0) - constant(2.0))",
        "(constant(1.0) + 1) * constant(2.0) / (3 * constant(4.0))",
        "-(constant(1.0) + 1)",
        "-constant(1.0) ** 2",
        "(-constant(1.0)) ** 2",
        "(constant(1.0) ** 2) ** 3",
        "constant(1.0) ** 2 ** constant(3.0)",
        "(-0.5) ** constant(2.0)",
        "constant(2.0) * -0.5 + -1",
        "0.1 * warmup(1.0, steps=3) + 0.01",
        "join((constant(1.0), 2 * constant(1.0)), (3,))",
    ):
        made = eval(text, {**vars(s)})
        assert repr(made) == text
        assert eval(repr(made), {**vars(s)}) == made


def test_schedules_compare_hash_pickle_and_show() -> None:
    a, b = s.cosine(0.1, steps=10), s.cosine(np.float64(0.1), steps=np.int64(10))
    assert a == b
    assert hash(a) == hash(b)
    assert a != s.cosine(0.1, steps=11)
    assert a != s.warmup(0.1, steps=10)
    assert a + 1 == b + 1 != 1 + a
    assert len({a, b, a + 1, b + 1, 1 + a, -a, a - 1, a * 1, 1 * a}) == 7
    for x in EVERY:
        assert hash(x) == hash(x)
        if repr(half) not in repr(x):
            assert eval(repr(x), {**vars(s)}) == x
            again = pickle.loads(pickle.dumps(x))
            assert again == x
            assert again(7) == x(7)
            assert repr(again) == repr(x)
    assert len(set(EVERY)) == len(EVERY)
    assert xopt.Adam(lr=a) == xopt.Adam(lr=b)
    assert "cosine(0.1, steps=10)" in repr(xopt.Adam(lr=b))


def test_bad_arguments() -> None:
    for make, text in [
        (lambda: s.cosine(0.1, steps=0), "schedules.cosine: steps is 0, but it must be a positive number of steps"),
        (lambda: s.cosine(0.1, steps=9, power=0), "schedules.cosine: power is 0, but it must be positive"),
        (lambda: s.step(0.1, every=-1, factor=0.5), "every is -1"),
        (lambda: s.step(0.1, every=1, factor=-0.5), "schedules.step: factor is -0.5, but it must not be negative"),
        (lambda: s.exponential(0.1, rate=-1), "rate is -1, but it must not be negative"),
        (lambda: s.warmup_cosine(0.1, warmup=0, steps=-5), "steps is -5"),
        (lambda: s.warmup_cosine(0.1, warmup=-1, steps=5), "warmup is -1, but it must not be negative"),
        (lambda: s.warmup_cosine(0.1, warmup=5, steps=5), "warmup is 5, but it must be less than steps, 5"),
        (lambda: s.wsd(0.1, warmup=5, steps=9, cooldown=5), "warmup 5 and cooldown 5 are more steps together"),
        (lambda: s.wsd(0.1, warmup=5, steps=9, cooldown=0), "cooldown is 0, but it must be a positive number of"),
        (lambda: s.wsd(0.1, warmup=1, steps=9, cooldown=2, shape="constant"), "shape is 'constant', but it must be"),
        (lambda: s.one_cycle(0.1, steps=9, warmup=9), "warmup is 9, back None and steps 9, but it must be warmup <"),
        (lambda: s.one_cycle(0.1, steps=9, warmup=3, back=3), "must be warmup < back ≤ steps"),
        (lambda: s.one_cycle(0.1, steps=9, warmup=3, back=10), "must be warmup < back ≤ steps"),
        (lambda: s.one_cycle(0.1, steps=9, shape="1-sqrt"), "shape is '1-sqrt', but it must be one of 'linear', 'cos"),
        (lambda: s.cyclic(0.1, peak=1, up=0), "up is 0"),
        (lambda: s.cyclic(0.1, peak=1, up=1, down=0), "down is 0"),
        (lambda: s.cosine_restarts(0.1, steps=4, growth=0.5), "growth is 0.5, but it must be at least 1"),
        (lambda: s.inverse_sqrt(0.1, warmup=0), "inverse_sqrt: timescale must be given where warmup is 0"),
        (lambda: s.inverse_sqrt(0.1, warmup=0, timescale=0), "timescale is 0"),
        (lambda: s.noam(512, warmup=0), "noam: warmup is 0, but it must be a positive number of steps"),
        (lambda: s.noam(0, warmup=10), "d_model is 0, but it must be positive"),
        (lambda: s.polynomial(0.1, end=0, steps=4, cycle=1), "cycle is 1, but it must be one of True, False"),
        (lambda: s.piecewise([0.1, 0.2], [3], shape="cubic"), "shape is 'cubic', but it must be one of 'constant', "),
        (lambda: s.piecewise([0.1, 0.2], [3, 4]), "schedules.piecewise: 2 values need 1 boundaries, got 2"),
        (lambda: s.piecewise([0.1, 0.2, 0.3], [4, 3]), r"boundaries \(4, 3\) must be positive and rise"),
        (lambda: s.multi_step(0.1, boundaries=[0, 3], factor=0.1), "must be positive and rise"),
        (lambda: s.join([s.constant(1.0)], [3]), "1 schedules need 0 boundaries, got 1"),
        (lambda: s.join([s.constant(1.0)] * 3, [3, 3]), "must be positive and rise"),
        (lambda: s.join([s.constant(1.0)] * 2, [0]), "must be positive and rise"),
        (lambda: s.clip(half, low=1.0, high=0.5), "clip: low is 1.0, but it must not be more than high, 0.5"),
        (lambda: s.delay(half, steps=0), "steps is 0"),
        (lambda: s.constant(1.0).plot(0), "Schedule.plot: steps is 0"),
    ]:
        with pytest.raises(ValueError, match=text):
            make()
    for make, text in [
        (lambda: s.constant("0.1"), "schedules.constant: value is '0.1', but it must be a finite number"),
        (lambda: s.constant(True), "value is True"),
        (lambda: s.constant(None), "value is None"),
        (lambda: s.constant(float("nan")), "value is nan"),
        (lambda: s.cosine(0.1), "steps"),
        (lambda: s.cosine(0.1, steps=5, stop=1), "stop"),
        (lambda: s.piecewise([0.1, "b"], [3]), "schedules.piecewise: values is 'b', but it must be a finite number"),
        (lambda: s.piecewise(0.1, [3]), "schedules.piecewise: values is 0.1, but it must be a list of numbers"),
        (
            lambda: s.join(s.constant(1.0), []),
            "schedules.join: schedules is constant.*, but it must be a list of sched",
        ),
        (lambda: s.join([0.1, s.constant(1.0)], [3]), "schedules.join: 0.1 is not a schedule; for a number use const"),
        (lambda: s.scale(0.1, 0.5), "schedules.scale: 0.1 is not a schedule; for a number use constant"),
        (lambda: s.scale(half, "2"), "schedules.scale: factor is '2', but it must be a finite number"),
    ]:
        with pytest.raises(TypeError, match=text):
            make()


# ---- drawn


def test_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib").use("Agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    monkeypatch.setattr(pyplot, "show", lambda *args, **kwargs: pytest.fail("a window was opened"))
    schedule = s.cosine(0.1, steps=10)
    ax = schedule.plot(12)
    [line] = ax.get_lines()
    assert list(line.get_xdata()) == list(range(1, 13))
    assert list(line.get_ydata()) == [schedule(t) for t in range(1, 13)]
    assert (ax.get_xlabel(), ax.get_ylabel(), line.get_label()) == ("step", "value", "cosine(0.1, steps=10)")
    assert s.warmup(0.1, steps=3).plot(10**7, ax=ax, label="other", color="red") is ax
    assert [x.get_text() for x in ax.get_legend().get_texts()] == ["cosine(0.1, steps=10)", "other"]
    x = ax.get_lines()[1].get_xdata()
    assert (x[0], x[-1], len(x)) == (1, 10**7, 2000)
    assert ax.get_lines()[1].get_color() == "red"
    assert len(s.constant(0.1).plot(1).get_lines()[0].get_xdata()) == 1
    pyplot.close("all")


def test_plot_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"Schedule.plot needs matplotlib: pip install 'xopt-array\[plot\]'"):
        s.constant(0.1).plot(5)
