"""Which losses a MUSEDistiller puts where."""

import cases
import keras
import pytest

import keras_mikd as mikd


def _step(distiller):
    distiller.compile("sgd", cases.cross_entropy(), run_eagerly=True)
    return distiller.fit(*cases.data(), verbose=0).history


def test_all_stages_against_the_pooled_vector():
    distiller = mikd.MUSEDistiller(cases.student(), muse_weight=0.3, combine="additive")
    (muse,) = distiller.distillation_losses
    assert (muse.teacher_layer, muse.student_layer) == ("pooled", ["stage1", "stage2"])
    assert (muse.weight, muse.combine, muse.negatives_from) == (0.3, "additive", "other_classes")
    assert muse.gather
    history = _step(distiller)
    assert history["loss"] == pytest.approx(
        [history["task_loss"][0] + 0.3 * history["muse"][0]], rel=1e-5
    )


def test_without_labels():
    distiller = mikd.MUSEDistiller(cases.student(), negatives_from="batch", gather=False)
    assert not distiller.distillation_losses[0].gather
    distiller.compile("sgd", None, run_eagerly=True)
    seen = distiller.evaluate(cases.data()[0], verbose=0, return_dict=True)
    assert seen["loss"] == pytest.approx(0.03 * seen["muse"], rel=1e-5)


def test_deep_supervision_may_be_added():
    byot = mikd.BeYourOwnTeacher(teacher_layer=["stage2", "output"], student_layer=["stage1"])
    distiller = mikd.MUSEDistiller(cases.student(), deep_supervision=byot)
    assert distiller.distillation_losses[1] is byot
    _step(distiller)


def test_losses_of_the_callers_own_take_the_place_of_the_assembled_one():
    hint = mikd.Hint(teacher_layer="stage2", student_layer="stage1")
    assert mikd.MUSEDistiller(cases.student(), [hint]).distillation_losses == (hint,)
    byot = mikd.BeYourOwnTeacher(teacher_layer=["stage2", "output"], student_layer=["stage1"])
    other = mikd.Hint(teacher_layer="stage2", student_layer="stage1")
    both = mikd.MUSEDistiller(cases.student(), [other], deep_supervision=byot)
    assert both.distillation_losses == (other, byot)


def test_a_saved_distiller_is_one(tmp_path):
    distiller = mikd.MUSEDistiller(cases.student())
    _step(distiller)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    assert type(loaded) is mikd.MUSEDistiller
    (muse,), (twin,) = distiller.distillation_losses, loaded.distillation_losses
    assert twin.get_config() == muse.get_config()


def test_a_network_without_stages_is_refused():
    inputs = keras.Input((6,))
    dense = keras.Model(inputs, keras.layers.Dense(4)(inputs), name="dense")
    message = r"a network with stages: feature maps.*Functional 'dense', which has none.*losses of"
    with pytest.raises(ValueError, match=message):
        mikd.MUSEDistiller(dense)


class _Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.body = cases.student()

    def call(self, x, training=None):
        return self.body(x, training=training)


def _features(model, x, training):
    early, late, logits = keras.Model(
        model.body.input, [model.body.get_layer(n).output for n in ("relu1", "gap", "logits")]
    )(x, training=training)
    return {"early": early, "late": late, "output": logits}


def test_a_subclassed_network_needs_losses_of_the_callers_own():
    model = _Subclassed()
    model(cases.data()[0])
    with pytest.raises(ValueError, match="Received: _Subclassed.*pass them as `distillation_loss"):
        mikd.MUSEDistiller(model, features=_features)
    muse = mikd.MUSE(teacher_layer="late", student_layer=["early"], width=4, name="muse")
    _step(mikd.MUSEDistiller(model, [muse], features=_features))


def test_a_keras_cv_backbone():
    model = cases.keras_cv_classifier()
    distiller = mikd.MUSEDistiller(model)
    (muse,) = distiller.distillation_losses
    assert muse.student_layer == ["stage1", "stage2", "stage3"]


@pytest.mark.parametrize("unused", [{"muse_weight": 3.0}, {"combine": "additive"}])
def test_arguments_that_losses_of_the_callers_own_leave_unused_are_refused(unused):
    with pytest.raises(ValueError, match=f"Received: distillation_losses and {[*unused][0]}"):
        mikd.MUSEDistiller(
            cases.student(), [mikd.Hint(teacher_layer="stage2", student_layer="stage1")], **unused
        )
