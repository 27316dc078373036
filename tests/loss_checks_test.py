"""What cannot be distilled is refused with what was expected and what was received."""

import cases
import keras
import numpy as np
import pytest

import keras_mikd as mikd


def _hint(teacher_layer="stage2", student_layer="stage2", **kwargs):
    return mikd.Hint(teacher_layer=teacher_layer, student_layer=student_layer, **kwargs)


def _kd(**kwargs):
    return mikd.SoftTargets(**kwargs)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__(name="subclassed")
        self.pool = keras.layers.GlobalAveragePooling2D()
        self.dense = keras.layers.Dense(cases.NUM_CLASSES)

    def call(self, x):
        return self.dense(self.pool(x))


def _two_heads():
    inputs = keras.Input(cases.IMAGE_SHAPE)
    x = keras.layers.GlobalAveragePooling2D()(inputs)
    heads = {name: keras.layers.Dense(4, name=name)(x) for name in ("a", "b")}
    return keras.Model(inputs, heads, name="two_heads")


def _dense(shape, name=None):
    inputs = keras.Input(shape, name=name)
    return keras.Model(inputs, keras.layers.Dense(4)(inputs))


@pytest.mark.parametrize("side", ["teacher", "student"])
def test_an_unknown_place_is_refused_with_a_list_of_places(side):
    models = {"teacher": cases.teacher(), "student": cases.student()}
    message = (
        rf"Expected a place of Functional '{models[side].name}'\. Received: 'relu9'\. "
        r"Did you mean 'relu.*Its places: output, stage1, stage2, pooled, .*conv1, relu1"
    )
    with pytest.raises(ValueError, match=message):
        mikd.Distiller(**models, distillation_losses=[_hint(**{f"{side}_layer": "relu9"})])


@pytest.mark.parametrize("side", ["teacher", "student"])
@pytest.mark.parametrize(
    "make", [Subclassed, lambda: keras.Sequential([keras.layers.Dense(4)], name="sequential")]
)
def test_a_model_without_weights_is_refused(side, make):
    models = {"teacher": cases.teacher(), "student": cases.student(), side: make()}
    message = f"Expected (a model that has|`{side}` to have) its weights.*{models[side].name}"
    with pytest.raises(ValueError, match=message):
        mikd.Distiller(**models, distillation_losses=[_kd()])


@pytest.mark.parametrize("side", ["teacher", "student"])
def test_a_place_in_a_subclassed_model_needs_features(side):
    model = Subclassed()
    model(cases.data()[0])
    models = {"teacher": cases.teacher(), "student": cases.student(), side: model}
    with pytest.raises(ValueError, match=r"\['stage2'\] in, not Subclassed.*pass `features`"):
        mikd.Distiller(**models, distillation_losses=[_hint()])


def test_something_else_than_a_model_is_refused():
    with pytest.raises(ValueError, match="`teacher` to be a keras.Model. Received: teacher='t.ker"):
        mikd.Distiller("t.keras", cases.student(), [_kd()])
    with pytest.raises(ValueError, match="`student` to be a keras.Model. Received: student=None"):
        mikd.Distiller(cases.teacher(), None, [_kd()])


@pytest.mark.parametrize("teacher_shape", [(8, 8, 3), (8, 4, 2), (8, 2), (128,)])
def test_different_inputs_are_refused(teacher_shape):
    message = r"same inputs\. Received: teacher inputs of shape .*student inputs.*\(None, 8, 8, 2\)"
    with pytest.raises(ValueError, match=message):
        mikd.Distiller(_dense(teacher_shape), _dense((8, 8, 2)), [_kd()])


@pytest.mark.parametrize(
    "loss",
    [
        mikd.SoftTargets(),
        mikd.BeYourOwnTeacher(teacher_layer=["stage2", None], student_layer=["stage1"]),
        mikd.ReviewKD(
            teacher_layer=["stage1", "stage2", None], student_layer=["stage1", "stage2", "pooled"]
        ),
    ],
)
def test_a_place_of_several_outputs_is_refused_also_in_a_list(loss):
    one = cases.teacher()
    outputs = {"main": one.output, "other": keras.layers.Dense(2)(one.get_layer("gap").output)}
    several = keras.Model(one.input, outputs)
    with pytest.raises(ValueError, match="the teacher has several outputs.*output/<name>"):
        mikd.Distiller(several, cases.student(), [loss])


def test_different_structures_of_inputs_are_refused():
    def named(name):
        inputs = {name: keras.Input((3,), name=name)}
        return keras.Model(inputs, keras.layers.Dense(4)(inputs[name]))

    with pytest.raises(ValueError, match="same inputs.*'image'.*'pixels'"):
        mikd.Distiller(named("image"), named("pixels"), [_kd()])
    with pytest.raises(ValueError, match="same inputs"):
        mikd.Distiller(named("image"), _dense((3,), "image"), [_kd()])


