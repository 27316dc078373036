"""Several teachers of one student: by name, each run once, together or one by one."""

import cases
import keras
import numpy as np
import pytest

import keras_mikd as mikd


def _teacher(widths=(6, 8), seed=1):
    return cases.network(widths, seed=seed)


def _large(shape=(16, 16, 2), classes=cases.NUM_CLASSES):
    keras.utils.set_random_seed(5)
    inputs = keras.Input(shape)
    x = keras.layers.Conv2D(7, 3, padding="same", activation="relu", name="conv")(inputs)
    x = keras.layers.GlobalAveragePooling2D(name="gap")(x)
    return keras.Model(inputs, keras.layers.Dense(classes, name="logits")(x))


def _compiled(distiller, loss="default", **kwargs):
    loss = cases.cross_entropy() if loss == "default" else loss
    distiller.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=True, **kwargs)
    return distiller


def _kd(**kwargs):
    return mikd.SoftTargets(temperature=1.0, **{"name": "kd", **kwargs})


def _new(teachers, *losses, student=None, **kwargs):
    student = student or cases.student()
    losses = list(losses) or [_kd()]
    return _compiled(mikd.Distiller(teachers, student, losses, xla_critics=False, **kwargs))


def _fit(distiller, data=None, **kwargs):
    x, y = data or cases.data()
    return distiller.fit(x, y, batch_size=8, shuffle=False, verbose=0, **kwargs).history


def _evaluate(distiller):
    return distiller.evaluate(*cases.data(), verbose=0, return_dict=True)


def _log_softmax(z):
    z = z.astype("float64")
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def _divergence(teacher, student):
    log_p, log_q = _log_softmax(teacher), _log_softmax(student)
    return (np.exp(log_p) * (log_p - log_q)).sum(-1).mean()


def _logits(model, x=None):
    return model.predict(cases.data()[0] if x is None else x, verbose=0)


# Who is read


def test_a_loss_of_logits_reads_all_teachers_or_the_one_that_it_names():
    first, second = _teacher(), _teacher((4, 9), seed=3)
    student = cases.student()
    losses = [_kd(name="all"), _kd(name="a", teacher="a"), _kd(name="b", teacher="b")]
    distiller = _new({"a": first, "b": second}, *losses, student=student)
    seen = _evaluate(distiller)
    one, two, own = (_logits(each) for each in (first, second, student))
    expected = {"all": (one + two) / 2, "a": one, "b": two}
    for name, logits in expected.items():
        assert seen[name] == pytest.approx(_divergence(logits, own), rel=1e-4), name


def test_confidence_weights_the_teachers_by_their_labels():
    first, second, student = _teacher(), _teacher((4, 9), seed=3), cases.student()
    x, y = cases.data()
    seen = _evaluate(_new([first, second], student=student, combine="confidence"))
    one, two, own = (_logits(each) for each in (first, second, student))
    # Of two, each counts as the other one errs.
    errors = [np.exp(-_log_softmax(z)[np.arange(len(y)), y]) for z in (one, two)]
    share = (errors[1] / (errors[0] + errors[1]))[:, None]
    assert np.ptp(share) > 0.01
    logits = share * one + (1 - share) * two
    assert seen["kd"] == pytest.approx(_divergence(logits, own), rel=1e-4)


