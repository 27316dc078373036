"""Which losses a recipe makes, between which places; the assembled distillers have their own."""

import inspect

import cases
import keras
import pytest

import keras_mikd as mikd
from keras_mikd import recipes


def _layout(losses):
    return [(loss.name, loss.teacher_layer, loss.student_layer, loss.weight) for loss in losses]


def _three_stages():
    return mikd.models.resnet8(num_classes=4, input_shape=(16, 16, 3))


def test_soft_targets():
    (loss,) = recipes.kd(cases.teacher(), cases.student())
    assert isinstance(loss, mikd.SoftTargets)
    assert _layout([loss]) == [("kd", "output", "output", 0.9)]
    (loss,) = recipes.kd(None, None, weight=0.5, temperature=2.0)
    assert (loss.weight, loss.temperature) == (0.5, 2.0)


def test_places_inside_of_a_nested_model_have_names():
    student = cases.student()
    inner = keras.Model(student.inputs, student.get_layer("relu2").output)
    inputs = keras.Input(inner.input_shape[1:])
    outputs = keras.layers.GlobalAveragePooling2D()(inner(inputs))
    network = keras.Model(inputs, keras.layers.Dense(4)(outputs))
    inner_name = inner.name
    pairs = [(f"{inner_name}/relu1", f"{inner_name}/relu1")]
    (loss,) = recipes.vid(network, network, pairs=pairs)
    assert loss.name == f"vid_{inner_name}_relu1"
    assert mikd.Distiller(keras.models.clone_model(network), network, [loss]).losses == []


def test_a_second_head():
    (loss,) = recipes.lwf(cases.teacher(), cases.student(), weight=0.5)
    assert isinstance(loss, mikd.LwF)
    assert _layout([loss]) == [("lwf", "output", "pooled", 0.5)]
    assert recipes.lwf(None, None, temperature=4.0)[0].temperature == 4.0


def test_losses_of_logits_have_the_weights_of_their_authors():
    teacher, student = cases.teacher(), cases.student()
    for name, cls, weight in (
        ("lskd", mikd.SoftTargets, 9.0),
        ("dkd", mikd.DKD, 1.0),
        ("rld", mikd.RLD, 1.0),
        ("dist", mikd.DIST, 2.0),
        ("wttm", mikd.WTTM, 4.0),
    ):
        (loss,) = getattr(recipes, name)(teacher, student)
        assert type(loss) is cls
        assert _layout([loss]) == [(name, "output", "output", weight)]
    (lskd,) = recipes.lskd(teacher, student)
    assert (lskd.standardize, lskd.temperature) == (True, 2.0)
    (dkd,) = recipes.dkd(teacher, student, weight=0.5, beta=2.0)
    assert (dkd.weight, dkd.alpha, dkd.beta, dkd.temperature) == (0.5, 1.0, 2.0, 4.0)
    (rld,) = recipes.rld(teacher, student, temperature=2.0)
    assert (rld.temperature, rld.confidence_temperature) == (2.0, None)


def test_places_of_a_student_without_stages_are_named():
    teacher = _three_stages()
    student = mikd.models.mlp(width=4, num_classes=4, input_shape=(16, 16, 3))
    pairs = [("stage2", "hidden1"), ("stage3", "hidden2")]
    assert _layout(recipes.vid(teacher, student, stage_weight=2.0, pairs=pairs)) == [
        ("vid_stage2_to_hidden1", "stage2", "hidden1", 2.0),
        ("vid_stage3_to_hidden2", "stage3", "hidden2", 2.0),
    ]


def test_signs_are_read_before_the_relu():
    wide, plain = mikd.models.wrn_16_1(4, (16, 16, 3)), _three_stages()
    losses = recipes.activation_boundary(wide, plain, weight=2.0)
    assert [(x.name, x.weight, x.scale) for x in losses] == [
        ("ab_stage1", 2.0, 0.00075),
        ("ab_stage2", 2.0, 0.0015),
        ("ab_stage3", 2.0, 0.003),
    ]
    for loss in losses:
        before = wide.get_layer(loss.teacher_layer), plain.get_layer(loss.student_layer)
        assert [type(x) for x in before] == [keras.layers.BatchNormalization, keras.layers.Add]


def test_reviews_read_the_teacher_before_its_relu_and_the_pooled_vectors():
    teacher, student = _three_stages(), _three_stages()
    (loss,) = recipes.review_kd(teacher, student)
    before = [teacher.get_layer(place) for place in loss.teacher_layer[:3]]
    assert {type(layer) for layer in before} == {keras.layers.Add}
    assert loss.teacher_layer[3] == "pooled"
    assert loss.student_layer == ["stage1", "stage2", "stage3", "pooled"]
    assert (loss.name, loss.weight) == ("review_kd", 5.0)
    (uneven,) = recipes.review_kd(teacher, cases.student())
    assert len(uneven.teacher_layer) == len(uneven.student_layer) == 3


