"""Ten steps in the training loop of each framework, with its own schedule, clipping and checkpoints.

Each loop takes a function that makes an optimizer, and a folder; with a folder it stops half-way, saves as its
framework saves, and goes on in objects that are made anew. It returns the parameters as arrays of NumPy.
"""

from __future__ import annotations

import logging
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import xopt

STEPS, BATCH = 10, 8
X = np.random.default_rng(0).standard_normal((STEPS // 2 * BATCH, 3)).astype("float32")
Y = np.sin(X.sum(1, keepdims=True)).astype("float32")
LR = 0.05


class Loop(NamedTuple):
    """A training loop, the optimizer of the framework that it is compared with, and ours."""

    package: str
    run: Callable[[Any, Path | None], list[Any]]
    theirs: Callable[..., Any]
    ours: Callable[..., Any]
    bound: float = 2e-6
    """The largest difference of a parameter after ten steps."""
    saves: bool = True
    """Whether the framework has checkpoints."""


# --- PyTorch


class Net(torch.nn.Module):  # type: ignore[misc, unused-ignore]
    """Two layers, which with labels return a loss, as Transformers has it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))

    def forward(self, x: Any, labels: Any = None) -> Any:
        out = self.body(x)
        return out if labels is None else {"loss": torch.nn.functional.mse_loss(out, labels), "logits": out}


def _data(names: tuple[str, ...] = ()) -> Any:
    pairs = list(zip(torch.from_numpy(X), torch.from_numpy(Y), strict=True))
    return [dict(zip(names, pair, strict=True)) for pair in pairs] if names else pairs


def _loader() -> Any:
    return torch.utils.data.DataLoader(_data(), batch_size=BATCH)


def _of(net: Any) -> list[Any]:
    return [p.detach().numpy().copy() for p in net.parameters()]


def _one_cycle(opt: Any) -> Any:
    return torch.optim.lr_scheduler.OneCycleLR(opt, LR, total_steps=STEPS)


def torch_adamw(params: Any, **kwargs: Any) -> Any:
    return torch.optim.AdamW(params, **{"lr": LR, **kwargs})


def xopt_adamw(params: Any, **kwargs: Any) -> Any:
    from xopt.adapters.torch import Optimizer

    return Optimizer(params, xopt.AdamW(LR, like="torch"), **kwargs)


def lightning(make: Any, folder: Path | None) -> list[Any]:
    import lightning.pytorch as pl

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def training_step(self, batch: Any, index: int) -> Any:
            return torch.nn.functional.mse_loss(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            opt = make(self.parameters())
            return {"optimizer": opt, "lr_scheduler": {"scheduler": _one_cycle(opt), "interval": "step"}}

    def trainer(epochs: int) -> Any:
        return pl.Trainer(
            max_epochs=epochs, gradient_clip_val=0.5, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        )  # fmt: skip

    module, path = Module(), None
    if folder is not None:
        first = trainer(1)
        first.fit(module, _loader())
        path, module = folder / "last.ckpt", Module()
        first.save_checkpoint(path)
    trainer(2).fit(module, _loader(), ckpt_path=path)
    return _of(module)


def accelerate(make: Any, folder: Path | None) -> list[Any]:
    import accelerate

    def prepared() -> Any:
        accelerate.state.AcceleratorState._reset_state(True)
        net = Net()
        opt = make(net.parameters())
        accelerator = accelerate.Accelerator(cpu=True)
        return accelerator, *accelerator.prepare(net, opt, _loader(), _one_cycle(opt))

    def epoch(accelerator: Any, net: Any, opt: Any, loader: Any, scheduler: Any) -> Any:
        for x, y in loader:
            opt.zero_grad()
            accelerator.backward(torch.nn.functional.mse_loss(net(x), y))
            accelerator.clip_grad_norm_(net.parameters(), 0.5)
            opt.step()
            scheduler.step()
        return net

    made = prepared()
    epoch(*made)
    if folder is not None:
        made[0].save_state(folder)
        made = prepared()
        made[0].load_state(folder)
    return _of(epoch(*made))


def trainer(make: Any, folder: Path | None) -> list[Any]:
    import transformers

    def fit(steps: int, home: str, resume: str | None = None) -> Any:
        net = Net()
        opt = make(net.parameters())
        args = transformers.TrainingArguments(
            home, max_steps=steps, per_device_train_batch_size=BATCH, max_grad_norm=0.5, save_steps=STEPS // 2,
            report_to=[], use_cpu=True, disable_tqdm=True, logging_strategy="no", seed=1,
        )  # fmt: skip
        made = transformers.Trainer(net, args, train_dataset=_data(("x", "labels")), optimizers=(opt, _one_cycle(opt)))
        made.remove_callback(transformers.PrinterCallback)
        made.train(resume_from_checkpoint=resume)
        return net

    with tempfile.TemporaryDirectory() as home:
        if folder is None:
            return _of(fit(STEPS, home))
        fit(STEPS // 2, str(folder))
        return _of(fit(STEPS, str(folder), str(folder / f"checkpoint-{STEPS // 2}")))


def skorch(make: Any, folder: Path | None) -> list[Any]:
    import skorch

    def net(**more: Any) -> Any:
        schedule = skorch.callbacks.LRScheduler(
            torch.optim.lr_scheduler.OneCycleLR, max_lr=LR, total_steps=STEPS, step_every="batch"
        )
        return skorch.NeuralNetRegressor(
            Net, lr=LR, batch_size=BATCH, max_epochs=1, train_split=None, verbose=0, iterator_train__shuffle=False,
            callbacks=[("clip", skorch.callbacks.GradientNormClipping(0.5)), ("schedule", schedule)], **make(), **more,
        )  # fmt: skip

    model = net().fit(X, Y)
    if folder is not None:
        model = pickle.loads(pickle.dumps(model))
    model.partial_fit(X, Y)
    return _of(model.module_)


def skorch_theirs() -> Any:
    return {"optimizer": torch.optim.AdamW}


def skorch_ours() -> Any:
    from xopt.adapters.torch import Optimizer

    return {"optimizer": Optimizer, "optimizer__rule": xopt.AdamW(like="torch")}


def pyro(make: Any, folder: Path | None) -> list[Any]:
    import pyro
    from pyro.infer import SVI, Trace_ELBO

    def model(x: Any, y: Any) -> None:
        w = pyro.sample("w", pyro.distributions.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", pyro.distributions.Normal(x @ w, 0.5), obs=y[:, 0])

    x, y = torch.from_numpy(X), torch.from_numpy(Y)
    pyro.clear_param_store()
    guide = pyro.infer.autoguide.AutoNormal(model)
    opt = make()
    svi = SVI(model, guide, opt, Trace_ELBO())
    for k in range(STEPS):
        if k == STEPS // 2 and folder is not None:
            pyro.get_param_store().save(folder / "params")
            opt.save(str(folder / "optimizer"))
            pyro.clear_param_store()
            guide, opt = pyro.infer.autoguide.AutoNormal(model), make()
            pyro.set_rng_seed(0)
            guide(x, y)
            pyro.get_param_store().load(folder / "params")
            opt.load(str(folder / "optimizer"))
            svi = SVI(model, guide, opt, Trace_ELBO())
            pyro.module("guide", guide, update_module_params=True)
        pyro.set_rng_seed(k)
        svi.step(x, y)
    return [p.detach().numpy().copy() for _, p in sorted(pyro.get_param_store().items())]


def pyro_theirs() -> Any:
    import pyro

    return pyro.optim.Adam({"lr": LR})


def pyro_ours() -> Any:
    import pyro

    from xopt.adapters.torch import Optimizer

    return pyro.optim.PyroOptim(Optimizer, {"rule": xopt.Adam(LR, like="torch")})


# --- JAX


def _jax_params() -> Any:
    rng = np.random.default_rng(1)
    draw = lambda *shape: rng.standard_normal(shape).astype("float32")
    return {"hidden": {"kernel": draw(3, 4), "bias": draw(4)}, "out": {"kernel": draw(4, 1), "bias": draw(1)}}


def _around(make: Any) -> Any:
    import optax

    return optax.chain(optax.clip_by_global_norm(0.5), make(optax.cosine_decay_schedule(LR, STEPS)))


def optax_adamw(lr: Any) -> Any:
    import optax

    return optax.adamw(lr)


def xopt_transformation(lr: Any) -> Any:
    """Return AdamW with a schedule of optax, which is asked for the number of steps before this one."""
    from xopt.adapters.optax import transformation

    return transformation(xopt.AdamW(lambda t: lr(t - 1), like="optax"))


def _batch(k: int) -> tuple[Any, Any]:
    low = k % (STEPS // 2) * BATCH
    return X[low : low + BATCH], Y[low : low + BATCH]


def linen(make: Any, folder: Path | None) -> list[Any]:
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    from flax import serialization
    from flax.training.train_state import TrainState

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return nn.Dense(1, name="out")(nn.tanh(nn.Dense(4, name="hidden")(x)))

    def begun() -> Any:
        return TrainState.create(apply_fn=Net().apply, params=_jax_params(), tx=_around(make))

    @jax.jit
    def step(state: Any, x: Any, y: Any) -> Any:
        loss = lambda p: jnp.mean((state.apply_fn({"params": p}, x) - y) ** 2)
        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    state = begun()
    for k in range(STEPS):
        if k == STEPS // 2 and folder is not None:
            (folder / "state").write_bytes(serialization.to_bytes(state))
            state = serialization.from_bytes(begun(), (folder / "state").read_bytes())
        state = step(state, *_batch(k))
    return jax.tree.leaves(jax.device_get(state.params))


def nnx(make: Any, folder: Path | None) -> list[Any]:
    import jax
    import jax.numpy as jnp
    import orbax.checkpoint as ocp
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.hidden, self.out = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 1, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.out(jnp.tanh(self.hidden(x)))

    def begun() -> Any:
        net = Net(nnx.Rngs(0))
        return net, nnx.Optimizer(net, _around(make), wrt=nnx.Param)

    @nnx.jit
    def step(net: Any, opt: Any, x: Any, y: Any) -> None:
        opt.update(net, nnx.grad(lambda net: jnp.mean((net(x) - y) ** 2))(net))

    net, opt = begun()
    for k in range(STEPS):
        if k == STEPS // 2 and folder is not None:
            keeper = ocp.StandardCheckpointer()
            keeper.save(folder / "nnx", nnx.state((net, opt)))
            keeper.wait_until_finished()
            net, opt = begun()
            nnx.update((net, opt), keeper.restore(folder / "nnx", nnx.state((net, opt))))
        step(net, opt, *_batch(k))
    return jax.tree.leaves(jax.device_get(nnx.state(net)))


def equinox(make: Any, folder: Path | None) -> list[Any]:
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    tx = _around(make)

    def begun() -> Any:
        net = eqx.nn.MLP(3, 1, 4, 1, activation=jnp.tanh, key=jax.random.key(0))
        return net, tx.init(eqx.filter(net, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(net: Any, state: Any, x: Any, y: Any) -> Any:
        grads = eqx.filter_grad(lambda net: jnp.mean((jax.vmap(net)(x) - y) ** 2))(net)
        updates, state = tx.update(grads, state, eqx.filter(net, eqx.is_inexact_array))
        return eqx.apply_updates(net, updates), state

    both = begun()
    for k in range(STEPS):
        if k == STEPS // 2 and folder is not None:
            eqx.tree_serialise_leaves(folder / "run.eqx", both)
            both = eqx.tree_deserialise_leaves(folder / "run.eqx", begun())
        both = step(*both, *_batch(k))
    return [np.asarray(x) for x in jax.tree.leaves(eqx.filter(both[0], eqx.is_inexact_array))]


def numpyro(make: Any, folder: Path | None) -> list[Any]:
    import jax
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import SVI, Trace_ELBO
    from numpyro.infer.autoguide import AutoNormal

    def model(x: Any, y: Any) -> None:
        w = numpyro.sample("w", dist.Normal(np.zeros(3, "float32"), 1.0).to_event(1))
        with numpyro.plate("data", len(x)):
            numpyro.sample("y", dist.Normal(x @ w, 0.5), obs=y[:, 0])

    svi = SVI(model, AutoNormal(model), _around(make), Trace_ELBO())
    state = svi.init(jax.random.key(0), X, Y)
    for k in range(STEPS):
        if k == STEPS // 2 and folder is not None:
            leaves, spec = jax.tree.flatten(state._replace(rng_key=jax.random.key_data(state.rng_key)))
            np.savez(folder / "svi.npz", *map(np.asarray, leaves))
            kept = np.load(folder / "svi.npz")
            state = jax.tree.unflatten(spec, [jax.numpy.asarray(kept[f"arr_{i}"]) for i in range(len(leaves))])
            state = state._replace(rng_key=jax.random.wrap_key_data(state.rng_key))
        state, _ = svi.update(state, X, Y)
    return jax.tree.leaves(jax.device_get(svi.get_params(state)))


def optimistix(make: Any, folder: Path | None) -> list[Any]:
    import jax
    import optimistix

    def objective(w: Any, args: Any) -> Any:
        return ((X @ w - Y[:, 0]) ** 2).mean()

    solver = optimistix.OptaxMinimiser(_around(make), rtol=1e-12, atol=1e-12)
    found = optimistix.minimise(objective, solver, jax.numpy.zeros(3), max_steps=STEPS, throw=False)
    return [np.asarray(found.value)]


OPTAX = 5e-6
"""optax computes 1 - b2^t in float32, which in the first steps has few digits."""

LOOPS = {
    "Lightning": Loop("lightning", lightning, torch_adamw, xopt_adamw),
    "Accelerate": Loop("accelerate", accelerate, torch_adamw, xopt_adamw),
    "Transformers, Trainer": Loop("transformers", trainer, torch_adamw, xopt_adamw),
    "skorch": Loop("skorch", skorch, skorch_theirs, skorch_ours),
    "Pyro, SVI": Loop("pyro", pyro, pyro_theirs, pyro_ours),
    "Flax, TrainState": Loop("flax", linen, optax_adamw, xopt_transformation, OPTAX),
    "Flax, nnx": Loop("flax", nnx, optax_adamw, xopt_transformation, OPTAX),
    "Equinox": Loop("equinox", equinox, optax_adamw, xopt_transformation, OPTAX),
    "NumPyro, SVI": Loop("numpyro", numpyro, optax_adamw, xopt_transformation, OPTAX),
    "optimistix": Loop("optimistix", optimistix, optax_adamw, xopt_transformation, OPTAX, saves=False),
}


def apart(a: list[Any], b: list[Any]) -> float:
    """Return the largest difference of two lists of arrays."""
    return max(float(np.max(np.abs(x - y))) for x, y in zip(a, b, strict=True))
