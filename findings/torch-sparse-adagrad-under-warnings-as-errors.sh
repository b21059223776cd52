#!/bin/sh
# PyTorch 2.13.0: torch.optim.Adagrad warns of memory errors ("Sparse invariant checks are implicitly disabled. Memory
# errors (e.g. SEGFAULT) will occur ...") at its first step with the sparse gradient of an embedding, which PyTorch's own
# backward pass made and Adagrad has just coalesced: it builds new sparse tensors from the old indices without saying
# whether to check them. SGD, with momentum too, and SparseAdam take the same gradient in silence. Where warnings are
# errors, as in many test suites, that step raises when it has counted itself and changed nothing else: "step" in the
# state is 1, the sums and the parameter are what they were. The warning comes once in a process, so the next step is
# taken, counts as the second, and says nothing.
# Ends with 0 while this is so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
cat > "$folder/probe.py" <<'PYTHON'
import sys
import warnings

import torch

warnings.simplefilter("error")
table = torch.nn.Embedding(5, 2, sparse=True)
before = table.weight.detach().clone()
options = {"SGD": {"lr": 0.1, "momentum": 0.9}, "SparseAdam": {}, "Adagrad": {}}[sys.argv[1]]
optimizer = getattr(torch.optim, sys.argv[1])(table.parameters(), **options)
for _ in range(2):
    optimizer.zero_grad()
    table(torch.tensor([1, 2, 1])).sum().backward()
    try:
        optimizer.step()
        said = "no error"
    except UserWarning as warning:
        said = str(warning).partition(".")[0]
    state = optimizer.state[table.weight]
    moved = "moved" if not torch.equal(before, table.weight) else "not moved"
    steps = int(state["step"]) if "step" in state else "-"
    print(f"{sys.argv[1]}: {said}; {moved}; step {steps}")
PYTHON
for name in SGD SparseAdam Adagrad; do
    "$folder/venv/bin/python" "$folder/probe.py" "$name"
done > "$folder/found"
cat "$folder/found"
diff "$folder/found" - <<'EXPECTED'
SGD: no error; moved; step -
SGD: no error; moved; step -
SparseAdam: no error; moved; step 1
SparseAdam: no error; moved; step 2
Adagrad: Sparse invariant checks are implicitly disabled; not moved; step 1
Adagrad: no error; moved; step 2
EXPECTED