def test_factors_of_the_last_stages_and_projections_of_the_pooled_vectors():
    teacher, student = _three_stages(), cases.student()
    (factors,) = recipes.factor_transfer(teacher, student, rate=0.25)
    assert _layout([factors]) == [("ft_stage3_to_stage2", "stage3", "stage2", 200.0)]
    assert factors.rate == 0.25
    (vkd,) = recipes.vkd(teacher, student)
    assert _layout([vkd]) == [("vkd", "pooled", "pooled", 1.0)]
    assert vkd.kind == "orthogonal"


def test_attention_maps_of_every_pair_of_stages():
    losses = recipes.attention_transfer(cases.teacher(), cases.student())
    assert {type(loss) for loss in losses} == {mikd.AttentionTransfer}
    assert _layout(losses) == [
        ("at_stage1", "stage1", "stage1", 10.0),
        ("at_stage2", "stage2", "stage2", 10.0),
    ]


def test_a_hint_is_of_the_pair_in_the_middle_or_of_those_that_are_named():
    three = recipes.hint(_three_stages(), _three_stages(), weight=1.0)
    assert {type(loss) for loss in three} == {mikd.Hint}
    assert _layout(three) == [("hint_stage2", "stage2", "stage2", 1.0)]
    two = recipes.hint(cases.teacher(), cases.student())
    assert _layout(two) == [("hint_stage2", "stage2", "stage2", 100.0)]
    named = recipes.hint(None, None, pairs=[("stage2", "stage1"), ("pooled", "pooled")])
    assert _layout(named) == [
        ("hint_stage2_to_stage1", "stage2", "stage1", 100.0),
        ("hint_pooled", "pooled", "pooled", 100.0),
    ]


def test_wide_networks_are_read_raw_if_asked():
    """RepDistiller reads a wide ResNet before the BatchNorm and ReLU that follow a stage."""
    wide, plain = mikd.models.wrn_16_1(4, (16, 16, 3)), _three_stages()
    raw = [f"stage{i}_output" for i in (1, 2, 3)]
    for recipe in (recipes.vid, recipes.attention_transfer):
        found = [(x.name, x.teacher_layer, x.student_layer) for x in recipe(wide, plain, raw=True)]
        name = found[0][0].removesuffix("_stage1")
        assert found == [(f"{name}_stage{i}", layer, layer) for i, layer in enumerate(raw, 1)]
        activated = [loss.teacher_layer for loss in recipe(wide, plain)]
        assert activated == ["stage1", "stage2", "stage3"]
    assert type(wide.get_layer("stage2_output")) is keras.layers.Add
    assert type(plain.get_layer("stage2_output")) is keras.layers.ReLU  # After it, there too.
    (hint,) = recipes.hint(wide, plain, raw=True, regressor="repdistiller")
    assert (hint.teacher_layer, hint.student_layer, hint.kind) == (*raw[1:2] * 2, "repdistiller")
    places = [
        loss.teacher_layer for loss in mikd.VIDDistiller(wide, plain, raw=True).distillation_losses
    ]
    assert places == raw


def test_a_network_without_preactivation_has_no_other_raw_stages():
    inputs = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(4, 3, padding="same", name="conv1")(inputs)
    x = keras.layers.ReLU(name="relu1")(keras.layers.BatchNormalization(name="bn1")(x))
    x = keras.layers.Conv2D(4, 3, strides=2, padding="same", name="conv2")(x)
    x = keras.layers.ReLU(name="relu2")(keras.layers.BatchNormalization(name="bn2")(x))
    plain = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(x)))
    losses = recipes.vid(plain, cases.student(), raw=True)
    assert [loss.teacher_layer for loss in losses] == ["relu1", "relu2"]


def test_info_nce_against_all_of_the_batch():
    losses = recipes.info_nce(cases.teacher(), cases.student(), weight=0.2, gather=False)
    assert _layout(losses) == [
        ("nce_stage1", "stage1", "stage1", 0.2),
        ("nce_stage2", "stage2", "stage2", 0.2),
    ]
    for loss in losses:
        assert (loss.bound, loss.negatives, loss.grid) == (mikd.bounds.info_nce, "all", 8)
        assert type(loss.critic) is mikd.SeparableCritic and not loss.gather
    assert losses[0].critic is not losses[1].critic


def test_muse_and_its_mutual_term_by_itself():
    model = cases.student()
    (muse,) = recipes.muse(model, model, weight=0.3, combine="additive")
    assert _layout([muse]) == [("muse", "pooled", ["stage1", "stage2"], 0.3)]
    assert (muse.combine, muse.negatives_from) == ("additive", "other_classes")
    critics = recipes.stage_critics(model, model, weight=0.3)
    assert _layout(critics) == [
        ("jsd_stage1", "pooled", "stage1", 0.3),
        ("jsd_stage2", "pooled", "stage2", 0.3),
    ]
    assert {loss.negatives_from for loss in critics} == {"other_classes"}