def test_inputs_of_open_size_and_of_other_names_are_the_same_inputs():
    def pooled(size, name):
        inputs = keras.Input((size, size, 3), name=name)
        x = keras.layers.GlobalAveragePooling2D()(inputs)
        return keras.Model(inputs, keras.layers.Dense(4)(x))

    mikd.Distiller(pooled(None, "image"), pooled(8, "pixels"), [_kd()])


def test_the_teacher_cannot_be_the_student():
    model = cases.student()
    with pytest.raises(ValueError, match="different models. Received: the same object.*save it"):
        mikd.Distiller(model, model, [_kd()])


def test_shared_weights_are_refused():
    teacher = cases.teacher()
    head = keras.layers.Dense(cases.NUM_CLASSES)(teacher.get_layer("gap").output)
    with pytest.raises(ValueError, match="share no weights.*Received.* share 4 variables"):
        mikd.Distiller(teacher, keras.Model(teacher.inputs, head), [_kd()])


@pytest.mark.parametrize("losses", [[], (), None, "soft_targets", {"kd": 1}])
def test_no_list_of_losses_is_refused(losses):
    with pytest.raises(ValueError, match=r"list of at least one DistillationLoss\. Received: dist"):
        mikd.Distiller(cases.teacher(), cases.student(), losses)


def test_a_loss_outside_of_a_list_is_refused():
    with pytest.raises(ValueError, match="list of at least one .*Received: .*SoftTargets"):
        mikd.Distiller(cases.teacher(), cases.student(), _kd())


@pytest.mark.parametrize(
    "loss", ["kl_divergence", keras.losses.KLDivergence(), mikd.SoftTargets, None]
)
def test_something_else_than_a_loss_is_refused(loss):
    with pytest.raises(ValueError, match=r"every distillation loss to be a .*Received: "):
        mikd.Distiller(cases.teacher(), cases.student(), [_kd(), loss])


def test_two_losses_of_one_name_are_refused():
    with pytest.raises(ValueError, match="different names.*Received: 2 named 'kd'.*`name=`"):
        mikd.Distiller(cases.teacher(), cases.student(), [_kd(name="kd"), _kd(name="kd")])


def test_a_loss_with_the_name_of_a_readout_is_refused():
    losses = [mikd.JSDCritic(name="jsd"), _kd(name="jsd_mi_nats")]
    with pytest.raises(ValueError, match="different names.*Received: 2 named 'jsd_mi_nats'"):
        mikd.Distiller(cases.teacher(), cases.student(), losses)


@pytest.mark.parametrize("name", ["loss", "task_loss"])
def test_the_distillers_own_names_are_refused(name):
    with pytest.raises(ValueError, match=f"another name than .*Received: name={name!r}"):
        mikd.Distiller(cases.teacher(), cases.student(), [_kd(name=name)])


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf"), "1", None, True])
def test_a_weight_must_be_a_finite_number_of_at_least_0(weight):
    with pytest.raises(ValueError, match=r"`weight` to be a finite number.*Received: "):
        _kd(weight=weight, name="kd")
    with pytest.raises(ValueError, match=r"`task_loss_weight` to be a finite .*Received: "):
        mikd.Distiller(cases.teacher(), cases.student(), [_kd()], task_loss_weight=weight)


@pytest.mark.parametrize("value", ["yes", None, 2])
def test_xla_critics_has_three_values(value):
    with pytest.raises(ValueError, match="True, False or 'auto'. Received: xla_critics="):
        mikd.Distiller(cases.teacher(), cases.student(), [_kd()], xla_critics=value)


def test_a_loss_of_single_tensors_needs_one_of_several_outputs():
    with pytest.raises(ValueError, match="teacher has several.*Received: teacher_layer='output'"):
        mikd.Distiller(_two_heads(), cases.student(), [_kd()])
    with pytest.raises(ValueError, match="student has several.*Received: student_layer='output'"):
        mikd.Distiller(cases.teacher(), _two_heads(), [_kd()])
    message = "one of the outputs: output/a, output/b. Received: 'output/c'"
    with pytest.raises(ValueError, match=message):
        mikd.Distiller(_two_heads(), cases.student(), [_kd(teacher_layer="output/c")])


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "hard_sigmoid", "sparsemax"])
def test_probabilities_inside_a_nested_model_are_refused_where_logits_are_expected(activation):
    head = [keras.Input((5,)), keras.layers.Dense(4), keras.layers.Activation(activation, name="p")]
    student = cases.student()
    nested = keras.Sequential([*head, keras.layers.Dense(4)], name="head")
    student = keras.Model(student.input, nested(student.get_layer("gap").output))
    message = "since 'kd' compares logits. Received: student_layer='head/p'.*probabilities"
    with pytest.raises(ValueError, match=message):
        cases.distiller_with(_kd(student_layer="head/p", name="kd"), student_model=student)


