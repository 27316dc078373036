import keras
import pytest

import keras_mikd as mikd


def _student():
    inputs = keras.Input((32, 32, 3))
    x = inputs
    for filters in (16, 32, 64):
        x = keras.layers.Conv2D(filters, 3, strides=2, padding="same")(x)
    return keras.Model(inputs, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x)))


def _self_distiller(critic=lambda: None, **options):
    places = [{"teacher_layer": "pooled", "student_layer": f"stage{i}"} for i in (1, 2)]
    losses = [mikd.JSDCritic(critic=critic(), **place, **options) for place in places]
    return mikd.SelfDistiller(_student(), losses)


@pytest.mark.filterwarnings("default:The critics of:UserWarning")
def test_critics_that_cost_more_than_the_network_are_told_and_the_defaults_do_not():
    with pytest.warns(UserWarning) as told:
        _self_distiller(critic=mikd.ConcatCritic, grid=None)
    assert {str(each.message).partition(" have ")[0] for each in told} == {
        f"The critics of 'jsd_critic_stage{i}'" for i in (1, 2)
    }
    _self_distiller()


@pytest.mark.filterwarnings("default:The critics of:UserWarning")
def test_the_cheap_form_is_the_default():
    (loss, _) = _self_distiller().distillation_losses
    assert isinstance(loss.critic, mikd.SeparableCritic) and loss.grid == 8
    assert loss.count_params() < 0.5 * _student().count_params()
