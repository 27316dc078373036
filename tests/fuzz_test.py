"""Random configurations train, or are refused before the first step: nothing between the two.

A configuration trains two steps to finite weights, some of every network changed, and evaluates; a
part is saved, loaded and goes on. Or it raises a `ValueError` or `TypeError` that says what was
expected, and no weight has moved. Or a warning says why nothing was learned.
"""

import warnings

import configurations
import hypothesis
import keras
import numpy as np
import pytest

import keras_mikd as mikd

EACH = 100


@pytest.mark.parametrize(
    "piece", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, 20))]
)
def test_random_configurations_train_or_are_refused(piece, tmp_path):
    @hypothesis.seed(piece)
    @hypothesis.settings(
        max_examples=EACH,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(configurations.CONFIGURATIONS)
    def run(config):
        check(config, tmp_path)

    run()


def check(config, folder):
    """Raises an `AssertionError` for a configuration that neither trains nor is refused."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        return _outcome(config, folder, caught)


def _outcome(config, folder, caught):
    distiller = before = None
    try:
        distiller = configurations.distiller(config)
        teacher = getattr(distiller, "teacher", None)
        teacher = None if isinstance(distiller, mikd.MCMITeacher) else teacher
        data = configurations.data(config, teacher)
        _compile(distiller, config)
        before = [v.numpy() for v in distiller.trainable_variables]
        distiller.fit(**data, epochs=1 + (config["optimizer"] == "accumulated"), verbose=0)
    except (ValueError, TypeError) as error:
        assert refused(error), f"not one of ours: {type(error).__name__}: {error}"
        if before is not None:
            for variable, value in zip(distiller.trainable_variables, before, strict=True):
                np.testing.assert_array_equal(variable.numpy(), value, err_msg="after the refusal")
        return "refused"
    said = " ".join(str(each.message) for each in caught)
    after = _finite(distiller)
    idle = all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    told = "othing is learned" in said or _is_scaling_down(distiller)
    assert told or not idle, f"nothing changed, and nothing was said: {said}"
    logs = distiller.evaluate(**_for_evaluation(data), return_dict=True, verbose=0)
    assert all(np.isfinite(value) for value in logs.values()), logs
    if config["saved"]:
        _goes_on(distiller, data, folder)
    return "idle" if idle else "trained"


def _is_scaling_down(distiller):
    """Whether the first updates of float16 were left out, until gradients fit."""
    optimizers = [o for o, _ in distiller._optimizers()]  # noqa: SLF001
    scaled = [o for o in optimizers if isinstance(o, keras.optimizers.LossScaleOptimizer)]
    return any(float(o.dynamic_scale) < o.initial_scale for o in scaled)


def refused(error):
    """Whether an error says what was expected."""
    return "Expected" in str(error)


def _compile(distiller, config):
    options = {"run_eagerly": not config["graph"], "jit_compile": False}
    if not isinstance(distiller, mikd.MCMITeacher):
        options["loss"] = configurations.task_loss(config)
    options["critic_optimizer"] = configurations.optimizer(config["critic_optimizer"])
    distiller.compile(configurations.optimizer(config["optimizer"]), **options)


def _finite(distiller):
    values = [v.numpy() for v in distiller.trainable_variables]
    for variable, value in zip(distiller.trainable_variables, values, strict=True):
        assert np.all(np.isfinite(np.float32(value))), f"not finite: {variable.path}"
    return values


def _for_evaluation(data):
    return {key: value for key, value in data.items() if key != "class_weight"}


def _goes_on(distiller, data, folder):
    distiller.save(folder / "fuzz.keras")
    loaded = keras.saving.load_model(folder / "fuzz.keras")
    for mine, other in zip(distiller.variables, loaded.variables, strict=True):
        if "seed" not in mine.path:
            np.testing.assert_array_equal(mine.numpy(), other.numpy(), err_msg=mine.path)
    loaded.fit(**data, shuffle=False, verbose=0)
    _finite(loaded)
