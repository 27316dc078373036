import gc
import json
import weakref

import cases
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mikd as mikd
from keras_mikd.cache.columns import Columns
from keras_mikd.cache.views import Views

PLACES = ["stage1", "stage2", "output"]


def _flip(image, seed):
    return tf.image.stateless_random_flip_left_right(image, seed)


def _cache(examples=16, teacher=None, **kwargs):
    x, y = cases.data(examples)
    options = {"places": PLACES, "batch_size": 8, **kwargs}
    return mikd.TeacherCache(teacher or cases.teacher(normalize=True), x, y, **options)


def _fit(teacher, data, loss=None, epochs=2, run_eagerly=True):
    distiller = cases.DISTILLERS["vid"](teacher, cases.student())
    distiller.compile(
        keras.optimizers.SGD(0.05),
        loss or cases.cross_entropy(),
        metrics=["acc"],
        run_eagerly=run_eagerly,
    )
    history = distiller.fit(data, epochs=epochs, shuffle=False, verbose=0).history
    return [v.numpy() for v in distiller.trainable_variables], history


def _assert_same(first, second, atol):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


def _batches(cache, **kwargs):
    return list(cache.batches(8, **kwargs).as_numpy_iterator())


# The same training as without


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"augment": _flip, "views": 3, "folder": "cache"}, marks=pytest.mark.slow),
        {"mix": "mixup", "views": 2},
        {"mix": "cutmix", "augment": _flip, "views": 2, "folder": "cache"},
    ],
    ids=["plain", "augmented", "mixup", "cutmix"],
)
def test_training_from_a_cache_is_training_on_the_same_views(
    options, tmp_path, monkeypatch, deterministic_ops
):
    monkeypatch.chdir(tmp_path)
    teacher = cases.teacher(normalize=True)
    cache = _cache(teacher=teacher, **options).build(verbose=0)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True) if "mix" in options else None
    runs = []
    for with_teacher in (True, False):
        keras.utils.set_random_seed(0)
        runs.append(_fit(teacher, cache.batches(8, with_teacher=with_teacher), loss))
    # On some CPUs, a row is rounded by where it stands in the teacher's batch.
    _assert_same(runs[0][0], runs[1][0], 1e-6)
    for name, values in runs[0][1].items():
        np.testing.assert_allclose(runs[1][1][name], values, rtol=1e-5, atol=1e-5, err_msg=name)


def test_float16_stays_within_its_rounding():
    teacher = cases.teacher(normalize=True)
    cache = _cache(teacher=teacher, dtype="float16").build(verbose=0)
    cached, _ = _fit(teacher, cache.batches(8))
    keras.utils.set_random_seed(0)
    plain, _ = _fit(teacher, cache.batches(8, with_teacher=False))
    _assert_same(cached, plain, 1e-3)
    assert cache.nbytes * 2 == _cache().nbytes


def test_the_teacher_does_not_run():
    teacher = cases.teacher(normalize=True)
    cache = _cache(teacher=teacher).build(verbose=0)
    calls = []

    def features(model, x, training):
        calls.append(1)
        return {"output": model(x, training=training)}

    loss = mikd.SoftTargets()
    distiller = cases.distiller_with(loss, teacher_model=teacher, teacher_features=features)
    distiller.compile("sgd", cases.cross_entropy(), run_eagerly=True)
    before = len(calls)
    distiller.fit(cache.batches(8), shuffle=False, verbose=0)
    distiller.evaluate(cache.batches(8), verbose=0)
    predicted = distiller.predict(cache.batches(8, shuffle=False), verbose=0)
    np.testing.assert_allclose(predicted, distiller.student(cases.data()[0]), atol=1e-5)
    assert len(calls) == before


def test_two_replicas_train_from_a_cache_like_one(two_replicas):
    teacher = cases.teacher(normalize=True)
    cache = _cache(teacher=teacher).build(verbose=0)
    one, one_history = _fit(teacher, cache.batches(8, shuffle=False))
    with two_replicas.scope():
        copy = cases.teacher(normalize=True)
        two, two_history = _fit(copy, cache.batches(8, shuffle=False), run_eagerly=False)
    _assert_same(one, two, 1e-5)
    for name, values in one_history.items():
        np.testing.assert_allclose(two_history[name], values, rtol=1e-3, atol=1e-4, err_msg=name)


