"""What a rule is called in other libraries, and which of its fields have another value there.

``Adam(like="keras")`` has every convention and default of ``keras.optimizers.Adam``. What stands in the table is what
differs from the defaults of the rule; `REQUIRED` has no default there, and has to be given.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias

Like: TypeAlias = Literal[
    "torch",
    "optax",
    "keras",
    "mlx",
    "moonshot",
    "authors",
    "chainer",
    "thinc",
    "tensorflow1",
    "sklearn",
    "autograd",
    None,
]
"""Whose conventions a rule has; None is xopt."""

REQUIRED: Any = object()


class Preset(NamedTuple):
    """A rule in another library."""

    call: str
    """Its name there."""
    fields: dict[str, Any]
    """The fields that differ from the defaults of the rule."""


def _(call: str, **fields: Any) -> Preset:
    return Preset(call, fields)


def _torch(name: str, **fields: Any) -> Preset:
    return Preset(f"torch.optim.{name}", {"complex": "split", **fields})


def _optax(name: str, **fields: Any) -> Preset:
    return Preset(f"optax.{name}", {"lr": REQUIRED, **fields})


def _keras(name: str, **fields: Any) -> Preset:
    return Preset(f"keras.optimizers.{name}", {"decay": "lr", **fields})


_INSIDE = {"eps": 1e-7, "eps_mode": "inside"}
_HAT = {"eps": 1e-7, "eps_mode": "hat"}

PRESETS: dict[str, dict[str, Preset]] = {
    "torch": {
        "SGD": _torch("SGD"),
        "Adagrad": _torch("Adagrad"),
        "Adadelta": _torch("Adadelta"),
        "RMSProp": _torch("RMSprop"),
        "Adam": _torch("Adam"),
        "AdamW": _torch("AdamW", weight_decay=1e-2),
        "Adamax": _torch("Adamax"),
        "NAdam": _torch("NAdam"),
        "RAdam": _torch("RAdam"),
        "Rprop": _torch("Rprop"),
        "ASGD": _torch("ASGD"),
        "Adafactor": _("torch.optim.Adafactor", eps_mode="clamp", decay="lr"),
        "Muon": _("torch.optim.Muon", scale="original", eps_mode="max", weight_decay=0.1),
    },
    "optax": {
        "SGD": _optax("sgd"),
        "Adagrad": _optax("adagrad", initial=0.1, **_INSIDE),
        "Adadelta": _("optax.adadelta", lr=REQUIRED),
        "RMSProp": _optax("rmsprop", rho=0.9, eps_mode="inside", form="lr_inside"),
        "Adam": _optax("adam"),
        "AdamW": _optax("adamw", weight_decay=1e-4),
        "Adamax": _optax("adamax"),
        "NAdam": _optax("nadam", momentum_decay=None),
        "RAdam": _optax("radam", eps_mode="outside"),
        "AdaBelief": _optax("adabelief"),
        "Yogi": _optax("yogi"),
        "Lion": _optax("lion", weight_decay=1e-3),
        "Sophia": _optax("contrib.sophia", b1=0.965, eps=1e-8, bias="standard", weight_decay=1e-4),
        "SignSGD": _optax("sign_sgd"),
        "LAMB": _optax("lamb"),
        "LARS": _optax("lars", decay="l2"),
        "Fromage": _optax("fromage", least=1e-6),
        "Adan": _optax("adan", eps_root=1e-8, form="optax", decay="lr"),
        "AdEMAMix": _optax("contrib.ademamix"),
        "ADOPT": _optax("contrib.adopt"),
        "NovoGrad": _optax("novograd", b1=0.9, b2=0.25, eps=1e-6),
        "Adafactor": _optax(
            "adafactor", relative_step=False, factored="largest", min_size=128, decay="independent"
        ),
        "SM3": _optax("sm3", momentum=0.9, eps=1e-8),
        "DAdaptAdam": _("optax.contrib.dadapt_adamw", bias="standard", decay="lr"),
        "Prodigy": _("optax.contrib.prodigy", bias="standard", decay="lr"),
        "DoG": _("optax.contrib.dog"),
        "Muon": _optax("contrib.muon", form="corrected", scale="in_out", eps=1e-8),
        "ScheduleFreeSGD": _("optax.contrib.schedule_free_sgd"),
        "ScheduleFreeAdamW": _("optax.contrib.schedule_free_adamw"),
    },
    "keras": {
        "SGD": _keras("SGD", lr=1e-2, form="lr_inside"),
        "Adagrad": _keras("Adagrad", lr=1e-3, initial=0.1, **_INSIDE),
        "Adadelta": _keras("Adadelta", lr=1e-3, rho=0.95, eps=1e-7),
        "RMSProp": _keras("RMSprop", lr=1e-3, rho=0.9, form="lr_inside", **_INSIDE),
        "Adam": _keras("Adam", **_HAT),
        "AdamW": _keras("AdamW", weight_decay=4e-3, **_HAT),
        "Adamax": _keras("Adamax", lr=1e-3, eps=1e-7, eps_mode="outside"),
        "NAdam": _keras("Nadam", lr=1e-3, eps=1e-7, momentum_decay=1.0),
        "Lion": _keras("Lion", lr=1e-3),
        "FTRL": _keras("Ftrl"),
        "LAMB": _keras("Lamb", eps=1e-7),
        "Adafactor": _keras("Adafactor", lr=1e-3),
        "ScheduleFreeAdamW": _keras("ScheduleFreeAdamW", weight_lr_power=0.0),
        "Muon": _keras("Muon", form="sum", weight_decay=4e-3),
    },
    "mlx": {
        "Adagrad": _("mlx.optimizers.Adagrad", lr=REQUIRED, eps=1e-8),
        "Adadelta": _("mlx.optimizers.AdaDelta", lr=REQUIRED),
        "RMSProp": _("mlx.optimizers.RMSprop", lr=REQUIRED),
        "Adam": _("mlx.optimizers.Adam", lr=REQUIRED, bias="none"),
        "AdamW": _("mlx.optimizers.AdamW", lr=REQUIRED, bias="none", weight_decay=1e-2),
        "Adamax": _("mlx.optimizers.Adamax", lr=REQUIRED, bias="none", eps_mode="outside"),
        "Lion": _("mlx.optimizers.Lion", lr=REQUIRED),
        "Muon": _("mlx.optimizers.Muon", lr=REQUIRED, scale="original", weight_decay=1e-2, decay="l2"),
    },
    "moonshot": {
        "Muon": _("Moonlight's Muon", form="sum", weight_decay=0.1),
    },
    "authors": {
        "Sophia": _("SophiaG", b1=0.965, gamma=0.04, eps=1e-15, eps_mode="add", weight_decay=0.1),
    },
    "chainer": {
        "SGD": _("chainer.optimizers.MomentumSGD", lr=1e-2, momentum=0.9, form="lr_inside"),
        "Adagrad": _("chainer.optimizers.AdaGrad", lr=1e-3, eps=1e-8),
        "Adadelta": _("chainer.optimizers.AdaDelta", rho=0.95),
        "RMSProp": _("chainer.optimizers.RMSprop"),
        "Adam": _("chainer.optimizers.Adam", eps_mode="hat"),
        "AdamW": _("chainer.optimizers.AdamW", eps_mode="hat", weight_decay=0.0, decay="independent"),
    },
    "thinc": {
        "SGD": _("thinc.api.SGD", lr=REQUIRED),
        "Adam": _("thinc.api.Adam", eps_mode="hat"),
    },
    "tensorflow1": {
        "SGD": _("tf.compat.v1.train.MomentumOptimizer", lr=REQUIRED, momentum=REQUIRED),
        "Adagrad": _("tf.compat.v1.train.AdagradOptimizer", lr=REQUIRED, initial=0.1, eps=0.0),
        "Adadelta": _("tf.compat.v1.train.AdadeltaOptimizer", lr=1e-3, rho=0.95, eps=1e-8),
        "RMSProp": _(
            "tf.compat.v1.train.RMSPropOptimizer", lr=REQUIRED, rho=0.9, eps=1e-10, eps_mode="inside", initial=1.0,
            form="lr_inside",
        ),
        "Adam": _("tf.compat.v1.train.AdamOptimizer", eps_mode="hat"),
        "FTRL": _("tf.compat.v1.train.FtrlOptimizer", lr=REQUIRED),
    },
    "sklearn": {
        "SGD": _("sklearn.neural_network.MLPClassifier(solver='sgd')", momentum=0.9, nesterov=True, form="lr_inside"),
        "Adam": _("sklearn.neural_network.MLPClassifier(solver='adam')", eps_mode="hat"),
    },
    "autograd": {
        "SGD": _("autograd.misc.optimizers.sgd", lr=0.1, momentum=0.9, form="ema"),
        "RMSProp": _("autograd.misc.optimizers.rmsprop", lr=0.1, rho=0.9, initial=1.0),
        "Adam": _("autograd.misc.optimizers.adam"),
    },
}  # fmt: skip


def preset(rule: str, like: str) -> Preset:
    """Return what a rule is like in a library, or say that there is no such one."""
    if rule not in PRESETS[like]:
        raise ValueError(f"{rule}.like: {like!r}, but that has no {rule} here; there are {', '.join(PRESETS[like])}")
    return PRESETS[like][rule]