def test_tensors_that_do_not_fit_are_refused_with_the_loss_and_the_places():
    message = (
        r"'hint' \(teacher_layer='stage2', student_layer='pooled'\) can compare: "
        r".*teacher_shape=\(None, 4, 4, 8\), student_shape=\(None, 5\)"
    )
    with pytest.raises(ValueError, match=message):
        cases.distiller_with(_hint(student_layer="pooled", name="hint"))


def test_a_loss_of_another_distiller_is_refused():
    loss = _hint()
    cases.distiller_with(loss)
    with pytest.raises(ValueError, match="new losses.*belongs to another distiller"):
        cases.distiller_with(loss)


def test_a_built_loss_must_fit():
    loss = _hint()
    loss.build((None, 4, 4, 8), (None, 4, 4, 5))
    with pytest.raises(ValueError, match=r"\(4, 4, 5\), to compare .*\(4, 4, 9\).*new loss"):
        cases.distiller_with(loss, student_model=cases.network((3, 9)))
    cases.distiller_with(loss)


def test_a_loss_needs_a_call():
    class Nothing(mikd.DistillationLoss):
        pass

    distiller = cases.distiller_with(Nothing())
    distiller.compile("sgd", cases.cross_entropy())
    with pytest.raises(
        NotImplementedError, match="to return a loss.*Received: Nothing without a `call`"
    ):
        distiller.fit(*cases.data(), verbose=0)


@pytest.mark.parametrize("axes, shape", [((0, 1), r"\(\)"), ((), r"\((None|16), 4\)")])
def test_a_loss_must_return_one_number_for_each_example(axes, shape):
    class Mean(mikd.DistillationLoss):
        def call(self, teacher, student, labels=None, training=None):
            return keras.ops.mean(keras.ops.square(teacher - student), axis=axes)

    distiller = cases.distiller_with(Mean(name="mean"))
    distiller.compile("sgd", cases.cross_entropy())
    before = [v.numpy() for v in distiller.student.variables]
    message = rf"'mean' to return one .*\(batch,\)\. Received: .*{shape}"
    with pytest.raises(ValueError, match=message):
        distiller.fit(*cases.data(), verbose=0)
    for old, variable in zip(before, distiller.student.variables, strict=True):
        np.testing.assert_array_equal(variable, old)


def test_layers_of_a_loss_that_are_left_unbuilt_are_refused():
    class Adapted(mikd.DistillationLoss):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.adapter = keras.layers.Dense(8, name="adapter")

        def call(self, teacher, student, labels=None, training=None):
            return keras.ops.mean(keras.ops.square(teacher - self.adapter(student)), axis=-1)

    loss = Adapted(teacher_layer="pooled", student_layer="pooled")
    with pytest.raises(ValueError, match="every layer.*to have its weights.*'adapter'.*build"):
        mikd.Distiller(cases.teacher(), cases.student(), [loss])