def test_class_weights_count_in_batches_of_a_cache():
    teacher = cases.teacher(normalize=True)
    cache = _cache(teacher=teacher).build(verbose=0)

    def trained(data, **options):
        keras.utils.set_random_seed(0)
        distiller = cases.distiller_with(mikd.SoftTargets(name="kd"), teacher_model=teacher)
        distiller.compile(keras.optimizers.SGD(0.05), cases.cross_entropy(), run_eagerly=True)
        return distiller.fit(data, shuffle=False, verbose=0, **options).history

    weights = {0: 0.0, 1: 1.0, 2: 2.0, 3: 0.5}
    cached = trained(cache.batches(8, shuffle=False), class_weight=weights)
    plain = trained(cache.batches(8, shuffle=False, with_teacher=False), class_weight=weights)
    unweighted = trained(cache.batches(8, shuffle=False))
    assert cached == {name: pytest.approx(value, rel=1e-5) for name, value in plain.items()}
    assert unweighted["task_loss"] != cached["task_loss"] and unweighted["kd"] != cached["kd"]


# Views


@pytest.mark.parametrize("mix", [None, "mixup", "cutmix"])
def test_views_are_replayed_and_differ_from_one_another(mix):
    caches = [_cache(augment=_flip, mix=mix, views=4, seed=3) for _ in range(2)]
    first, second = (_batches(c, with_teacher=False, shuffle=False) for c in caches)
    for (x, y), (x2, y2) in zip(first, second, strict=True):
        np.testing.assert_array_equal(x, x2)
        np.testing.assert_array_equal(y, y2)
    data = caches[0].batches(8, with_teacher=False)
    epochs = [np.concatenate([x for x, _ in data.as_numpy_iterator()]) for _ in "ab"]
    assert np.any(np.sort(epochs[0], axis=0) != np.sort(epochs[1], axis=0))
    other = _batches(_cache(augment=_flip, mix=mix, views=4, seed=4), with_teacher=False)
    assert np.any(other[0][0] != first[0][0])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_a_mix_has_the_labels_of_its_shares(mix, dtype):
    """Images of ones and of zeros: the mean of a mixed image is the share of the first class."""
    images = np.repeat([0.0, 1.0], 8)[:, None, None, None] * np.ones((1, *cases.IMAGE_SHAPE))
    labels = np.repeat([0, 1], 8)
    cache = mikd.TeacherCache(cases.teacher(), images.astype(dtype), labels, mix=mix, views=4)
    (x, y), *_ = _batches(cache, with_teacher=False)
    assert x.dtype == dtype
    np.testing.assert_allclose(y.sum(axis=1), 1.0, atol=1e-6)
    shares = x.mean(axis=(1, 2, 3), dtype="float64")
    np.testing.assert_allclose(shares, y[:, 1], atol=1e-3 if dtype == "float16" else 1e-5)
    assert np.any((y[:, 1] > 0.01) & (y[:, 1] < 0.99))


def test_the_partner_of_a_mix_is_augmented_in_the_view_of_its_own():
    def number(image, seed):
        return tf.ones_like(image) * tf.cast(seed[1], image.dtype)

    views = _cache(augment=number, mix="mixup", views=2)._views
    images, _ = views(tf.range(16, 32, dtype=tf.int64))  # Rows of the second view of 16 examples.
    assert np.min(images) >= 16


def _views(**options):
    images = np.ones((64, 8, 8, 1), "float32") * np.arange(64)[:, None, None, None]
    options = {"augment": None, "mix": None, "mix_alpha": 1.0, "num_classes": 64, **options}
    return Views(images, np.arange(64), **{"views": 1, "seed": 0, **options})


def test_a_box_of_cutmix_has_the_share_that_is_drawn(monkeypatch):
    monkeypatch.setattr(Views, "_uniform", lambda *_: tf.constant([0.5, 0.5, 0.5]))
    monkeypatch.setattr(Views, "_share", lambda *_: tf.constant(0.75))
    _, shares = _views(mix="cutmix")(tf.range(4, dtype=tf.int64))
    np.testing.assert_allclose(np.max(shares, axis=1), 0.75)  # A box of 4 x 4 in 8 x 8.


