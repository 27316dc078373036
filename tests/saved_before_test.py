"""Distillers that an older version saved go on to the weights that it went on to.

`saved/` has two files of the version before the package was divided into rooms, each saved after
an epoch, and what they became there in two more: history and weights.
"""

from pathlib import Path

import cases
import keras
import numpy as np
import pytest

import keras_mikd as mikd
from keras_mikd.critics import critic, negatives

SAVED = Path(__file__).parent / "saved"


@pytest.mark.parametrize(
    ("name", "kind"), [("distiller", mikd.Distiller), ("mcmi_teacher", mikd.MCMITeacher)]
)
def test_a_saved_distiller_goes_on_to_the_same_weights(name, kind, deterministic_ops, monkeypatch):
    # Negatives were the next examples then, and shorter embeddings had larger gradients.
    monkeypatch.setattr(negatives, "_random_order", lambda size, step: keras.ops.arange(size))
    monkeypatch.setattr(critic, "_SHORTEST", 1e-6)
    model = keras.saving.load_model(SAVED / f"{name}.keras")
    assert type(model) is kind
    keras.utils.set_random_seed(1)
    x, y = cases.data(32)
    history = model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0).history
    variables = [*model.weights, *model.optimizer.variables]
    # Critics took features as they are, and still do.
    variables = [v for v in variables if not v.path.endswith("_moments")]
    with np.load(SAVED / f"{name}.npz") as before:
        expected = dict(before)
    assert len(variables) == sum(key.startswith("weight/") for key in expected)
    for i, variable in enumerate(variables):
        # To the bit on the machine that made them; another CPU rounds in another way.
        np.testing.assert_allclose(
            variable,
            expected[f"weight/{i}"],
            rtol=0,
            atol=_tolerance(variable.path),
            err_msg=variable.path,
        )
    logged = {key.removeprefix("history/") for key in expected if key.startswith("history/")}
    logged.discard("nce_mi_nats")  # Donsker-Varadhan then, which made -2.3 nats of such a critic.
    for key in logged:
        values = expected[f"history/{key}"]
        np.testing.assert_allclose(history[key], values, rtol=1e-5, atol=1e-5, err_msg=key)


def _tolerance(path):
    # The gradient of a bias in front of BatchNormalization is rounding, which Adam makes a step of.
    noise = {"conv1/bias": 1e-2, "conv2/bias": 1e-2, "moving_mean": 1e-3}
    return next((size for end, size in noise.items() if path.endswith(end)), 1e-6)