def test_classifiers_on_the_early_stages():
    model = _three_stages()
    (byot,) = recipes.be_your_own_teacher(model, model, weight=0.5)
    assert _layout([byot]) == [("byot", ["stage3", "output"], ["stage1", "stage2"], 0.5)]


def test_with_one_network_the_early_stages_learn_from_the_last():
    model = _three_stages()
    assert recipes.stage_pairs(model, model) == [("stage3", "stage1"), ("stage3", "stage2")]
    assert recipes.stage_pairs(model, _three_stages()) == [
        (place, place) for place in ("stage1", "stage2", "stage3")
    ]
    for recipe in (recipes.vid, recipes.attention_transfer, recipes.info_nce):
        places = [(loss.teacher_layer, loss.student_layer) for loss in recipe(model, model)]
        assert places == recipes.stage_pairs(model, model), recipe.__name__


def test_lists_add_up_to_a_distiller():
    teacher, student = cases.teacher(), cases.student()
    schedule = keras.optimizers.schedules.CosineDecay(1.0, 10)
    losses = recipes.kd(teacher, student) + recipes.vid(teacher, student, stage_weight=schedule)
    distiller = mikd.Distiller(teacher, student, losses)
    assert [loss.name for loss in distiller.distillation_losses] == [
        "kd",
        "vid_stage1",
        "vid_stage2",
    ]
    assert losses[1].weight is schedule


@pytest.mark.parametrize(
    "recipe",
    [
        *(recipes.attention_transfer, recipes.hint, recipes.vid, recipes.mimkd, recipes.info_nce),
        *(recipes.activation_boundary, recipes.factor_transfer, recipes.review_kd),
    ],
)
def test_networks_without_stages_are_refused(recipe):
    inputs = keras.Input((6,))
    dense = keras.Model(inputs, keras.layers.Dense(4)(inputs), name="dense")
    with pytest.raises(ValueError, match="Functional 'dense'"):
        recipe(dense, keras.models.clone_model(dense))


def test_relations_stand_where_the_crd_benchmark_has_them():
    both = _three_stages(), _three_stages()
    stages = ["stage1", "stage2", "stage3"]
    assert _layout(recipes.similarity_preserving(*both)) == [
        ("sp_stage3", "stage3", "stage3", 3000.0)
    ]
    assert _layout(recipes.nst(*both)) == [(f"nst_{place}", place, place, 50.0) for place in stages]
    assert _layout(recipes.fsp(*both)) == [("fsp", stages, stages, 1.0)]
    pooled = {
        "rkd": (recipes.rkd, mikd.RKD, 1.0),
        "pkt": (recipes.pkt, mikd.PKT, 30000.0),
        "cc": (recipes.correlation_congruence, mikd.CorrelationCongruence, 0.02),
        "crd": (recipes.crd, mikd.CRD, 0.8),
        "queue": (recipes.queue_relation, mikd.QueueRelation, 1.0),
        "itrd": (recipes.itrd, mikd.ITRD, 1.0),
    }
    for name, (recipe, kind, weight) in pooled.items():
        (loss,) = recipe(*both)
        assert type(loss) is kind
        assert _layout([loss]) == [(name, "pooled", "pooled", weight)]


def test_relations_take_the_arguments_of_their_losses():
    assert recipes.rkd(None, None, angle_weight=0.0)[0].angle_weight == 0.0
    assert recipes.crd(None, None, bank=100)[0].bank == 100
    wide, plain = mikd.models.wrn_16_1(4, (16, 16, 3)), _three_stages()
    (flow,) = recipes.fsp(wide, plain, raw=True)
    assert flow.teacher_layer == [f"stage{i}_output" for i in (1, 2, 3)]
    (last,) = recipes.similarity_preserving(wide, plain, raw=True)
    assert last.teacher_layer == "stage3_output"


@pytest.mark.parametrize(
    ("cls", "recipe"),
    [(mikd.VIDDistiller, recipes.vid), (mikd.MIMKDDistiller, recipes.mimkd)],
)
def test_an_assembled_distiller_has_the_defaults_of_its_recipe(cls, recipe):
    own, others = (inspect.signature(each).parameters for each in (cls.__init__, recipe))
    shared = {name for name in own if name in others and own[name].default is not own[name].empty}
    assert len(shared) >= 3
    assert {n: own[n].default for n in shared} == {n: others[n].default for n in shared}


def test_muse_has_the_defaults_of_its_recipe():
    student = cases.student()
    (own,) = mikd.MUSEDistiller(student).distillation_losses
    (made,) = recipes.muse(student, student)
    assert own.get_config() == made.get_config()