@pytest.mark.parametrize("alpha", [1e-3, 0.2, 1.0, 1000.0])
def test_shares_of_a_mix_are_of_the_beta_distribution(alpha):
    views = _views(mix="mixup", mix_alpha=alpha, views=32)
    draws = tf.map_fn(views._share, tf.range(views.rows), fn_output_signature=tf.float32).numpy()
    assert draws.mean() == pytest.approx(0.5, abs=0.04)
    assert draws.var() == pytest.approx(0.25 / (2 * alpha + 1), rel=0.1)


def test_no_two_purposes_of_any_two_seeds_share_a_draw():
    draws = [tuple(_views(seed=s)._seed(0, p).numpy()) for s in range(3) for p in range(4)]
    assert len(set(draws)) == len(draws)


def test_an_epoch_has_every_example_once():
    cache = _cache(views=3, augment=_flip)
    x, _ = cases.data()
    seen = np.concatenate([b for b, _ in _batches(cache, with_teacher=False)])
    sums = seen.sum(axis=(1, 2, 3))  # A flip does not change them.
    np.testing.assert_allclose(np.sort(sums), np.sort(x.sum(axis=(1, 2, 3))), rtol=1e-4)


# What is kept


def test_top_k_logits_keep_their_probabilities():
    teacher = cases.teacher()
    x, _ = cases.data()
    logits = teacher.predict(x, verbose=0)
    cache = _cache(teacher=teacher, places=(), top_k=2).build(verbose=0)
    read = []
    for batch in _batches(cache, shuffle=False):
        (features,) = batch.teacher_features.values()
        read.append(features["output"])
    read = np.concatenate(read)
    p, q = (np.exp(v) / np.exp(v).sum(1, keepdims=True) for v in (logits, read))
    top = np.argsort(logits)[:, -2:]
    for values in (p, q):
        assert values.shape == (16, 4)
    np.testing.assert_allclose(
        np.take_along_axis(q, top, 1), np.take_along_axis(p, top, 1), rtol=1e-5
    )
    rest = np.argsort(logits)[:, :2]
    np.testing.assert_allclose(np.ptp(np.take_along_axis(q, rest, 1), axis=1), 0, atol=1e-6)
    assert cache.nbytes == 16 * (2 * 4 + 2 * 4 + 4)


def test_the_size_is_told_and_refused_before_the_teacher_runs(capsys):
    # 8x8x6 + 4x4x8 + 4 numbers of 4 bytes.
    assert _cache().nbytes == 16 * 4 * (384 + 128 + 4)
    with pytest.raises(ValueError, match=r"at most 1000 B .*16 rows of 2\.016 KiB, together 32"):
        _cache(max_bytes=1000)
    _cache().build()
    printed = capsys.readouterr().out
    assert "TeacherCache: 16 rows, 32.25 KiB in memory" in printed and "16/16" in printed


# A folder


class _Killed(Exception):
    pass


def _killed_after(monkeypatch, batches):
    advance = Columns.advance

    def killing(self, done):
        advance(self, done)
        if done == 8 * batches:
            raise _Killed

    monkeypatch.setattr(Columns, "advance", killing)


