"""A rule in the training loop of spaCy, which finds it by the name in the configuration, as `spacy train` does."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

spacy = pytest.importorskip("spacy")
from spacy.training import Example
from spacy.training.initialize import init_nlp
from spacy.training.loop import train

TEXTS = [("good and kind", 1.0), ("bad and cold", 0.0), ("kind words", 1.0), ("cold words", 0.0)]

CONFIG = """
[nlp]
lang = "en"
pipeline = ["textcat"]

[components]

[components.textcat]
factory = "textcat"

[components.textcat.model]
@architectures = "spacy.TextCatBOW.v3"
exclusive_classes = true
ngram_size = 1
no_output_layer = false
length = 256

[corpora]

[corpora.train]
@readers = "xopt_texts.v1"

[corpora.dev]
@readers = "xopt_texts.v1"

[training]
dev_corpus = "corpora.dev"
train_corpus = "corpora.train"
seed = 0
max_steps = 12
eval_frequency = 4
dropout = 0.0

[training.logger]
@loggers = "xopt_quiet.v1"

[training.optimizer]
"""


@spacy.registry.readers("xopt_texts.v1")  # type: ignore[untyped-decorator]
def texts() -> Any:
    def read(nlp: Any) -> Any:
        for text, good in TEXTS:
            yield Example.from_dict(nlp.make_doc(text), {"cats": {"GOOD": good, "BAD": 1 - good}})

    return read


@spacy.registry.loggers("xopt_quiet.v1")  # type: ignore[untyped-decorator]
def quiet() -> Any:
    return lambda nlp, stdout=None, stderr=None: (lambda info: None, lambda: None)


def trained(optimizer: str, folder: Path | None = None) -> tuple[Any, str]:
    told = StringIO()
    nlp, _ = train(started(optimizer), folder, stdout=told, stderr=told)
    return nlp, told.getvalue()


def started(optimizer: str) -> Any:
    config = spacy.util.load_config_from_str(CONFIG + optimizer, interpolate=False)
    return init_nlp(spacy.language.DEFAULT_CONFIG.merge(config))


def weights(nlp: Any) -> list[Any]:
    model = nlp.get_pipe("textcat").model
    return [node.get_param(n) for node in model.walk() for n in node.param_names if node.has_param(n)]


THEIRS = '@optimizers = "Adam.v1"\nuse_averages = false\nL2 = 0.0\ngrad_clip = 1.0\neps = 1e-4\n'
OURS = '@optimizers = "xopt.v1"\nrule = "chain(ClipByNorm(1.0), Adam(lr=0.001, eps=1e-4, like=\'thinc\'))"\n'
SECTION = """
[training.optimizer.learn_rate]
@schedules = "warmup_linear.v1"
warmup_steps = 4
total_steps = 20
initial_rate = 0.05
"""


@pytest.mark.parametrize("section", ["", SECTION], ids=["number", "schedule"])
def test_twelve_steps_beside_adam_of_thinc(section: str) -> None:
    """The loop feeds differences in the last digits of a gradient back; ``eps`` keeps them from being a whole step."""
    (ours, told), (theirs, _) = trained(OURS + section), trained(THEIRS + section)
    assert f"Initial learn rate: {0.0 if section else 0.001}" in told
    for got, want in zip(weights(ours), weights(theirs), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 if section else 1e-6)
    start = weights(started(OURS))
    assert max(float(np.abs(x - y).max()) for x, y in zip(weights(ours), start, strict=True)) > 1e-3


def test_averages_are_what_is_saved(tmp_path: Path) -> None:
    """The pipeline on the disk has the averages; that of `train` goes on with what was trained."""
    rule = '@optimizers = "xopt.v1"\nrule = "chain(Adam(lr=0.1), EMA(0.5))"\n'
    nlp, _ = trained(rule, tmp_path)
    saved = spacy.load(tmp_path / "model-last")
    apart = [float(np.abs(x - y).max()) for x, y in zip(weights(nlp), weights(saved), strict=True)]
    assert max(apart) > 1e-3
    assert saved("kind and good").cats["GOOD"] > 0.5


def test_a_schedule_of_ours_and_what_is_wrong_is_said() -> None:
    rule = '@optimizers = "xopt.v1"\nrule = "AdamW(lr=warmup_cosine(0.1, warmup=2, steps=12))"\n'
    nlp, told = trained(rule)
    assert "Initial learn rate: warmup_cosine(0.1" in told
    assert nlp("kind and good").cats["GOOD"] > 0.5
    with pytest.raises(TypeError, match="ClipByGlobalNorm looks at all gradients"):
        trained('@optimizers = "xopt.v1"\nrule = "chain(ClipByGlobalNorm(1.0), SGD(0.1))"\n')
    with pytest.raises(ValueError, match="rule: 'Adan2'"):
        trained('@optimizers = "xopt.v1"\nrule = "Adan2()"\n')