def test_every_teacher_runs_once_in_a_step_and_stays_as_it_is():
    calls = {"a": 0, "b": 0}

    def counting(name):
        def features(model, x, training):
            assert training is False
            calls[name] += 1
            return {"output": model(x, training=training)}

        return features

    teachers = {"a": _teacher(), "b": _teacher(seed=3)}
    losses = [_kd(), _kd(name="more"), _kd(name="own", teacher="b")]
    features = {name: counting(name) for name in teachers}
    distiller = _new(teachers, *losses, teacher_features=features)
    before = [each.get_weights() for each in teachers.values()]
    _fit(distiller)
    calls.update(a=0, b=0)
    _fit(distiller)
    assert calls == {"a": 2, "b": 2}
    for values, each in zip(before, teachers.values(), strict=True):
        for a, b in zip(values, each.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
    tracked = {v.path for v in distiller.variables}
    assert len(tracked & {v.path for v in distiller.student.variables}) == 6
    assert not {id(v) for v in distiller.variables} & {
        id(v) for each in teachers.values() for v in each.variables
    }


def test_teachers_of_other_shapes_and_inputs_teach_their_own_features(tmp_path):
    small, large = _teacher(), _large()
    losses = [
        _kd(weight=0.5),
        mikd.Hint(teacher_layer="gap", student_layer="gap", teacher="large", name="hint"),
        mikd.JSDCritic(critic=mikd.ConcatCritic(width=4), teacher="small", name="jsd"),
    ]
    resizing = {"large": keras.layers.Resizing(16, 16)}
    # Not in alphabetical order, which a file must keep.
    teachers = {"small": small, "large": large}
    distiller = _new(teachers, *losses, teacher_inputs=resizing)
    x, _ = cases.data()
    resized = keras.ops.image.resize(x, (16, 16))
    together = (_logits(small) + _logits(large, resized)) / 2
    expected = _divergence(together, _logits(distiller.student))
    assert _evaluate(distiller)["kd"] == pytest.approx(expected, rel=1e-4)
    _fit(distiller)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    assert list(loaded.teachers) == ["small", "large"]
    assert loaded.combine == "mean"
    for name, each in distiller.teachers.items():
        for a, b in zip(each.get_weights(), loaded.teachers[name].get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
    assert _fit(distiller) == _fit(loaded)


def test_teachers_of_one_architecture_keep_their_own_weights_in_a_file(tmp_path):
    distiller = _new({"z": _teacher(seed=1), "a": _teacher(seed=2), "m": _teacher(seed=3)})
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    x, _ = cases.data()
    for name, each in distiller.teachers.items():
        np.testing.assert_array_equal(each(x), loaded.teachers[name](x))
    assert _fit(distiller) == _fit(loaded)


@keras.saving.register_keras_serializable("teachers_test")
def _output_alone(model, x, training):
    return {"output": model(x, training=training)}


def test_what_belongs_to_each_teacher_is_saved(tmp_path):
    x, _ = cases.data()
    normalization = keras.layers.Normalization()
    normalization.adapt(2 * x + 1)
    distiller = _new(
        {"b": _teacher(), "a": _teacher(seed=3)},
        teacher_features={"b": _output_alone},
        teacher_inputs={"a": [normalization]},
    )
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    assert loaded.teacher_features == {"b": _output_alone}
    assert not {v.path for v in normalization.variables} & {v.path for v in distiller.variables}
    (saved,) = loaded.teacher_inputs["a"]
    for a, b in zip(normalization.variables, saved.variables, strict=True):
        np.testing.assert_array_equal(a, b)
    assert _fit(distiller) == _fit(loaded)


def test_weight_files_leave_the_teachers_out(tmp_path):
    distiller = _new({"a": _teacher(), "b": _teacher(seed=3)})
    _fit(distiller)
    distiller.save_weights(tmp_path / "distiller.weights.h5")
    other = _new({"a": _teacher(seed=7), "b": _teacher(seed=8)})
    before = [each.get_weights() for each in other.teachers.values()]
    other.load_weights(tmp_path / "distiller.weights.h5")
    np.testing.assert_array_equal(_logits(other), _logits(distiller))
    for values, each in zip(before, other.teachers.values(), strict=True):
        for a, b in zip(values, each.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)


def test_out_of_a_configuration_every_teacher_needs_its_weights():
    distiller = _new({"a": _teacher(), "b": _teacher(seed=3)})
    copy = _compiled(keras.models.clone_model(distiller))
    for name in ("a", "b"):
        with pytest.raises(ValueError, match=f"trained.*in '{copy.teachers[name].name}'"):
            _fit(copy)
        copy.teachers[name].set_weights(distiller.teachers[name].get_weights())
    _fit(copy)


def test_names_and_what_is_shown(capsys):
    distiller = _new([_teacher(), _large((8, 8, 2))])
    assert list(distiller.teachers) == ["teacher1", "teacher2"]
    with pytest.raises(AttributeError, match="has .'teacher1', 'teacher2'., in .distiller.teach"):
        print(distiller.teacher)
    distiller.summary()
    shown = capsys.readouterr().out
    for name, each in distiller.teachers.items():
        assert f"Teacher '{name}', not trained: '{each.name}', {each.count_params():,}" in shown
    one = _teacher()
    alone = mikd.Distiller(one, cases.student(), [_kd()])
    assert alone.teacher is one and alone.teachers == {"teacher": one}
    by_name = mikd.Distiller({"a": one}, cases.student(), [_kd(), _kd(name="b", teacher="a")])
    assert by_name.teacher is one
    assert list(type(by_name).from_config(by_name.get_config()).teachers) == ["a"]


def test_recipes_for_each_of_several_teachers():
    teachers = {"a": _teacher(), "b": _teacher((4, 9), seed=3)}
    student = cases.student()
    losses = [
        loss
        for name, each in teachers.items()
        for loss in mikd.recipes.from_teacher(name, mikd.recipes.vid(each, student))
    ]
    names = ["a_vid_stage1", "a_vid_stage2", "b_vid_stage1", "b_vid_stage2"]
    assert [loss.name for loss in losses] == names
    distiller = _new(teachers, *losses, student=student)
    assert {*names, *(f"{name}_gaussian_nats" for name in names)} <= set(_fit(distiller))


def test_the_first_look_judges_every_teacher(capsys):
    x, y = cases.data(64)
    good = cases.student(dropout=0.0)
    good.compile(keras.optimizers.Adam(0.05), cases.cross_entropy())
    good.fit(x, y, epochs=60, verbose=0)
    bad = _teacher()
    bad.get_layer("logits").set_weights([np.zeros((8, 4)), np.array([1.0, 0, 0, 0])])
    distiller = _new({"good": good, "bad": bad})
    with pytest.warns(UserWarning, match="The teacher 'bad' is right for .*near chance"):
        distiller.fit(x, y, batch_size=32, verbose=2)
    assert "The teacher 'good' is right for" in capsys.readouterr().out


def test_probabilities_of_one_teacher_are_found():
    soft = _teacher(seed=3)
    soft = keras.Model(soft.input, keras.layers.Softmax()(soft.output))
    with pytest.raises(ValueError, match="Expected logits, since 'kd' compares logits"):
        _new({"a": _teacher(), "b": soft})
    hidden = keras.Model(soft.input, keras.layers.Lambda(lambda x: 2 * x)(soft.output))
    distiller = _new({"a": _teacher(), "b": hidden}, _kd(name="b", teacher="b"), _kd(teacher="a"))
    with pytest.raises(ValueError, match="'output' of the b, which is never negative"):
        _fit(distiller)


def test_a_run_goes_on_only_with_the_same_teachers(tmp_path):
    def run(epochs, seed=3, size=12, **kwargs):
        teachers = {"a": _teacher(), "b": cases.network((6, 8), seed=seed)}
        keras.utils.set_random_seed(0)
        distiller = _new(
            teachers,
            student=cases.student(),
            teacher_inputs={"b": keras.layers.CenterCrop(8, size)},
            **kwargs,
        )
        resume = mikd.ExactResume(tmp_path, verbose=False)
        return _fit(distiller, epochs=epochs, callbacks=[resume])

    x = cases.IMAGE_SHAPE[1]
    run(1, size=x)
    assert len(run(2, size=x)["kd"]) == 2
    with pytest.raises(ValueError, match="teacher b="):
        run(3, seed=4, size=x)
    with pytest.raises(ValueError, match="combine=mean. Received: combine=confidence"):
        run(3, size=x, combine="confidence")


# What does not fit


@pytest.mark.parametrize(
    ("teachers", "message"),
    [
        ([], "a list of at least one, or a dict"),
        ({}, "a list of at least one, or a dict"),
        ({1: 2}, "a list of at least one, or a dict"),
        ({"student": 2}, "other names of teachers than 'student', 'teachers'"),
        ({"a": "a.keras"}, "`a` to be a keras.Model. Received: a='a.keras'"),
    ],
)
def test_teachers_that_are_none_are_refused(teachers, message):
    with pytest.raises(ValueError, match=message):
        _new(teachers)


def test_teachers_and_losses_that_do_not_fit_are_refused():
    one, other, large = _teacher(), _teacher(seed=3), _large()
    hint = mikd.Hint(teacher_layer="gap", student_layer="gap", name="hint")
    two = {"a": one, "b": other}
    with pytest.raises(ValueError, match="'hint' to name its teacher.*'a', 'b'.*`teacher='a'`"):
        _new(two, hint)
    with pytest.raises(ValueError, match="to be one of the teachers .'a', 'b'.*teacher='c' of 'kd"):
        _new(two, _kd(teacher="c"))
    with pytest.raises(ValueError, match="to be one of the teachers .'teacher'.*teacher='a'"):
        _new(one, _kd(teacher="a"))
    with pytest.raises(ValueError, match="a and b to be different models"):
        _new({"a": one, "b": one})
    with pytest.raises(ValueError, match="b and student to take the same.*make those of 'b'.*dict"):
        _new({"a": one, "b": large})
    with pytest.raises(ValueError, match="same classes.*'kd'.*4.*5.*Name one of them"):
        _new({"a": one, "b": _large((8, 8, 2), classes=5)})
    with pytest.raises(ValueError, match="`teacher_inputs` to be a dict by the names.*'a', 'b'"):
        _new(two, teacher_inputs=keras.layers.Resizing(8, 8))
    with pytest.raises(ValueError, match="keys of `teacher_features` to be among .'a', 'b'"):
        _new(two, teacher_features={"c": None})
    with pytest.raises(ValueError, match="`combine` to be 'mean' or 'confidence'"):
        _new(two, combine="median")
    with pytest.raises(ValueError, match="several teachers and a loss of logits without"):
        _new(one, combine="confidence")
    with pytest.raises(ValueError, match="several teachers and a loss of logits without"):
        _new(two, _kd(teacher="a"), combine="confidence")
    with pytest.raises(ValueError, match="classes that exclude each other.*'kd'. with binary=True"):
        _new(two, mikd.SoftTargets(binary=True, name="kd"), combine="confidence")
    with pytest.raises(ValueError, match="`teacher` to be None or the name"):
        mikd.SoftTargets(teacher=one)


def test_distillers_without_several_teachers_say_so():
    two = [_teacher(), _teacher(seed=3)]
    for kind in (mikd.VIDDistiller, mikd.MIMKDDistiller):
        with pytest.raises(ValueError, match=f"one teacher, for which {kind.__name__}.*2 teachers"):
            kind(two, cases.student())
        kind(two, cases.student(), [_kd()])
    for make in (
        lambda loss: mikd.SelfDistiller(cases.student(), [loss]),
        lambda loss: mikd.MutualDistiller(two, [loss]),
    ):
        with pytest.raises(ValueError, match="to be none by name here. Received: teacher='a'"):
            make(_kd(teacher="a"))


def test_confidence_needs_labels():
    distiller = _new([_teacher(), _teacher(seed=3)], combine="confidence")
    distiller.compile("sgd", run_eagerly=True)
    with pytest.raises(ValueError, match="labels=None. Use combine="):
        distiller.fit(cases.data()[0], verbose=0)


# Caches


def _cache(teacher, x=None, **kwargs):
    images, y = cases.data()
    options = {"places": ["gap"], "batch_size": 8, **kwargs}
    images = images if x is None else x
    return mikd.TeacherCache(teacher, images, y, **options).build(verbose=0)


def _of_three(start, counts):
    teachers = {"a": _teacher(), "b": _teacher((4, 9), seed=3), "c": _large()}

    def features(model, x, training):
        counts.append(1)
        gap = model.get_layer("gap")(model.get_layer("conv")(x))
        return {"gap": gap, "output": model.get_layer("logits")(gap)}

    student = cases.student()
    student.set_weights(start)
    hints = [
        mikd.Hint(teacher_layer="gap", student_layer="gap", teacher=name, name=f"hint_{name}")
        for name in teachers
    ]
    inputs = {"c": keras.layers.Resizing(16, 16)}
    keras.utils.set_random_seed(0)
    return _new(
        teachers,
        _kd(),
        *hints,
        student=student,
        teacher_inputs=inputs,
        teacher_features={"c": features},
    )


@pytest.mark.slow
def test_caches_of_some_teachers_beside_one_that_runs(deterministic_ops):
    start, ends, runs = cases.student().get_weights(), [], []
    for cached in ("none", "b", "ab", "abc"):
        counts = []
        distiller = _of_three(start, counts)
        teachers = distiller.teachers
        caches = {name: _cache(teachers[name]) for name in ("a", "b")}
        own = distiller.teacher_features["c"]
        caches["c"] = _cache(
            teachers["c"], features=own, teacher_inputs=keras.layers.Resizing(16, 16)
        )
        first, *others = [caches[name] for name in (cached if cached != "none" else "a")]
        batches = first.batches(8, beside=others, with_teacher=cached != "none")
        distiller.fit(batches, shuffle=False, verbose=0)
        counts.clear()
        distiller.fit(batches, shuffle=False, verbose=0)
        distiller.evaluate(batches, verbose=0)
        runs.append(len(counts))
        ends.append(distiller.student.get_weights())
    # The first look runs the network as well, but only after `compile`.
    assert runs == [4, 4, 4, 0]
    for end in ends[1:]:
        for a, b in zip(ends[0], end, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def test_caches_that_do_not_belong_together_are_refused():
    one, other = _teacher(), _teacher(seed=3)
    cache = _cache(one)
    x, y = cases.data()
    for wrong in (
        cache,
        _cache(other, x=x + 1),
        _cache(other, seed=1),
        _cache(other, views=2),
        _cache(other, augment=lambda image, seed: image),
    ):
        with pytest.raises(ValueError, match="caches `beside` of other teachers over the same"):
            cache.batches(8, beside=[wrong])
    with pytest.raises(ValueError, match="Expected a built cache"):
        cache.batches(8, beside=[mikd.TeacherCache(other, x, y)])
    third = _cache(_teacher(seed=8)).batches(8)
    distiller = _new({"a": one, "b": other})
    with pytest.raises(ValueError, match="a cache of .* the teacher .* is .*, the teacher"):
        distiller.fit(third, shuffle=False, verbose=0)
    hint = mikd.Hint(teacher_layer="relu1", student_layer="relu1", teacher="a")
    with pytest.raises(ValueError, match="lacks .'relu1'.*places=.'gap', 'output'"):
        _new({"a": one, "b": other}, hint).fit(cache.batches(8), shuffle=False, verbose=0)


def test_losses_of_one_teacher_are_not_given_to_another():
    losses = mikd.recipes.from_teacher("a", mikd.recipes.kd(None, None))
    with pytest.raises(ValueError, match="Expected new losses for every teacher. Received: 'a_kd'"):
        mikd.recipes.from_teacher("b", losses)