def test_a_build_that_was_killed_goes_on_where_it_was(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        _killed_after(patch, batches=2)
        with pytest.raises(_Killed):
            _cache(32, folder=tmp_path / "cache").build(verbose=0)
    manifest = json.loads((tmp_path / "cache" / "manifest.json").read_text())
    assert manifest["done"] == 16
    with pytest.raises(ValueError, match="16 of 32 rows"):
        _cache(32, folder=tmp_path / "cache").batches(8)
    seen = []
    monkeypatch.setattr(
        Columns,
        "advance",
        lambda self, done, old=Columns.advance: seen.append(done) or old(self, done),
    )
    resumed = _cache(32, folder=tmp_path / "cache").build(verbose=0)
    assert seen == [24, 32]
    whole = _cache(32).build(verbose=0)
    for a, b in zip(_batches(resumed, shuffle=False), _batches(whole, shuffle=False), strict=True):
        keras.tree.map_structure(np.testing.assert_array_equal, a, b)


def test_a_built_folder_is_read_and_not_built_again(tmp_path, monkeypatch):
    _cache(folder=tmp_path / "cache").build(verbose=0)
    monkeypatch.setattr(mikd.TeacherCache, "_forward", None)
    again = _cache(folder=tmp_path / "cache")
    assert len(_batches(again)) == 2


@pytest.mark.parametrize(
    "part, options",
    [
        ("teacher", {"teacher": cases.network((6, 8), seed=5)}),
        ("data", {"examples": 24}),
        ("views", {"views": 2}),
        ("views", {"seed": 1}),
        ("views", {"augment": lambda image, seed: image + 1.0}),
        # What it makes is the same.
        ("views", {"augment": lambda image, seed: image + 0.0}),
        ("columns", {"dtype": "float16"}),
        ("columns", {"places": ["stage1"]}),
        ("columns", {"top_k": 2}),
    ],
)
def test_a_folder_of_something_else_is_refused_and_kept(tmp_path, part, options):
    _cache(folder=tmp_path / "cache").build(verbose=0)
    before = {path.name: path.read_bytes() for path in (tmp_path / "cache").iterdir()}
    with pytest.raises(ValueError, match=f"Received: one with other .*{part}.*remove this one"):
        _cache(**{**options, "folder": tmp_path / "cache"})
    assert {path.name: path.read_bytes() for path in (tmp_path / "cache").iterdir()} == before


# Bad input


def test_a_cache_of_another_teacher_is_refused_before_a_step():
    cache = _cache().build(verbose=0)
    with pytest.raises(ValueError, match="TeacherCache of this distiller's teacher"):
        _fit(cases.network((6, 8), seed=5), cache.batches(8))
    distiller = cases.DISTILLERS["vid"](cases.network((6, 8), seed=5), cases.student())
    distiller.compile("sgd", cases.cross_entropy())
    with pytest.raises(ValueError, match="TeacherCache of this distiller's teacher"):
        distiller.evaluate(cache.batches(8), verbose=0)
    teacher = cases.teacher(normalize=True)
    teacher.get_layer("logits").bias.assign_add(np.ones(4))
    with pytest.raises(ValueError, match="with the weights that it has now"):
        _fit(teacher, cache.batches(8))


def test_a_teacher_of_several_outputs_is_refused_with_a_way_out():
    inputs = keras.Input(cases.IMAGE_SHAPE)
    pooled = keras.layers.GlobalAveragePooling2D()(inputs)
    outputs = {"cls": keras.layers.Dense(4)(pooled), "box": keras.layers.Dense(2)(pooled)}
    teacher = keras.Model(inputs, outputs)
    with pytest.raises(ValueError, match=r"a teacher of one output.*teacher.output\[...\]"):
        _cache(teacher=teacher, places=["output/cls"])
    one = keras.Model(teacher.inputs, teacher.output["cls"])
    assert _cache(teacher=one, places=[]).build(verbose=0).nbytes == 16 * 4 * 4


def test_missing_places_and_distillers_without_a_teacher_are_refused():
    teacher = cases.teacher(normalize=True)
    cache = _cache(teacher=teacher, places=["stage1"]).build(verbose=0)
    with pytest.raises(ValueError, match=r"lacks \['stage2'\].*places=\['output', 'stage1', 'st"):
        _fit(teacher, cache.batches(8))
    distiller = cases.DISTILLERS["muse"](None, cases.student())
    distiller.compile("sgd", cases.cross_entropy())
    with pytest.raises(ValueError, match="this distiller has no teacher"):
        distiller.fit(cache.batches(8), shuffle=False, verbose=0)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"mix": "blend"}, "Expected `mix`"),
        ({"mix_alpha": 0}, "`mix_alpha` to be a finite number above 0"),
        ({"views": 0}, "`views` to be an int of at least 1"),
        ({"seed": -1}, "`seed` to be an int of at least 0.*Received: seed=-1"),
        ({"dtype": "bfloat16"}, "`dtype` to be 'float32' or 'float16'"),
        ({"top_k": 4}, "`top_k` to be an int of at least 1 and of at most 3 or None"),
        ({"places": ["stage9"]}, "stage9"),
        ({"examples": 0}, "Expected `images` of shape"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        _cache(**options)


def test_batches_need_a_built_cache_and_fit_the_data():
    cache = _cache()
    with pytest.raises(ValueError, match="call `build\\(\\)` first. Received: 0 of 16 rows"):
        cache.batches(8)
    with pytest.raises(
        ValueError, match="`batch_size` to be an int of at least 1 and of at most 16"
    ):
        cache.batches(17, with_teacher=False)


def test_a_data_set_is_read_once_for_its_arrays():
    x, y = cases.data()
    teacher, dataset = cases.teacher(), tf.data.Dataset.from_tensor_slices((x, y)).batch(6)
    of_dataset = mikd.TeacherCache(teacher, dataset, places=PLACES, batch_size=8)
    of_arrays = mikd.TeacherCache(teacher, x, y, PLACES, batch_size=8)
    first, second = (_batches(c.build(verbose=0), shuffle=False) for c in (of_dataset, of_arrays))
    assert len(first) == len(second) == 2
    for a, b in zip(keras.tree.flatten(first), keras.tree.flatten(second), strict=True):
        np.testing.assert_array_equal(a, b)


def test_data_sets_that_are_no_images_and_labels_are_refused():
    x, y = cases.data()
    images = tf.data.Dataset.from_tensor_slices(x).batch(8)
    both = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    for data, message in (
        ((images,), r"batches \(images, labels\), and no `labels` beside it"),
        ((both, y), r"batches \(images, labels\), and no `labels` beside it"),
        ((both.unbatch(),), r"batches \(images, labels\)"),
        ((both.map(lambda x, y: ({"x": x}, y)),), r"batches \(images, labels\)"),
        ((both.take(0),), "at least one batch"),
        ((both.repeat(),), "finite data set.* Add .take"),
        ((x,), "Expected labels beside the images"),
    ):
        with pytest.raises(ValueError, match=message):
            mikd.TeacherCache(cases.teacher(), *data)


def test_a_cache_is_no_data_but_has_batches():
    cache = _cache().build(verbose=0)
    distiller = cases.distiller_with(mikd.SoftTargets(name="kd"))
    distiller.compile("sgd", cases.cross_entropy())
    with pytest.raises(ValueError, match=r"a TeacherCache; pass cache.batches\(batch_size\)"):
        distiller.fit(cache)


def test_mixed_labels_are_refused_by_a_sparse_loss():
    teacher = cases.teacher()
    cache = _cache(teacher=teacher, mix="mixup").build(verbose=0)
    distiller = cases.distiller_with(mikd.SoftTargets(name="kd"), teacher_model=teacher)
    distiller.compile("sgd", cases.cross_entropy())
    with pytest.raises(ValueError, match="are for keras.losses.CategoricalCrossentropy"):
        distiller.fit(cache.batches(8), verbose=0)


# What is wrong with what is kept


def _scaled_teacher(scale):
    """A teacher whose logits are `scale` times as large."""
    teacher = cases.teacher()
    logits = teacher.get_layer("logits")
    logits.set_weights([scale * weight for weight in logits.get_weights()])
    return teacher


@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"folder": "cache"}])
def test_what_float16_does_not_hold_is_refused(options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    teacher = _scaled_teacher(1e7)
    with pytest.raises(ValueError, match=r"up to 65504. Received: .*'output.*dtype=\"float32\""):
        _cache(teacher=teacher, dtype="float16", **options).build(verbose=0)
    options["folder"] = None
    assert np.isfinite(
        _cache(teacher=teacher, **options).build(verbose=0)._kept.arrays["stage1"]
    ).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_in_images_and_in_what_the_teacher_puts_out(value):
    x, y = cases.data()
    x[11, 3, 3] = value
    with pytest.raises(ValueError, match=r"finite images.* in 1 of 16, first in images\[11\]"):
        mikd.TeacherCache(cases.teacher(), x, y)
    inner = cases.teacher()
    teacher = keras.Model(inner.input, inner.get_layer("logits").output)
    teacher.get_layer("logits").kernel.assign(np.full((8, 4), abs(value)))
    said = "whose 'logits/kernel' has NaN" if np.isnan(value) else "inf at its place 'output'"
    with pytest.raises(ValueError, match=f"Received: .*{said}"):
        _cache(teacher=teacher).build(verbose=0)


def test_nan_that_a_relu_hides_is_refused():
    teacher = cases.teacher()
    teacher.get_layer("conv1").bias.assign([np.nan] * 6)
    with pytest.raises(ValueError, match="`teacher` to have numbers.*'conv1/bias' has NaN"):
        _cache(teacher=teacher).build(verbose=0)


@pytest.mark.parametrize("top_k", [None, 3])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_masked_logits_are_kept(top_k, dtype):
    """A class that the teacher rules out has a logit of -inf; here two of four have."""
    x, y = cases.data()
    inner = cases.teacher()
    mask = keras.ops.array([0.0, -np.inf, 0.0, -np.inf])
    teacher = keras.Model(inner.input, inner.output + mask)
    cache = mikd.TeacherCache(teacher, x, y, top_k=top_k, dtype=dtype).build(verbose=0)
    (batch,) = cache.batches(16, shuffle=False).as_numpy_iterator()
    (features,) = batch.teacher_features.values()
    np.testing.assert_allclose(features["output"], teacher(x), atol=1e-2)


@pytest.mark.parametrize("labels", [[-1, 3], [0, 4], [0.0, 1.0], [True, False]])
def test_a_mix_needs_labels_that_the_teacher_has(labels):
    x, _ = cases.data()
    with pytest.raises(
        ValueError, match=r"`labels` to be integers from 0 to 3, .* `mix`.*Received"
    ):
        mikd.TeacherCache(cases.teacher(), x, np.resize(labels, len(x)), mix="mixup")


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "uint32", "int64", "uint64"])
def test_a_mix_takes_labels_of_every_integer_type(dtype):
    x, y = cases.data()
    cache = mikd.TeacherCache(cases.teacher(), x, y.astype(dtype), mix="cutmix")
    _, mixed = next(cache.batches(16, with_teacher=False).as_numpy_iterator())
    np.testing.assert_allclose(mixed.sum(axis=1), 1.0, atol=1e-6)


