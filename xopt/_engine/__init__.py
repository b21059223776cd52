"""Runs a chain of components over a tree of arrays. It knows no rule.

Six words, each made from the one before:

chain
    What a gradient goes through, in order: transforms, one rule, transforms of the step, transforms of the new
    parameters. With parameter groups a leaf of the tree may have a chain of its own.
component
    One element of a chain: an object with fields and hooks (`xopt.rule`). The engine never sees it.
spec
    What the engine sees of a component in its place (`ComponentSpec`): the hooks, the first values of its state, what
    is static, and how to find the hyperparameters of a step. Where it stands is in its name, ``"0.adam"``, under
    which its state is filed.
plan
    The specs of a chain recorded as programs of elementwise operations (`Plan`): one for the step, one for each
    component that sums over arrays. There is one plan for all chains that differ in numbers alone.
bucket
    The leaves of one dtype, on one device, with one plan (`Bucket`): what a runner computes together.
step
    The arrays of a bucket in one step (`BucketStep`) and its scalars (`StepScalars`), which a runner is given. The
    `Executor` holds the buckets of a tree and takes the steps; `StateSpec` says what is kept between them.
"""