WRONG = {
    "path": (lambda: "teacher.keras", "Load the file with keras.saving.load_model"),
    "distiller": (
        lambda: cases.distiller("soft_targets"),
        r"Pass its network: `distiller.stud",
    ),
    "peers": (lambda: cases.distiller("mutual"), r"`distiller.peers\[0\]`"),
    "layer": (lambda: keras.layers.Dense(3), "Wrap a layer"),
    "sequential": (lambda: keras.Sequential([keras.layers.Dense(4)]), r"Put keras.Input\(shape\)"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_network_is_refused_with_a_way_out(kind):
    make, way_out = WRONG[kind]
    student, (x, y) = cases.student(), cases.data()
    for use in (
        lambda wrong: mikd.Distiller(wrong, student, [_kd()]),
        lambda wrong: mikd.VIDDistiller(wrong, student),
        lambda wrong: mikd.SelfDistiller(wrong, []),
        lambda wrong: mikd.MutualDistiller([wrong, student], [_kd()]),
        mikd.MCMITeacher,
        mikd.stages,
        lambda wrong: mikd.pair_stages(wrong, student),
        lambda wrong: mikd.measure_cmi(wrong, (x, y)),
        lambda wrong: mikd.TeacherCache(wrong, x, y),
        lambda wrong: mikd.figures.eigen_cam(wrong, x),
    ):
        with pytest.raises(ValueError, match=way_out):
            use(make())


def test_a_model_of_keras_2_is_refused():
    """What its package is called is all that is looked at: the package is not installed here."""
    old = type("Sequential", (), {"__module__": "tf_keras.src.engine.sequential"})()
    with pytest.raises(ValueError, match="a model of tf_keras, not of Keras 3.*set_weights"):
        mikd.Distiller(old, cases.student(), [_kd()])


@pytest.mark.parametrize("side", ["teacher", "student"])
def test_channels_that_come_first_are_refused(side):
    def network(data_format, shape):
        inputs = keras.Input(shape)
        x = keras.layers.Conv2D(4, 3, data_format=data_format)(inputs)
        x = keras.layers.GlobalAveragePooling2D(data_format=data_format)(x)
        return keras.Model(inputs, keras.layers.Dense(cases.NUM_CLASSES)(x))

    first, last = network("channels_first", (8, 8, 8)), network("channels_last", (8, 8, 8))
    models = {"teacher": last, "student": last, side: first}
    other = {"teacher": "student", "student": "teacher"}[side]
    models[other] = keras.models.clone_model(last)
    maps = {name: model.layers[1].name for name, model in models.items()}
    message = f"Received: {first.name!r}, whose layer 'conv.* has channels first.*channels_last"
    with pytest.raises(ValueError, match=message):
        mikd.VIDDistiller(**models)
    with pytest.raises(ValueError, match=message):
        hint = mikd.Hint(teacher_layer=maps["teacher"], student_layer=maps["student"])
        mikd.Distiller(**models, distillation_losses=[hint])
    mikd.Distiller(**models, distillation_losses=[_kd()])  # Reads no map.


@pytest.mark.parametrize(
    "layer", [keras.layers.RandomFlip, lambda: keras.layers.RandomRotation(0.1)]
)
def test_a_student_that_turns_its_images_is_told(layer):
    inputs = keras.Input(cases.IMAGE_SHAPE)
    turning = keras.Model(inputs, cases.network((6, 8))(layer()(inputs)))
    with pytest.warns(UserWarning, match="The student .*at random.*Augment the data set instead"):
        mikd.Distiller(cases.teacher(), turning, [_kd()])
    mikd.Distiller(turning, cases.student(), [_kd()])  # A teacher does so in training only.
    mikd.SelfDistiller(turning, [])


def test_arguments_that_a_compiled_step_has_taken_in_stay_as_they_are():
    losses = [mikd.SoftTargets(), mikd.JSDCritic(critic=mikd.SeparableCritic(), name="critic")]
    distiller = mikd.Distiller(cases.teacher(), cases.student(), losses)
    mcmi = mikd.MCMITeacher(cases.teacher())
    for owner, name in (
        *((losses[0], name) for name in ("weight", "temperature", "teacher_layer")),
        *((losses[1], name) for name in ("bound", "negatives", "grid")),
        *((losses[1].critic, name) for name in ("temperature", "width")),
        *((distiller, name) for name in ("task_loss_weight", "xla_critics", "student")),
        *((mcmi, name) for name in ("weight", "momentum", "log_likelihood_budget")),
        (mcmi.regularizer, "temperature"),
    ):
        before = getattr(owner, name)
        with pytest.raises(AttributeError, match=f"Expected `{name}` of .* to stay as it is"):
            setattr(owner, name, 0.0)
        assert getattr(owner, name) == before
    with pytest.raises(AttributeError, match="LearningRateSchedule"):
        distiller.task_loss_weight = 0.0


@pytest.mark.parametrize("policy", ["float16", "mixed_float16", "bfloat16"])
def test_weights_that_gradients_overflow_are_refused(policy):
    keras.config.set_dtype_policy(policy)
    try:
        student = cases.student()
    finally:
        keras.config.set_dtype_policy("float32")
    distiller = mikd.MutualDistiller([cases.student(), student], [_kd()])
    distiller.compile(keras.optimizers.SGD(0.01), cases.cross_entropy(), run_eagerly=True)
    before = student.get_weights()
    if policy != "float16":
        distiller.fit(*cases.data(), epochs=1, verbose=0)
        return
    with pytest.raises(ValueError, match="trained weights in float32.*kernel.*mixed_float16"):
        distiller.fit(*cases.data(), epochs=1, verbose=0)
    for old, new in zip(before, student.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_weights_of_classes_need_labels():
    distiller = mikd.Distiller(cases.teacher(), cases.student(), [_hint()])
    distiller.compile(keras.optimizers.SGD(0.01), run_eagerly=True)
    with pytest.raises(ValueError, match=r"labels with `class_weight`.*\{0: 2.0\}, y=None"):
        distiller.fit(cases.data()[0], class_weight={0: 2.0}, verbose=0)