def test_a_byte_that_changed_is_told_when_the_folder_is_opened(tmp_path):
    _cache(folder=tmp_path).build(verbose=0)
    path = tmp_path / "column0.npy"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 64
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"whole TeacherCache in '{tmp_path}'.*column0.npy has an"):
        _cache(folder=tmp_path)


@pytest.mark.parametrize("augment", [None, _flip])
def test_a_cache_that_nobody_holds_is_freed(augment):
    cache = _cache(augment=augment).build(verbose=0)
    data = cache.batches(8).map(lambda batch: batch)
    held = [weakref.ref(each) for each in (cache, cache._views, cache._kept.arrays["stage1"])]
    del cache
    gc.collect()
    assert sum(1 for _ in data) == 2  # The data set holds it.
    del data
    gc.collect()
    assert [each() for each in held] == [None] * 3


@pytest.mark.parametrize("with_teacher", [False, True])
def test_an_epoch_has_an_order_of_its_own_number(with_teacher):
    """However many iterators Keras makes: only those that are read count."""
    cache = _cache(views=3, augment=_flip).build(verbose=0)

    def epochs(first, number):
        batches = cache.batches(4, seed=7, with_teacher=with_teacher, first_epoch=first)
        assert batches.cardinality() == 4
        read = []
        for _ in range(number):
            iter(batches)
            read.append([batch[1].numpy().tolist() for batch in batches])
        return read

    whole = epochs(0, 4)
    assert whole[2:] == epochs(2, 2)
    assert len({str(epoch) for epoch in whole}) == 4
    everything = sorted(label for batch in epochs(0, 1)[0] for label in batch)
    assert all(sorted(sum(epoch, [])) == everything for epoch in whole)
    with pytest.raises(ValueError, match="`first_epoch` to be an int of at least 0"):
        cache.batches(4, first_epoch=-1)


