"""Plant faults in xopt, one at a time and in memory only, and see that the tests catch each of them.

    python tests/faults.py              all of them
    python tests/faults.py shapes ...   some

A fault is a bug that happened to others, as it would look in this package: a line of source and what would stand there.
The tests that guard against it must pass without it, and each of them must fail with it, by an assertion.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
_LIMIT = 900
"""Seconds that the tests of one fault may take."""
HERE, RULES = "tests/regressions/test_others.py", "tests/rules/test_oracles.py"


class Fault(NamedTuple):
    """A bug, and the tests that see it."""

    source: str
    """Whom it happened to."""
    edits: tuple[tuple[str, str, str], ...]
    """A module of xopt, a part of its source that is there once, and what stands there instead."""
    tests: tuple[str, ...]
    """Node ids. Of tests with parameters that are not named here, one must fail."""
    library: str = "numpy"
    """Tests are run with ``--library`` so; other than numpy, it must be installed, or the fault is left out."""
    kinds: tuple[str, ...] = ()
    """Exceptions that these tests fail by, beside those of assertions."""
    needs: str = ""
    """A program without which the fault is left out."""


# fmt: off
FAULTS: dict[str, Fault] = {
    "rows-that-occur-twice": Fault(
        "tensorflow #28090, pytorch #1285: of values for one row, all but one are lost",
        (("_arrays.library", "xp.add.at(table.reshape(-1), places.reshape(-1), rows[again].reshape(-1))",
          "pass"),),
        ("tests/optimizer/test_sparse_rows.py::test_lazy_adam_beside_numpy[numpy-plain]",
         "tests/optimizer/test_sparse_rows_composed.py::test_the_norm_is_that_of_the_sums"),
    ),
    "rows-that-do-not-occur": Fault(
        "tensorflow #464, #6460: with sparse gradients the moments of the whole table decay",
        (("_arrays.rows", "if given.lazy and shape[0]:", "if False:"),),
        ("tests/optimizer/test_sparse_rows.py::test_lazy_adam_beside_numpy[numpy-plain]",),
    ),
    "lazy-sums": Fault(
        "a norm over the rows that occur, in the place of that of the parameter",
        (("_engine.lazy_rows", "if spec.reduce is not None and not _of", "if False and not _of"),),
        ("tests/optimizer/test_sparse_rows_composed.py::test_what_would_be_wrong_is_refused_and_nothing_moves[cautious]",),
    ),
    "lazy-averages": Fault(
        "an average of parameters of which only some rows follow",
        (("_engine.lazy_rows", "if spec.readout is not None", "if False"),),
        ("tests/optimizer/test_sparse_rows_composed.py::test_what_would_be_wrong_is_refused_and_nothing_moves[EMA]",),
    ),
    "padding-in-a-norm": Fault(
        "rows that are dropped, whose values count in the norm",
        (("_arrays.rows", "real = xp.reshape(rows < count", "real = xp.reshape(rows <= count"),),
        ("tests/optimizer/test_sparse_rows_composed.py::test_jax_drops_rows_that_are_none_and_compiles_once",),
        library="jax",
    ),
    "rows-out-of-range": Fault(
        "an index of -1 is the last row, and one past the end is an error of the library, or none",
        (("_arrays.rows", "if low < 0 or high >= count", "if False"),),
        ("tests/optimizer/test_sparse_rows_composed.py::test_errors_come_before_anything_is_written",),
    ),
    "jacobian-of-nan": Fault(
        "found here: derivatives that are NaN counted as a gradient of 0, and a fit as converged",
        (("solvers.fits._fit", "known = xp.all(xp.isfinite(g), axis=0) & ", "known = "),),
        ("tests/solvers/test_fit_faults.py::test_a_jacobian_that_is_nan",),
    ),
    "step-of-nothing": Fault(
        "found here: a difference at a parameter of 1e-16 is a part of that, and its column 0",
        (("solvers.fits._residuals", "self._enlarges = step is None", "self._enlarges = False"),),
        ("tests/solvers/test_fit_faults.py::test_differences_at_a_parameter_that_is_nearly_0",),
    ),
    "held-by-rounding": Fault(
        "found here: parameters far from their bounds were held, where the rounding of x is more than that of a step",
        (("solvers.fits._fit", "((self.x - p < self.low) | (self.x - p > self.high))",
          "(xp.abs(inside - p) > 8 * self.eps * xp.abs(p))"),),
        ("tests/solvers/test_least_squares_batched.py::test_bounds_of_one_fit_and_of_all[lm]",),
    ),
    "lanes-learn-what-is-held": Fault(
        "found here: y has the change of the gradient of parameters that are held at a bound, and H is of the others",
        (("solvers.lanes._minimizations", "y, s = self._freed(y, held), self._freed(s, held)", "pass"),),
        ("tests/solvers/test_many_minimizations.py::test_steps_within_bounds_learn_of_what_is_free",),
    ),
    "lanes-run-to-the-end-of-all": Fault(
        "a batch that is evaluated whole until the last lane has ended",
        (("solvers.fits._batch", "_FEWER = 0.7", "_FEWER = -1.0"),),
        ("tests/solvers/test_many_minimizations.py::test_lanes_that_are_done_are_put_aside",),
    ),
    "products-of-two-matrices": Fault(
        "scipy and many others take rmatvec for the adjoint of matvec, without a look",
        (("solvers.fits._truncated", "eps**0.5 * math", "math.inf * math"),),
        ("tests/solvers/test_large_fits.py::test_errors",),
    ),
    "results-in-one-array": Fault(
        "found here: of functions that write into the same arrays each time, fits converged where they began",
        (("solvers.fits._residuals", "return x if self.layout.library.jits else self.xp.asarray(x, copy=True)",
          "return x"),),
        ("tests/solvers/test_buffers.py::test_fits", "tests/solvers/test_buffers.py::test_products",
         "tests/solvers/test_buffers.py::test_many_minimizations"),
    ),
    "bfgs-begins-too-short": Fault(
        "found here: with H of s·y/y·y a multinomial logit took up to three times the evaluations of SciPy's BFGS",
        (("solvers._bfgs", "length = alpha * math.sqrt(square / change)", "length = alpha * along / change"),),
        ("tests/solvers/test_second_order.py::test_a_multinomial_logit",),
    ),
    "newton-stays-at-a-saddle": Fault(
        "SciPy's Newton-CG goes no further where curvature is negative: on Wood's function 1,000 steps are too few",
        (("solvers._newton", "t, size = left / abs(curvature) if curvature else 1.0, math.nan", "return best"),),
        ("tests/solvers/test_second_order.py::test_no_more_evaluations_than_scipy[newton-cg]",),
    ),
    "norm-of-a-shard": Fault(
        "pytorch #72548, #170862, torchtitan #766: clipping by the norm of what one rank has",
        (("distributed._sums", "self._ranks.every(own)", "np.stack([own] * self._ranks.size)"),),
        ("tests/distributed/test_bits.py::test_compositions[clip]",),
    ),
    "loss-of-a-rank": Fault(
        "each rank has a value of its own, so that a plateau is seen by some",
        (("_sharded", "value = ordered(ranks.every(np.asarray([value]))[:, 0].tolist())", "value = 1.0 * value"),),
        ("tests/distributed/test_errors.py::test_value_is_that_of_all_ranks",),
    ),
    "noise-of-a-shard": Fault(
        "stochastic rounding: every chunk has the noise of the first one",
        (("distributed._shards", "self.starts = [u.start for u in units]", "self.starts = [0 for u in units]"),),
        ("tests/distributed/test_bits.py::test_precision[tiled-float16-options1]",),
    ),
    "chunks-of-pairs": Fault(
        "a shard is cut where no chunk of a sum ends",
        (("distributed._shards", "CHUNK >> bucket.split", "CHUNK"),),
        ("tests/distributed/test_bits.py::test_dtypes[tiled-split-complex128]",),
    ),
    "scalars-of-rank-0": Fault(
        "radixark/Megatron-LM #66: what differs by rank is saved by rank 0 alone",
        (("_sharded_files", "found[k] = every[at]", "found[k] = every[0, at[1]]"),),
        ("tests/distributed/test_bits.py::test_rules[tiled-LDoG]",),
    ),
    "halves-in-halves": Fault(
        "gradients of half precision are rounded with each rank",
        (("distributed._exchange", "each in own], divisor, half)", "each in own], divisor, False)"),),
        ("tests/distributed/test_bits.py::test_halves_are_added_in_float32_and_rounded_once",),
    ),
    "state-not-written": Fault(
        "pytorch #78807",
        (("_engine.runners.tiled.runner",
          'n: _views(work.library, column, work.split) for n, column in work.loads.items() if n != "g"}',
          ('n: [x.copy() if n.endswith(".top") else x for x in _views(work.library, column, work.split)]\n'
           '                   for n, column in work.loads.items() if n != "g"}')),),
        (f"{HERE}::test_all_of_the_state_is_written[Adam]",),
    ),
    "empty-last-tensor": Fault(
        "pytorch #100701, #119885",
        (("_engine.runners.tiled.tiling", "        if group:\n", "        if group and self.sizes[-1]:\n"),),
        (f"{HERE}::test_an_empty_last_tensor",),
    ),
    "not-contiguous": Fault(
        "pytorch #118115",
        (("_engine.runners.tiled.tiling", "[list(map(_contiguous, column)) for", "[[True] * len(column) for"),),
        (f"{HERE}::test_parameters_that_are_not_contiguous",),
    ),
    "int32-sizes": Fault(
        "DeepSpeed #7640, apex #1825",
        (("_engine.runners.cuda.runner", "in (sizes, leaf", "in (np.asarray(sizes).astype(np.int32), leaf"),),
        (f"{HERE}::test_sizes_that_int32_does_not_hold",),
    ),
    "int32-indices": Fault(
        "pytorch #101449",
        (("_engine.runners.cuda.templates", "const long long first = (long long)chunk.number * CHUNK, left",
          "const int first = chunk.number * CHUNK; const long long left"),),
        ("tests/engine/runners/cuda/test_bits_on_host.py::test_indices_are_wide",),
        needs=os.environ.get("CXX", "g++"),
    ),
    "int32-parts": Fault(
        "the same, in tiles",
        (("_engine.runners.tiled.tiling", "yield low, min(size, low + tile), None",
          "yield low % 2**31, min(size, low + tile) % 2**31, None"),),
        (f"{HERE}::test_sizes_that_int32_does_not_hold",),
    ),
    "counter-bfloat16": Fault(
        "pytorch #110940",
        (("_arrays.scalars", "min(step + 1, STEP_LIMIT)", "int(_arrays.bfloat16()(step) + _arrays.bfloat16()(1))"),),
        (f"{HERE}::test_a_counter_does_not_freeze", "tests/optimizer/test_optimizer.py::test_step_counter_is_exact"),
    ),
    "counter-float32": Fault(
        "pytorch #110940",
        (("_arrays.scalars", "min(step + 1, STEP_LIMIT)", "int(np.float32(step) + np.float32(1))"),),
        (f"{HERE}::test_a_counter_does_not_freeze", "tests/optimizer/test_optimizer.py::test_step_counter_is_exact"),
    ),
    "eps-in-half": Fault(
        "optax #1754, chainer #6299",
        (("_arrays.dtypes", 'DType("float16", 2, "float32"', 'DType("float16", 2, "float16"'),
         ("_arrays.dtypes", "COMPLEX_OF = {", 'COMPLEX_OF = {"float16": "complex64"} | {')),
        (f"{HERE}::test_a_zero_gradient_of_half_precision_moves_nothing[float16-Adam]",
         "tests/arrays/test_libraries.py::test_zero_gradients_of_half_precision_move_nothing"),
    ),
    "number-to-vector": Fault(
        "optax PR 1042",
        (("_engine.runners.eager", "xp.reshape(x, like.shape), like", "xp.reshape(x, like.shape or (1,)), like"),),
        (f"{HERE}::test_a_number_keeps_its_shape_and_dtype",),
    ),
    "number-to-scalar": Fault(
        "NumPy's 0-d results",
        (("_engine.runners.eager", "xp.reshape(x, like.shape), like",
          "xp.reshape(x, like.shape) if like.shape else xp.reshape(x, (1,))[0], like"),),
        (f"{HERE}::test_a_number_keeps_its_shape_and_dtype",),
    ),
    "amsgrad-order": Fault(
        "optax #1389",
        (("rules.adam", "xp.maximum(top, v) if", "xp.maximum(top, v / (1 - h.b2**h.t)) if"),
         ("rules.adam", "w = top if h.amsgrad", "w = top * c2 if h.amsgrad")),
        (f"{RULES}::test_float64[numpy-plain-Adam-amsgrad=True-b2=0.9]",),
    ),
    "amsgrad-order-torch": Fault(
        "optax #1389",
        (("rules.adam", "xp.maximum(top, v) if", "xp.maximum(top, v / (1 - h.b2**h.t)) if"),
         ("rules.adam", "w = top if h.amsgrad", "w = top * c2 if h.amsgrad")),
        ("tests/rules/test_peers.py::test_peer[torch Adam(lr=0.1, b2=0.9, amsgrad=True)]",),
        library="torch",
    ),
    "eps-place": Fault(
        "tensorflow #35102",
        (("rules.adam", '"outside": h.eps * c2**0.5', '"outside": h.eps'),),
        (f"{RULES}::test_float64[numpy-plain-Adam-weight_decay=0.3]", f"{HERE}::test_the_first_eight_steps[Adam]"),
    ),
    "nadam-variant": Fault(
        "keras #15710",
        (("rules.adam_momentum", "0.96 ** ((h.t + 1) * h", "0.96 ** (h.t * h"),),
        (f"{RULES}::test_float64[numpy-plain-NAdam-weight_decay=0.3]", f"{HERE}::test_the_first_eight_steps[NAdam]"),
    ),
    "accumulated-count": Fault(
        "keras #19990",
        (("transforms._conditional", "return (t - 1) // h.every + 1", "return t"),),
        ("tests/transforms/test_accumulate_and_guard.py::test_k_small_batches_are_one_large_one",),
    ),
    "accumulated-decay": Fault(
        "keras #19990",
        (("_engine.program.compose", "return self.keep(new, old) if", "return self.keep(new, old - 1e-3 * old) if"),),
        ("tests/transforms/test_accumulate_and_guard.py::test_k_small_batches_are_one_large_one",),
    ),
    "scaled-step-counted": Fault(
        "torch's GradScaler: schedulers count the steps that it left out",
        (("transforms._conditional", '"skipped": h.skipped + (1 - go),', '"skipped": 0.0 * h.skipped,'),),
        ("tests/transforms/test_loss_scale.py::test_one_counter",
         "tests/transforms/test_loss_scale.py::test_the_rule_does_not_notice"),
    ),
    "scaled-overflow-forgotten": Fault(
        "torch's GradScaler: the count towards the next growth begins anew with an overflow",
        (("transforms._conditional", "good = go * (h.good + 1)", "good = h.good + go"),),
        ("tests/transforms/test_loss_scale.py::test_oracle",),
    ),
    "scaled-not-divided": Fault(
        "torch's recipe: gradients are clipped without unscale_",
        (("transforms._conditional", "return h.inverse * g", "return g"),),
        ("tests/transforms/test_loss_scale.py::test_the_rule_does_not_notice",),
    ),
    "scaled-by-the-next": Fault(
        "torch's GradScaler: unscale_ comes before update",
        (("transforms._conditional", '"inverse": 1 / h.scale,',
          '"inverse": 1 / xp.where(good >= h.every, higher, h.scale),'),),
        ("tests/transforms/test_loss_scale.py::test_the_rule_does_not_notice",
         "tests/transforms/test_loss_scale.py::test_gradients_that_are_none"),
    ),
    "held-back-but-kept": Fault(
        "found here: in a call without any gradient, what is carried behind a component that waits did not wait",
        (("_engine.resolve", 'return found.get("go")', "return None"),
         ("_engine.resolve", "if spec.gates:\n", "if spec.gates and members:\n")),
        ("tests/transforms/test_loss_scale.py::test_a_batch_without_any_gradient_counts_with_its_step_only",),
    ),
    "axes": Fault(
        "keras PR 18936, mlx PR 3652",
        (("rules.factored", "else axes[-2:]", "else axes[:2]"),),
        (f"{HERE}::test_arrays_of_any_number_of_axes[Adafactor]",),
    ),
    "reads-another-slot": Fault(
        "mlx PR 603",
        (("rules.adaptive", "v = h.rho * v + (1 - h.rho) * abs2(xp, g)\n        d = xp.sqrt(u",
          "v = h.rho * u + (1 - h.rho) * abs2(xp, g)\n        d = xp.sqrt(u"),),
        (f"{RULES}::test_float64[numpy-plain-Adadelta-weight_decay=0.3]",),
    ),
    "idle-slot": Fault(
        "mlx PR 603",
        (("rules.adaptive", "u = h.rho * u + (1 - h.rho) * abs2(xp, d)\n        return -h.lr * d, v, u",
          "return -h.lr * d, v, 1.0 * u"),),
        (f"{HERE}::test_every_array_of_the_state_changes[Adadelta]",
         f"{RULES}::test_float64[numpy-plain-Adadelta-weight_decay=0.3]"),
    ),
    "buffer-zeroed": Fault(
        "kozistr PR 516, 518",
        (("rules.adam", "xp.maximum(top, v) if", "xp.maximum(0.0 * top, v) if"),),
        (f"{RULES}::test_every_hyperparameter_and_option_matters[Adam]",),
    ),
    "buffer-shared": Fault(
        "kozistr PR 516, 518",
        (("_arrays", "def aligned(", "@functools.cache\ndef aligned("),),
        (f"{HERE}::test_a_second_optimizer_starts_afresh",),
    ),
    "flag-ignored": Fault(
        "thinc PR 299",
        (("rules.sgd", "h.momentum * m + ahead if h.nesterov else m", "m"),),
        (f"{RULES}::test_every_hyperparameter_and_option_matters[SGD]",),
    ),
    "promoted": Fault(
        "mlx PR 2350",
        (("_engine.runners.eager", "return _arrays.cast(xp, xp.reshape(x, like.shape), like.dtype)",
          "return xp.reshape(x, like.shape)"),),
        (f"{HERE}::test_scalars_of_numpy_widen_nothing",),
    ),
    "float64-scalars": Fault(
        "mlx PR 2350, and NumPy's float64",
        (("rule._fields", "        found = float(value)\n", "        found = value\n"),),
        (f"{HERE}::test_scalars_of_numpy_widen_nothing",),
        kinds=("AttributeError",),  # an array is no scalar
    ),
    "same-array-twice": Fault(
        "tinygrad PR 1047",
        (("_arrays.layout", "shared = [j for j in self._near(x) if j < k and _arrays.overlap(self._arrays[j], x)]",
          "shared: list[int] = []"),),
        ("tests/optimizer/test_errors.py::test_the_same_memory_twice",),
    ),
    "gradient-mutated": Fault(
        "pytorch #12218",
        (("_engine.runners.tiled.codegen", "        if i in home or i in lodger:\n",
          ('        if program.loads.get("g") in args and i not in home:\n'
           '            out = where_is[program.loads["g"]]\n'
           '        elif i in home or i in lodger:\n')),),
        (f"{HERE}::test_gradients_are_never_mutated",),
        kinds=("ValueError",),  # the one that is read-only
    ),
    "norm-overflows": Fault(
        "pytorch #46849",
        (("_engine.runners.tiled.tiles", 'super().__init__(work, program, values, "float64", leaves, None)',
          'super().__init__(work, program, values, "float32", leaves, None)'),),
        (f"{HERE}::test_norms_and_what_is_done_about_them", "tests/arrays/test_libraries.py::test_norms_at_the_edges"),
    ),
    "nan-norm-passes": Fault(
        "pytorch #46849",
        (("transforms._clipping", "h.max_norm / xp.maximum(norm, h.max_norm)}",
          "xp.where(norm > h.max_norm, h.max_norm / (norm + 1e-300), 1.0)}"),),
        (f"{HERE}::test_norms_and_what_is_done_about_them", "tests/arrays/test_libraries.py::test_norms_at_the_edges"),
    ),
    "inf-unseen": Fault(
        "pytorch #46849",
        (("transforms._conditional", "xp.where(xp.isfinite(g), xp.minimum(size, 0.0), 1.0)}",
          "xp.where(xp.isnan(g), 1.0, xp.minimum(size, 0.0))}"),),
        (f"{HERE}::test_norms_and_what_is_done_about_them",
         "tests/transforms/test_accumulate_and_guard.py::test_a_skipped_step_never_was"),
    ),
    "shape-of-x0": Fault(
        "scipy #6364",
        (("_arrays.layout", "if tuple(x.shape) != shape:", "if False:"),),
        (f"{HERE}::test_minimize_keeps_the_shape_of_x0",),
        kinds=("ValueError",),  # of NumPy's
    ),
    "array-of-the-user": Fault(
        "scipy #6364",
        (("solvers._descent", "return self.space.tree(self.space.copied(self.here.x))",
          "return self.space.tree(self.here.x)"),),
        ("tests/solvers/test_minimize.py::test_a_callback_may_do_as_it_likes",),
    ),
    "step-a-parameter": Fault(
        "PennyLane #1928, DiffSharp #292",
        (("_engine.executor", "t = after(taken)", "t = taken + len(self.layout.leaves)"),),
        ("tests/optimizer/test_optimizer.py::test_two_parameters_are_two_optimizers",),
    ),
    "vacuous-gate": Fault(
        "a parity gate that compared fused with fused",
        (("_engine.runners.choose", 'if runner == "eager":\n        return backend("eager")',
          'if runner == "eager":\n        return backend("tiled")'),),
        ("tests/engine/runners/test_tiled.py::test_which_runner_ran",),
    ),
    "decay-ignored": Fault(
        "tinygrad's Muon",
        (("rules.matrix", "    elementwise = False\n", "    elementwise = False\n    decay_by = None\n"),),
        (f"{HERE}::test_decay_is_more_than_the_tolerance[Muon]",),
    ),
    "decay-shrunk": Fault(
        "tinygrad's Muon: too small for a loose tolerance",
        (("rule._rule", "less = step - factor * p",
          "less = step - 0.999999 * factor * p"),),
        (f"{HERE}::test_decay_is_more_than_the_tolerance[Muon]",),
    ),
    "decay-away-from-0": Fault(
        "a cautious decay that looks at the gradient's sign, not the step's, decays where it should not",
        (("rule._rule", "along(xp, step, p) <= 0, less, step", "along(xp, step, p) >= 0, less, step"),),
        ("tests/rules/test_decay.py::test_what_is_decayed",),
    ),
    "step-off-by-one": Fault(
        "Thinc's RAdam",
        (("rules.adam_denominator", "rho = end - 2 * h.t * h.b2**h.t / (1 - h.b2**h.t)",
          "rho = end - 2 * (h.t + 1) * h.b2 ** (h.t + 1) / (1 - h.b2 ** (h.t + 1))"),),
        (f"{HERE}::test_the_first_eight_steps[RAdam]",),
    ),
    "shapes": Fault(
        "optax: gradient (3,1) for parameter (3,)",
        (("_arrays.layout", "if tuple(x.shape) != shape:", "if math.prod(x.shape) != math.prod(shape):"),),
        (f"{HERE}::test_only_the_shape_of_the_parameter_will_do", "tests/optimizer/test_errors.py::test_gradient"),
    ),
    "half-a-step": Fault(
        "one bad leaf: p₀ moved, p₁ did not",
        (("_engine.executor", "jobs.append(work.runner.prepare(work, scalars, into))",
          "jobs.append(lambda made=work.runner.prepare(work, scalars, into)(): made)"),),
        ("tests/regressions/test_ours.py::test_a_scalar_that_cannot_be_computed_moves_nothing",),
    ),
    "unchecked-scalars": Fault(
        "one bad leaf: the state moved, p did not",
        (("_engine.program.trace", "tuple(_real(x) if isinstance(x, int", "tuple(x if isinstance(x, int"),),
        ("tests/regressions/test_ours.py::test_a_scalar_that_cannot_be_computed_moves_nothing",),
        kinds=("ComplexWarning",),  # (1 - 2)**0.5, on storing
    ),
    "failed-step-counts": Fault(
        "one bad leaf: the step was counted",
        (("optimizer", "step = executor.begin(self._taken, ",
          "self._taken += 1\n        step = executor.begin(self._taken - 1, "),),
        (f"{HERE}::test_an_error_leaves_every_byte",),
    ),
    # saving and loading
    "step-cast": Fault(
        "pytorch #80809",
        (("checkpoint._snapshot", '"step": int(step)', '"step": int(np.float32(step))'),),
        ("tests/checkpoint/test_save_and_load.py::test_the_step_is_an_int",),
        kinds=("CheckpointError",),  # 2⁶³
    ),
    "reinitialised": Fault(
        "mlx PR 1329",
        (("checkpoint._restore", "            x = place.array\n            host",
          "            x = place.array\n            if place.slot:\n                continue\n            host"),),
        ("tests/checkpoint/test_resume.py::test_every_rule_resumes_to_the_same_bits_in_another_process[numpy-plain]",
         "tests/checkpoint/test_save_and_load.py::test_names_are_paths"),
    ),
    "replaced-array": Fault(
        "xopt: the array that was put in the place of a parameter never moved",
        (("_arrays.tree", "if len(inside) != len(known) or not all(map(operator.is_, inside, known)):", "if False:"),),
        ("tests/optimizer/test_replaced_arrays.py::test_an_array_that_was_replaced",),
    ),
    "set-when-torn": Fault(
        "xopt: a rate was set after an interrupted step",
        (("optimizer", '            self._access.check("set", swapped=True)\n', ""),),
        ("tests/optimizer/test_interrupted.py::test_ctrl_c_between_leaves_is_noticed",),
    ),
    "slow-weights-of-other-parameters": Fault(
        "xopt: slow weights of zeros pulled what was loaded to 0",
        (("_engine.state", "isinstance(first, str) or made or name == ERROR", "name == ERROR"),),
        ("tests/checkpoint/test_partial_loading.py::test_lookahead_steps_back_to_what_was_loaded",),
    ),
    "carry-reinitialised": Fault(
        "mlx PR 1329",
        (("checkpoint._saving", "loaded.step, {**self._carry, **loaded.carry}", "loaded.step, self._carry"),),
        ("tests/checkpoint/test_resume.py::test_every_rule_resumes_to_the_same_bits_in_another_process[numpy-plain]",),
        kinds=("KeyError",),
    ),
    "aliased": Fault(
        "pytorch #196083",
        (("checkpoint._snapshot", "run.layout.xp.asarray(x, copy=True)", "x"),),
        ("tests/checkpoint/test_save_and_load.py::test_an_exported_state_is_a_copy[numpy-plain]",),
    ),
    "by-order": Fault(
        "pytorch #1489, PR 6031",
        (("_arrays.tree", 'return ["/".join(map(escaped, keys))',
          'return [str(k) for k in range(spec.num_leaves)]\n    return ["/".join(map(escaped, keys))'),),
        ("tests/checkpoint/test_save_and_load.py::test_names_are_paths",),
        kinds=("KeyError",),
    ),
    "slash-in-a-key": Fault(
        "a path that two parameters have",
        (("_arrays.tree", '.replace("/", "~1")', ""),),
        ("tests/checkpoint/test_save_and_load.py::test_names_are_paths",),
        kinds=("ValueError",),
    ),
    "memory-order": Fault(
        "safetensors #825",
        (("checkpoint._safetensors", "x.reshape(-1).view(np.uint8).data", 'x.ravel("K").view(np.uint8).data'),
         ("_arrays.transfer", 'host = np.asarray(x, order="C")', "host = np.asarray(x)")),
        ("tests/checkpoint/test_save_and_load.py::test_frozen_parameters_and_other_memory",
         "tests/checkpoint/test_save_and_load.py::test_the_safetensors_library_reads_it"),
    ),
    "keys-twice": Fault(
        "safetensors: duplicate keys",
        (("checkpoint._safetensors", "twice.extend(", "(lambda x: None)("),),
        ("tests/checkpoint/test_broken_files.py::test_a_file_made_to_do_harm[a key twice]",),
    ),
    "unchecked": Fault(
        "safetensors: no checksum",
        (("checkpoint._safetensors", "if crc != x.crc:", "if False:"),
         ("checkpoint._safetensors", "zlib.crc32(data) != stored.crc", "False")),
        ("tests/checkpoint/test_broken_files.py::test_no_mutation_of_a_file_is_accepted",
         "tests/checkpoint/test_save_and_load.py::test_checksums_can_be_left_out"),
    ),
    "unchecked-header": Fault(
        "safetensors: no checksum",
        (("checkpoint._safetensors", "if self._checksums and not signed:", "if False:"),),
        ("tests/checkpoint/test_broken_files.py::test_no_mutation_of_a_file_is_accepted",),
    ),
    "written-in-place": Fault(
        "kill -9 during save",
        (("checkpoint._atomic", 'target.with_name(f".xopt-{os.urandom(4).hex()}.tmp")', "target"),
         ("checkpoint._atomic", "os.O_CREAT | os.O_EXCL", "os.O_CREAT | os.O_TRUNC")),
        ("tests/checkpoint/test_broken_files.py::test_kill_9_during_save_destroys_nothing",
         "tests/checkpoint/test_broken_files.py::test_a_disk_that_is_really_full"),
    ),
    "not-synced": Fault(
        "kill -9 during save",
        (("checkpoint._atomic", "                os.fsync(fd)\n", "                pass\n"),),
        ("tests/checkpoint/test_broken_files.py::test_an_error_at_every_call_to_the_system",),
    ),
    "left-behind": Fault(
        "a full disk",
        (("checkpoint._atomic", "            temporary.unlink()\n", "            pass\n"),),
        ("tests/checkpoint/test_broken_files.py::test_an_error_at_every_call_to_the_system",),
    ),
    "half-a-load": Fault(
        "a load that fails in the middle",
        (("checkpoint._saving", "        source.verify()\n", ""),),
        ("tests/checkpoint/test_broken_files.py::test_a_file_that_cannot_be_read",),
    ),
    "interrupt-unnoticed": Fault(
        "Ctrl-C in a step",
        (("_engine.exclusive", "self.torn = error is not None", "self.torn = False"),),
        ("tests/optimizer/test_interrupted.py::test_ctrl_c_between_leaves_is_noticed",
         "tests/optimizer/test_interrupted.py::test_signals_at_any_moment[eager]"),
    ),
    "thread-outlives": Fault(
        "Ctrl-C in a step: a thread goes on writing",
        (("_engine.runners.threads", "left = deque(helpers)", "left = deque([] if failed else helpers)"),),
        ("tests/optimizer/test_interrupted.py::test_signals_at_any_moment[threads]",),
    ),
    "race": Fault(
        "two threads in one optimizer",
        (("_engine.exclusive", "        if self._lock.locked():\n", "        if False:\n"),
         ("_engine.exclusive", "        return self._lock\n", "        return threading.Lock()\n")),
        ("tests/optimizer/test_interrupted.py::test_threads_that_step_one_optimizer_get_an_error_and_no_race",
         "tests/optimizer/test_interrupted.py::test_two_threads_in_one_optimizer"),
    ),
    # few digits
    "error-forgotten": Fault(
        "bfloat16: 500 steps of 1e-3 from 1.0 with Kahan's compensation",
        (("_engine.program.storage", "return (step + self.error) - (landed - p)", "return 0.0 * (step + self.error)"),),
        ("tests/transforms/test_precision.py::test_small_steps_arrive",
         "tests/transforms/test_precision.py::test_kahan_loses_nothing"),
    ),
    "seed-of-a-state": Fault(
        "a state that says how it is kept forgets the seed",
        (("rule._precision", "if v != link._fields[n].default", 'if v != link._fields[n].default and n != "seed"'),),
        ("tests/transforms/test_precision.py::test_a_state_that_says_how_it_is_kept",),
    ),
    "error-of-the-cast": Fault(
        "bfloat16: what storing loses is not in the error",
        (("_engine.program.storage", "round_to(self._xp, p + (u + self.error), self._stored)", "p + u + self.error"),),
        ("tests/transforms/test_precision.py::test_small_steps_arrive",
         "tests/transforms/test_precision.py::test_kahan_loses_nothing"),
    ),
    "master-forgotten": Fault(
        "bfloat16: 500 steps of 1e-3 from 1.0 with master weights",
        (("_engine.program.compose", "    p = p if storage.master is None else storage.master\n", ""),
         ("_engine.program.compose", "old = p if self.master is None else self.master", "old = p")),
        ("tests/transforms/test_precision.py::test_small_steps_arrive",
         "tests/transforms/test_precision.py::test_a_master_copy_is_the_run_in_float32"),
    ),
    "noise-forgotten": Fault(
        "bfloat16: 500 steps of 1e-3 from 1.0 with stochastic rounding",
        (("_engine.program.rounding", "xp.where(noise < 1.0 - part", "xp.where(0.5 < 1.0 - part"),
         ("_engine.program.rounding", "xp.where(noise < part", "xp.where(0.5 < part"),),
        ("tests/transforms/test_precision.py::test_stochastic_rounding_is_the_same_everywhere",
         "tests/transforms/test_precision.py::test_stochastic_rounding_takes_a_neighbour_by_its_nearness"),
    ),
    "noise-again": Fault(
        "stochastic rounding: the same noise in every step",
        (("rule._precision", '"low": h.t % 65536', '"low": h.t * 0'),),
        ("tests/transforms/test_precision.py::test_stochastic_rounding_is_the_same_everywhere",),
    ),
    "noise-of-the-tile": Fault(
        "stochastic rounding: elements are counted from the start of a tile",
        (("_engine.runners.tiled.tiles", "arange(task.low, task.low + n) for n in sizes", "arange(n) for n in sizes"),),
        ("tests/engine/runners/test_tiled.py::test_tiles[bfloat16-Precision1]",),
    ),
    "one-scale": Fault(
        "8 bits: one scale for a whole tensor (Dettmers et al. 2022)",
        (("_engine.program.quantize", "    return xp.max(xp.reshape(flat, (-1, BLOCK)), axis=1)",
          "    return xp.max(xp.reshape(flat, (-1, BLOCK)), axis=1) * 0 + xp.max(flat)"),),
        ("tests/engine/program/test_8bit_state.py::test_codes_are_the_nearest",
         "tests/engine/program/test_8bit_state.py::test_tiles"),
    ),
    "square-to-zero": Fault(
        "8 bits: a step divided by 0",
        (("_engine.program.quantize", "xp.where(size > 0.0, xp.maximum(near, 1.0), near)", "near"),),
        ("tests/engine/program/test_8bit_state.py::test_what_is_not_finite_does_not_hide",),
    ),
    "nan-as-zero": Fault(
        "8 bits: NaN in the state, and nobody sees it",
        (("_engine.program.quantize", "    return xp.max(xp.reshape(flat, (-1, BLOCK)), axis=1)",
          "    return xp.nan_to_num(xp.max(xp.reshape(flat, (-1, BLOCK)), axis=1))"),),
        ("tests/engine/program/test_8bit_state.py::test_what_is_not_finite_does_not_hide",),
    ),
    "codes-as-numbers": Fault(
        "8 bits: codes loaded without their scales",
        (("checkpoint._restore", "if name in found and other not in found", "if False"),),
        ("tests/engine/program/test_8bit_state.py::test_codes_without_their_scales",),
    ),
    "scales-of-the-tile": Fault(
        "8 bits: a tile that begins inside of a block",
        (("_engine.runners.tiled.runner", "-(-tile // BLOCK) * BLOCK if work.plan.codes else tile", "tile"),),
        ("tests/engine/program/test_8bit_state.py::test_tiles",),
        kinds=("ValueError",),
    ),
    "infinity-rounded": Fault(
        "stochastic rounding of what is not finite",
        (("_engine.program.rounding", "xp.where(xp.abs(x) <= most, ", "xp.where(x == x, "),
         ("_engine.program.rounding", "xp.where(size < most, c - (c - x), x))", "c - (c - x))")),
        ("tests/transforms/test_precision.py::test_what_is_not_finite_stays_so",),
    ),
    "copies-in-half": Fault(
        "state in bfloat16: the parameters of a schedule-free rule with it",
        (("_engine.program.storage", "copied or spec.on_params", "name == MASTER or spec.on_params"),),
        ("tests/transforms/test_precision.py::test_copies_of_parameters_keep_their_digits",),
    ),
    "noise-of-all-leaves": Fault(
        "stochastic rounding: the same noise in every leaf",
        (("_engine.resolve", "self._each(layout.numbers, work)", "self._each([0] * len(layout.leaves), work)"),),
        ("tests/transforms/test_precision.py::test_what_the_noise_depends_on",),
    ),
    "seed-or-step": Fault(
        "stochastic rounding: another seed is another order of the same noise",
        (("random", "mix(mask(both(low, high) * number(_SPREAD))), mix(both(seed_low, seed_high))",
          "both(low, high), both(seed_low, seed_high)"),),
        ("tests/transforms/test_precision.py::test_noise_is_noise",),
    ),
    "averages-in-half": Fault(
        "bounds: averages of half precision stall",
        (("_engine.program.storage", "copied or spec.on_params or spec.gates", "copied"),),
        ("tests/transforms/test_precision.py::test_accumulated_gradients_keep_their_digits",),
    ),
    # bounds
    "bias-correction-float32": Fault(
        "bounds: 1 - β₂ᵗ in float32",
        (("_engine.executor", "self.scalars.run(clocks, given,",
          "self.scalars.run({n: np.float32(t) for n, t in clocks.items()}, given,"),),
        (f"{HERE}::test_float32_adamw_within_its_bounds", f"{HERE}::test_bias_corrections_are_those_of_float64"),
        kinds=("AttributeError",),  # nor is a NumPy number
    ),
    "step-unlimited": Fault(
        "bounds: .999**10**400",
        (("_arrays.scalars", "min(step + 1, STEP_LIMIT)", "step + 1"),),
        (f"{HERE}::test_bias_corrections_are_those_of_float64",),
    ),
    "last-tile": Fault(
        "bounds: the same bits for any tile",
        (("_engine.runners.tiled.tiling", "yield low, min(size, low + tile), None",
          "yield low, max(low, min(size - size % 4 if size > tile else size, low + tile)), None"),),
        ("tests/engine/runners/test_tiled.py::test_every_tile_and_dtype[float32-Adam]",
         "tests/engine/runners/test_tiled.py::test_parts_cover_a_leaf_once_and_in_order"),
    ),
    "sum-by-tile": Fault(
        "bounds: norms in one order",
        (("_engine.program.summation", "flat[i : i + CHUNK]) for i in range(0, flat.size, CHUNK))",
          "flat[i : i + 1000]) for i in range(0, flat.size, 1000))"),),
        ("tests/engine/runners/test_tiled.py::test_norm_is_summed_in_one_order",),
    ),
    "llvm-fastmath": Fault(
        "bounds: fastmath changes 65 % of elements",
        (("_engine.runners.llvm.codegen", '"multiply": "fmul {T}', '"multiply": "fmul fast {T}'),
         ("_engine.runners.llvm.codegen", '"add": "fadd {T}', '"add": "fadd fast {T}'),),
        ("tests/engine/runners/llvm/test_bits.py::test_bits_of_eager[Adam-float32]",),
        library="llvm",
    ),
    "llvm-stochastic-carry": Fault(
        "stochastic rounding: a noise of 0 leaves what can be held alone",
        (("_engine.runners.llvm.templates", "sub i32 65535, %chance", "sub i32 65536, %chance"),),
        ("tests/engine/runners/llvm/test_bits.py::test_stochastic_rounding_by_bits_is_that_by_arithmetic",),
        library="llvm",
    ),
    "llvm-override-kept": Fault(
        "small problems: a number for one step is the next one's too",
        (("_engine.again", "            for h, n, x in usual:\n                h[n] = x", "            pass"),),
        ("tests/optimizer/test_again.py::test_bits_of_steps_that_look_everything_up[numbers]",),
        library="llvm",
    ),
    "conjugate-unseen": Fault(
        "torch: DLPack describes the memory below a conjugate",
        (("_arrays.libraries.torch", "return any(map(tensor.is_neg, column)) or", "return False and"),),
        ("tests/engine/runners/llvm/test_exchange.py::test_views_that_stand_for_conjugates",),
        library="llvm",
    ),
    "llvm-sum-order": Fault(
        "bounds: norms in one order",
        (("_engine.runners.llvm.codegen", "and i64 {half}, -8", "and i64 {half}, -16"),),
        ("tests/engine/runners/llvm/test_bits.py::test_pairwise_is_the_order_of_numpy",),
        library="llvm",
    ),
    "llvm-noise-by-task": Fault(
        "stochastic rounding: one noise for every task of a leaf",
        (("_engine.runners.llvm.codegen", 'at = self.text.do(f"add i64 %low, {at}")', 'at = at + ""'),),
        ("tests/transforms/test_precision.py::test_long_and_mixed_leaves_compiled",),
        library="llvm",
    ),
    "state-in-half": Fault(
        "bounds: second moments of half precision",
        (("_engine.state", "        if not d.complex or bucket is None:\n            return d.real",
          "        if not d.complex or bucket is None:\n            return d.name"),),
        (f"{HERE}::test_second_moments_of_half_precision", f"{RULES}::test_half[numpy-plain-Adam-float16]"),
    ),
    # differences of the array API
    "gradient-dtype": Fault(
        "float32 += float64 is silently float32",
        (("_arrays.layout", "if x.dtype != dtype:", "if getattr(x.dtype, 'kind', 0) != getattr(dtype, 'kind', 1):"),),
        ("tests/optimizer/test_errors.py::test_gradient",),
    ),
    "sqrt-of-a-number": Fault(
        "xp.sqrt(2.0)",
        (("_engine.program.algebra", "            if not likes:\n", "            if False:\n"),),
        (f"{HERE}::test_scalar_functions_take_python_numbers",),
        library="strict", kinds=("ValueError",),
    ),
    "sign-of-nan": Fault(
        "torch.sign(nan) is 0",
        (("rule._elementwise", "return xp.sign(x)", "return xp.where(xp.isnan(x), 0.0, xp.sign(x))"),),
        (f"{HERE}::test_a_sign_keeps_nan",),
    ),
    "denormals-flushed": Fault(
        "denormals",
        (("_arrays.libraries.torch", "return _torch().no_grad()",
          "_torch().set_flush_denormal(True)\n        return _torch().no_grad()"),),
        (f"{HERE}::test_denormals_are_kept",),
        library="torch",
    ),
    "apply-writes": Fault(
        "writing through torch.asarray of a read-only array",
        (("_engine.executor", "into = {n: work.loads[n] for n in work.outputs} if write else",
          "into = {n: work.loads[n] for n in work.outputs} if not change else"),),
        (f"{HERE}::test_apply_writes_into_nothing",),
        library="torch",
    ),
    "read-only-parameter": Fault(
        "writing into a read-only array",
        (("_arrays.layout", "if library is not None and not library.all_writable([x]):", "if False:"),),
        ("tests/optimizer/test_errors.py::test_read_only_and_scalars_are_for_apply",
         "tests/optimizer/test_errors.py::test_made_read_only_later"),
        kinds=("ValueError",),  # of NumPy's, half way
    ),
    "bool-hyperparameter": Fault(
        "hyperparameters are numbers: bool, str",
        (("rule._fields", "if isinstance(value, bool | np.bool_ | str) or not", "if isinstance(value, str) or not"),),
        ("tests/optimizer/test_errors.py::test_hyperparameters", f"{RULES}::test_refused_options[Adam]"),
    ),
    "nan-hyperparameter": Fault(
        "hyperparameters are numbers: NaN, inf",
        (("rule._fields", "if not math.isfinite(found):", "if math.isinf(found):"),),
        ("tests/optimizer/test_errors.py::test_hyperparameters", f"{RULES}::test_refused_options[Adam]"),
    ),
    "looks-at-the-device": Fault(
        "no bool() of an array inside a step",
        (("transforms._clipping", '"scale": h.max_norm / xp.maximum(norm, h.max_norm)}',
          '"scale": h.max_norm / norm if norm > h.max_norm else 1.0}'),),
        ("tests/arrays/test_libraries.py::test_dask_computes_nothing",),
        library="dask", kinds=("TypeError",),  # when it is recorded
    ),
    "restart-missed": Fault(
        "momentum that goes on where it climbs: FISTA waves about the minimum, and needs twice the iterations",
        (("proximal._fista", "if turn < 0:", "if False and turn < 0:"),),
        ("tests/proximal/test_solvers.py::test_lasso_in_few_iterations",),
    ),
    "adjoint-unlooked": Fault(
        "a K* that is not the adjoint, and runs that end at another point",
        (("proximal._space", "if not abs(a - b) <= math.sqrt(eps) * size:", "if abs(a - b) > 10 * size:"),),
        ("tests/proximal/test_forms.py::test_forms_of_operators",),
    ),
    "gap-of-no-bound": Fault(
        "a duality gap of a dual variable that is not feasible: no bound, and often negative",
        (("proximal._penalties", "return 1 / xp.where(most > 1, most, xp.ones_like(most))", "return 0 * most + 0.5"),),
        ("tests/proximal/test_prox.py::test_the_conjugate", "tests/proximal/test_forms.py::test_the_duality_gap"),
    ),
    "overflow-as-success": Fault(
        "found here: a step that is too long, squares that overflow, and a residual that is 0 of infinity",
        (
            ("proximal._run", "if not math.isfinite(whole):", "if math.isnan(whole):"),
            ("proximal._fista", "2 * space.eps * size < math.inf", "2 * space.eps * size"),
        ),
        ("tests/proximal/test_forms.py::test_what_diverges_has_not_converged",),
    ),
    "tv-poisoned": Fault(
        "found here: the dual field of an image that was NaN is where the next prox begins",
        (("proximal._tv", "if math.isfinite(value + variation):", "if True:"),),
        ("tests/proximal/test_prox.py::test_total_variation_forgets_what_was_nan",),
    ),
}
# fmt: on


# --- inside of pytest: what `-p faults` does


def pytest_configure(config: Any) -> None:
    """Have it written down which tests fail."""
    config.pluginmanager.register(_Report(Path(os.environ["XOPT_FAULT_REPORT"])))


class _Report:
    """Writes down which tests ran, and by what they failed."""

    def __init__(self, path: Path) -> None:
        self._path, self._found = path, dict[str, str]()

    def pytest_runtest_makereport(self, item: Any, call: Any) -> None:
        """Note how a test ended; what was skipped or could not be set up did not run."""
        if call.when == "call" and (call.excinfo is None or call.excinfo.typename != "Skipped"):
            self._found[item.nodeid] = "" if call.excinfo is None else call.excinfo.typename

    def pytest_sessionfinish(self) -> None:
        """Hand it over."""
        self._path.write_text(json.dumps(self._found), encoding="utf-8")


def source(inside: str) -> str:
    """Return the source of a module of xopt, without importing it."""
    path = ROOT.joinpath("xopt", *inside.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return path.read_text(encoding="utf-8")


def plant(fault: Fault) -> None:
    """Have the modules of a fault compiled from other text, when they are imported."""
    texts: dict[str, str] = {}
    for inside, old, new in fault.edits:
        module = f"xopt.{inside}"
        text = texts.get(module) or source(inside)
        assert text.count(old) == 1, f"{module} has not one {old!r}"
        texts[module] = text.replace(old, new)
    early = [module for module in texts if module in sys.modules]
    assert not early, f"imported too early: {early}"
    sys.meta_path.insert(0, _Finder(texts))


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, texts: dict[str, str]) -> None:
        self._texts = texts

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """Find a module as Python does, and give it a loader of its own."""
        if name not in self._texts:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        assert spec is not None
        assert spec.origin is not None
        spec.loader = _Loader(name, spec.origin, self._texts[name])
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, text: str) -> None:
        super().__init__(name, path)
        self._text = text

    def get_code(self, fullname: str) -> Any:
        """Compile the text; no bytecode of it is kept."""
        return compile(self._text, self.path, "exec", dont_inherit=True)


# --- outside


def run(name: str, library: str, tests: list[str]) -> tuple[int, dict[str, str], str]:
    """Run tests in a process of its own: its exit status, by what each failed, and what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        if name:  # Python runs this as it starts, also in processes that a test starts
            text = f"import sys, faults\nfaults.plant(faults.FAULTS[{name!r}])\ndel sys.modules['faults']\n"
            Path(folder, "sitecustomize.py").write_text(text, encoding="utf-8")
        path = os.pathsep.join([folder, str(ROOT / "tests"), str(ROOT), os.environ.get("PYTHONPATH", "")])
        more = {"PYTHONPATH": path, "XOPT_FAULT_REPORT": str(report), "XOPT_CACHE_DIR": folder}
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        more |= {"PYTHONDONTWRITEBYTECODE": ""}  # of what is planted none is written; the rest is compiled once
        command = [sys.executable, "-m", "pytest", "-p", "faults", "-q", "--tb=line", "-p", "no:cacheprovider",
                   "--library", library, *tests]  # fmt: skip
        env = {**os.environ, **threads, **more, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        try:
            out = subprocess.run(
                command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=_LIMIT
            )
        except subprocess.TimeoutExpired:
            return -1, {}, f"it did not end in {_LIMIT} s\n"
        found = json.loads(report.read_text(encoding="utf-8")) if report.exists() else {}
        return out.returncode, found, out.stdout + out.stderr


def missing(fault: Fault) -> str:
    """Say what this fault needs that is not here."""
    module = {"llvm": "llvmlite", "strict": "array_api_strict"}.get(fault.library, fault.library)
    if importlib.util.find_spec(module) is None:
        return module
    return fault.needs if fault.needs and shutil.which(fault.needs) is None else ""


def ended(test: str, found: dict[str, str]) -> list[str]:
    """Return by what a test failed, or "", for each of its parameters."""
    return [kind for node, kind in found.items() if node == test or node.startswith(f"{test}[")]


def caught(name: str) -> tuple[str, str]:
    """Plant a fault: nothing, or why it was not caught; and what pytest printed."""
    fault = FAULTS[name]
    status, found, text = run(name, fault.library, [*fault.tests])
    if status != 1:
        return f"pytest ended with {status}", text
    for test in fault.tests:
        kinds = {kind for kind in ended(test, found) if kind}
        if not kinds & {"AssertionError", "Failed", *fault.kinds}:
            return f"{test}: {', '.join(kinds) or 'passed'}", text
    return "", text


def sound(library: str, names: list[str]) -> tuple[str, str]:
    """Run the tests of some faults without any: nothing, or what is wrong; and what pytest printed."""
    tests = list(dict.fromkeys(test for name in names for test in FAULTS[name].tests))
    status, found, text = run("", library, tests)
    idle = [test for test in tests if not ended(test, found)]
    return (f"pytest ended with {status}" if status else f"did not run: {', '.join(idle)}" if idle else ""), text


def main(names: list[str]) -> int:
    """Plant faults, print a table, and return how many were not caught."""
    unknown = [name for name in names if name not in FAULTS]
    if unknown:
        print(f"no fault {', '.join(unknown)}; there are {', '.join(FAULTS)}")
        return 2
    names, began = names or [*FAULTS], time.monotonic()
    without = {name: missing(FAULTS[name]) for name in names}
    names, left = [n for n in names if not without[n]], [n for n in names if without[n]]
    libraries = dict.fromkeys(FAULTS[name].library for name in names)
    with ThreadPoolExecutor(2) as pool:
        planted = {name: pool.submit(caught, name) for name in sorted(names, key=lambda n: FAULTS[n].library)}
        plain = {x: pool.submit(sound, x, [n for n in names if FAULTS[n].library == x]) for x in libraries}
        failed = 0
        for name in names:
            why, text = planted[name].result()
            failed += bool(why)
            print(f"{'NOT CAUGHT' if why else 'caught':10}  {name:24}  {FAULTS[name].source}", flush=True)
            for test in FAULTS[name].tests:
                print(f"{'':12}{test}")
            print(f"{'':12}{why}\n{text}" if why else "", end="")
        for library, job in plain.items():
            why, text = job.result()
            failed += bool(why)
            print(f"without a fault, on {library}: {why or 'the same tests pass'}\n{text if why else ''}", end="")
    for name in left:
        print(f"left out    {name:24}  no {without[name]}")
    print(f"{len(names)} faults planted, {time.monotonic() - began:.0f} s")
    return failed


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 100))
