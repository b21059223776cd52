"""Compositions that failed once. The short test runs them again, on every path of a library."""

from __future__ import annotations

from fuzz.cases import Array, Case, Leaf, Perturb, Resume, Set, Step

W, B = Leaf((3, 2)), Leaf((3,))
TREE = {"w": W, "b": B}
TWO = (Step(), Step())

KEPT = [
    # a sum that is taken before noise has the number of its array
    Case(TREE, "xopt.chain(xopt.AddNoise(), xopt.ClipByGlobalNorm(1.0), xopt.SGD(0.1))", TWO),
    Case(TREE, "xopt.chain(xopt.AddNoise(), xopt.SGD(0.1), xopt.Cautious())", TWO),
    # scalars that are arrays: a counted step, a schedule beside it
    Case(TREE, "xopt.LossScale(xopt.RAdam(0.1))", (*TWO, *TWO)),
    Case(TREE, "xopt.LossScale(xopt.Adam(0.1, b1=S.warmup(0.9, steps=4, start=0.5)))", TWO),
    Case(TREE, "xopt.LossScale(xopt.LAMB(0.1, b1=S.warmup(0.9, steps=3, start=0.9)))", TWO),
    Case(TREE, "xopt.LossScale(xopt.AdaBelief(0.05, b1=S.warmup(0.9, steps=3, start=0.9)))", TWO),
    # and columns of them, of groups, with what is carried and held back
    Case(
        TREE,
        "xopt.Accumulate(xopt.LossScale(xopt.Groups(xopt.RMSProp(0.1, centered=True), ('b', {'lr': 0.05}))), 3)",
        (*TWO, *TWO),
    ),
    Case(TREE, "xopt.Guard(xopt.Accumulate(xopt.Groups(xopt.Rprop(0.1), ('b', {'lr': 0.05})), 2), 'skip')", TWO),
    Case(TREE, "xopt.Accumulate(xopt.Guard(xopt.Groups(xopt.StableAdamW(), ('b', {})), 'skip'), every=3)", TWO),
    Case(TREE, "xopt.LossScale(xopt.Groups(xopt.LDoG(0.1), ('b', {'lr': xopt.scaled(0.5)})))", TWO),
    Case(TREE, "xopt.LossScale(xopt.Groups(xopt.DAdaptAdam(0.1), ('b', {'b1': 0.5})))", TWO),
    Case(TREE, "xopt.LossScale(xopt.Groups(xopt.DAdaptSGD(), ('b', {})))", TWO),
    Case(TREE, "xopt.Groups(xopt.DAdaptSGD(), ('b', {'lr': xopt.scaled(2.0)}))", TWO),
    Case(TREE, "xopt.Groups(xopt.Prodigy(), ('b', {'lr': xopt.scaled(2.0)}))", TWO),
    # branches that are taken every so many steps
    Case(TREE, "xopt.LossScale(xopt.SOAP(0.01))", (*TWO, Step())),
    Case(TREE, "xopt.Guard(xopt.Shampoo(0.1, update_every=2), 'skip')", (*TWO, Step())),
    # a component without a maximum, for complex parameters
    Case(
        {"w": W._replace(dtype="complex64"), "b": B._replace(dtype="complex64")},
        "xopt.Accumulate(xopt.chain(xopt.AddDecay(0.6), xopt.Masked(xopt.AdaptiveGradientClip(0.5), 'w'), "
        "xopt.StableAdamW(0.05, complex='split')), 2)",
        (*TWO, Step()),
    ),
    Case(TREE, "xopt.chain(xopt.SGD(0.1), xopt.Masked(xopt.L1(0.05), 'w'))", TWO),
    Case(TREE, "xopt.chain(xopt.SGD(0.1), xopt.Masked(xopt.Simplex(), 'w'))", TWO),
    Case(TREE, "xopt.Adam(0.1)", (Step(overrides={"lr": Array(0.05)}), Step(("none", "normal")))),
    Case(TREE, "xopt.Groups(xopt.DAdaptSGD(), ('b', {'lr': 1.0}))", (Step(overrides={"group0.lr": Array(2.0)}),)),
    # a hyperparameter that is given anew as an argument under jit, of which the rule asks whether it was given
    Case(TREE, "xopt.SGD(momentum=0.9, dampening=0.4)", (Step(overrides={"dampening": 0.5}),)),
    # a carried scalar whose dtype is asked for
    Case((B, Leaf(()), B), "xopt.Groups(xopt.ScheduleFreeSGD(), ('2', {'b1': 1.0}))", TWO),
    # what the eager runner called a branch of JAX for
    Case(B, "xopt.Guard(xopt.Shampoo(update_every=3), 'skip')", TWO),
    Case(B, "xopt.LossScale(xopt.ScheduleFreeSGD())", TWO),
    # 1 - b2 of a hyperparameter that is an argument under jit
    Case([Leaf((3,), "float64"), Leaf(())], "xopt.Adam()", (Step(overrides={"eps": 5e-09}),)),
    # squares that only float64 can hold, where there is none
    Case(B, "xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.SGD(0.1))", (Step("huge"), Step("tiny"))),
    Case(TREE, "xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.Prodigy(0.5, d0=0.03))", (Step(("normal", "huge")),)),
    # and the same carried from step to step, as roots
    Case(B, "xopt.NovoGrad()", (Step("tiny"), Step())),
    Case(B, "xopt.NovoGrad()", (Step("huge"),)),
    Case(B, "xopt.DoG()", (Step("tiny"), Set({"reps_rel": 0.01}), Step())),
    Case(B, "xopt.LDoG(weight_decay=0.3, decay='lr')", (Step("tiny"), Step())),
    Case(B, "xopt.DAdaptSGD()", (Step("huge"), Step("huge"), Step())),
    # scalars that were arrays are so again after a resume
    Case(Leaf((2, 3), "float64"), "xopt.LossScale(xopt.Adam())", (Step(overrides={"lr": 0.5}), Resume(), Step())),
    Case(Leaf(()), "xopt.LossScale(xopt.Prodigy(like='optax'))", (Step(), Resume("file"), Step())),
    # numbers one a leaf on the host, where their logarithm is taken beside a step that is an array
    Case((B, B), "xopt.Guard(xopt.Groups(xopt.LaProp(), ('1', {'b2': 0.0})), 'skip')", (*TWO, Step())),
    # an error of rounding, where the number that was rounded is off by a unit
    Case(
        Leaf((), "float64"),
        "xopt.Precision(xopt.LossScale(xopt.DAdaptSGD(d0=0.1, weight_decay=0.3, momentum=0.9, decay='lr'), "
        "initial=8.0, growth=4.0, every=1), rounding='kahan', state_dtype='bfloat16')",
        (Step(layout="F"), Step()),
        seed=3,
    ),
    # an overflow of NumPy that another order of products has not, or that the norm of a step in float64 has not
    Case(B, "xopt.RMSProp(centered=True)", (Step("huge"),)),
    Case((B, B), "xopt.chain(xopt.RMSProp(centered=True), xopt.ClipByGlobalNorm(1.0))", (Step(("huge", "normal")),)),
    Case({"w": Leaf((2, 1, 2)), "b": B}, "xopt.Shampoo()", (Step(), Step("huge"))),
    # a penalty whose weight follows the momentum, of groups and in the middle of a run
    Case(
        TREE,
        "xopt.chain(xopt.Groups(xopt.SGD(0.1, momentum=0.5), ('b', {'momentum': S.warmup(0.9, steps=3)})), "
        "xopt.L1(0.05))",
        (*TWO, Step(overrides={"momentum": Array(0.25)}), Set({"momentum": 0.75}), Step()),
    ),
    # a parameter without state, beside one that overflows where there is no float64
    Case(TREE, "xopt.Groups(xopt.StableAdamW(0.05), ('b', xopt.Freeze))", (Step("huge"), Step("normal"))),
    # a dtype of the state that some slots cannot have, named alike whichever bucket is asked first
    Case(
        [Leaf((), "complex128"), Leaf((2, 1, 2), "complex128")],
        "xopt.Precision(xopt.Adafactor(complex='split'), state_dtype='float16')",
        (),
    ),
    # a weight of 1 - β, of which a schedule under jit is another by a unit of 1
    Case(B, "xopt.chain(xopt.SGD(), xopt.EMA(decay=S.warmup(0.999, steps=3, start=0.999)))", (Step(),)),
    # the point nearby of complex numbers in another order of memory
    Case(
        Leaf((3, 2), "complex64", "reversed"),
        "xopt.Adagrad()",
        (Step(value=1.0), Perturb(rho=1.0, adaptive=True)),
    ),
    # complex numbers that are in C order after a resume, so that the compiled loop has them
    Case(
        [Leaf((3,)), Leaf((3,), "complex64", "strided")], "xopt.SignSGD(lr=0.05)", (Resume(by="file"), Step()), seed=3
    ),
    Case(Leaf((2, 1, 2), "complex128", "F"), "xopt.Fromage()", (Resume(), Perturb(rho=1.0, adaptive=True))),
    # a quotient of a quotient, which XLA makes one of
    Case(Leaf(()), "xopt.SOAP(normalize=True)", TWO),
]