def test_all_views_come_up_and_no_example_twice():
    cache = _cache(views=2)
    (rows,) = cache._views.orders(0, 0).batch(cases.data()[0].shape[0])
    assert sorted(rows.numpy() % 16) == list(range(16))
    assert set(rows.numpy() // 16) == {0, 1}


def test_a_teacher_that_was_trained_since_is_refused():
    teacher = cases.teacher()
    cache = _cache(teacher=teacher)
    teacher.set_weights([w + 1.0 for w in teacher.get_weights()])
    with pytest.raises(ValueError, match="Expected the teacher that the cache was made with"):
        cache.build(verbose=0)


def test_an_augmentation_that_ignores_its_seed_is_refused():
    cache = _cache(augment=lambda image, seed: tf.image.random_brightness(image, 0.5))
    with pytest.raises(ValueError, match="`augment` to draw from its seed alone"):
        cache.build(verbose=0)


@pytest.mark.parametrize(
    "augment, received",
    [
        (lambda image, seed: tf.cast(image, "float32"), r"\(8, 8, 3\) float32.*tf.cast"),
        (lambda image, seed: image[:5], r"\(5, 8, 3\) uint8.*tf.image.resize"),
        (lambda image, seed: (image, seed), "tuple"),
        (lambda image, seed: None, "NoneType"),
    ],
)
def test_an_augmentation_keeps_shape_and_dtype(augment, received):
    teacher = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()])
    x, y = np.zeros((4, 8, 8, 3), "uint8"), np.zeros(4, int)
    with pytest.raises(ValueError, match=r"\(8, 8, 3\) uint8. Received: " + received):
        mikd.TeacherCache(teacher, x, y, augment=augment)


def test_labels_in_a_column_are_those_of_a_row():
    """As Keras' CIFAR has them."""
    (x, y), teacher = cases.data(16), cases.teacher(normalize=True)
    column = y.astype("uint8")[:, None]
    flat = _cache(teacher=teacher).build(verbose=0)
    for data in ((x, column), (tf.data.Dataset.from_tensor_slices((x, column)).batch(5),)):
        cache = mikd.TeacherCache(teacher, *data, places=PLACES, batch_size=8).build(verbose=0)
        for batch, expected in zip(_batches(cache), _batches(flat), strict=True):
            np.testing.assert_array_equal(batch[1], expected[1])
    mixed = mikd.TeacherCache(teacher, x, column, PLACES, mix="mixup").build(verbose=0)
    assert _batches(mixed)[0][1].shape == (8, 4)


@pytest.mark.parametrize(
    "labels, mix, advice",
    [
        (np.eye(4)[np.arange(16) % 4], "mixup", r"of shape \(16, 4\).*np.argmax\(labels"),
        (np.zeros((16, 1)), None, r"float64 labels of shape \(16, 1\).*labels\[:, 0\]"),
    ],
)
def test_other_labels_are_refused_with_a_way_out(labels, mix, advice):
    with pytest.raises(ValueError, match=advice):
        mikd.TeacherCache(cases.teacher(), cases.data(16)[0], labels, mix=mix)


@pytest.mark.parametrize("augment", [None, lambda image, seed: image * 2.0])
def test_rows_of_labels_stay_beside_their_images(augment):
    """Several labels of an example, or numbers."""
    x, _ = cases.data(16)
    labels = np.random.default_rng(0).normal(size=(16, 3)).astype("float32")
    cache = mikd.TeacherCache(cases.teacher(), x, labels, augment=augment, batch_size=8)
    factor = 1.0 if augment is None else 2.0
    for images, rows, *_ in _batches(cache.build(verbose=0)):
        for image, row in zip(images, rows, strict=True):
            (same,) = [i for i in range(16) if np.array_equal(factor * x[i], image)]
            np.testing.assert_array_equal(row, labels[same])


def test_a_folder_knows_every_image(tmp_path):
    x, y = cases.data(40)
    mikd.TeacherCache(cases.teacher(), x, y, folder=tmp_path).build(verbose=0)
    x[1] += 1.0  # None of the rows that are looked at for their augmentation.
    with pytest.raises(ValueError, match="one with other data"):
        mikd.TeacherCache(cases.teacher(), x, y, folder=tmp_path)


def test_a_folder_knows_the_function_that_reads_the_teacher(tmp_path):
    def features(factor):
        return lambda model, x, training: {"output": factor * model(x, training=training)}

    _cache(places=[], features=features(1.0), folder=tmp_path).build(verbose=0)
    with pytest.raises(ValueError, match="one with other teacher"):
        _cache(places=[], features=features(2.0), folder=tmp_path)


def test_only_logits_may_be_masked():
    inner = cases.teacher()
    masked = keras.layers.Rescaling(1.0, -np.inf, name="masked")(inner.output)
    teacher = keras.Model(inner.input, inner.output + 0.0 * keras.ops.isfinite(masked))
    with pytest.raises(ValueError, match="finite numbers. Received: -inf at its place 'masked'"):
        _cache(teacher=teacher, places=["masked"]).build(verbose=0)
