"""Losses between sequences of tokens: in NumPy, as maps, and with padding."""

import math

import critic_twins
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mikd as mikd
from keras_mikd import bounds
from keras_mikd.features.places import mask_of

BATCH, TOKENS = 5, 6
LENGTHS = (6, 4, 1, 0, 3)
MASK = np.arange(TOKENS)[None] < np.array(LENGTHS)[:, None]
WHOLE = np.ones((BATCH, TOKENS), bool)
CRITICS = {"separable": mikd.SeparableCritic, "concat": mikd.ConcatCritic}


def _tokens(channels, tokens=TOKENS, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(BATCH, tokens, channels)).astype("float32")


def _made(loss, teacher, student):
    """The loss, built for these tensors, with weights that matter."""
    many = isinstance(loss, mikd.MUSE)
    shape = (None, *student.shape[1:])
    loss.build((None, *teacher.shape[1:]), [shape] if many else shape)
    critic_twins.set_random_weights(loss)
    return loss


def _value(loss, teacher, student, teacher_mask=None, student_mask=None):
    student = tf.constant(student)
    masks = {"teacher_mask": teacher_mask, "student_mask": student_mask}
    masks = {name: tf.constant(mask) for name, mask in masks.items() if mask is not None}
    if isinstance(loss, mikd.MUSE):
        student = [student]
        if "student_mask" in masks:
            masks["student_mask"] = {"stage1": masks["student_mask"]}
    return loss(tf.constant(teacher), student, training=False, **masks).numpy()


def _muse(**kwargs):
    return mikd.MUSE(student_layer=["stage1"], width=4, temperature=0.5, name="muse", **kwargs)


def _jsd(bound=bounds.jsd, critic="separable", negatives=2):
    return mikd.JSDCritic(bound=bound, critic=CRITICS[critic](width=4), negatives=negatives)


LOSSES = {
    "hint": mikd.Hint,
    "attention_transfer": mikd.AttentionTransfer,
    "vid_official": mikd.GaussianVIDHead,
    "vid_repdistiller_sum": lambda: mikd.GaussianVIDHead(variant="repdistiller", reduction="sum"),
    "soft_targets": mikd.SoftTargets,
    "jsd": _jsd,
    "jsd_concat": lambda: _jsd(critic="concat"),
    "nwj": lambda: _jsd(bounds.nwj),
    "dv": lambda: _jsd(bounds.donsker_varadhan, negatives="all"),
    "smile": lambda: _jsd(bounds.smile, "concat", negatives=1),
    "info_nce": lambda: _jsd(bounds.info_nce, negatives="all"),
    "muse_additive": lambda: _muse(combine="additive"),
    "muse_info_nce": lambda: _muse(bound=bounds.info_nce, negatives="all"),
}
MASKS = pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "padded"])


def _mean(values, mask):
    """The mean of `(batch, tokens)` over what is real, 0 for nothing."""
    return np.array([v[m].mean() if m.any() else 0.0 for v, m in zip(values, mask, strict=True)])


@MASKS
def test_hint_equals_numpy(mask):
    teacher, student = _tokens(4), _tokens(3, seed=1)
    loss = _made(mikd.Hint(), teacher, student)
    error = teacher - student @ np.array(loss.regressor.kernel) - np.array(loss.regressor.bias)
    real = WHOLE if mask is None else mask
    expected = _mean(np.square(error).mean(-1), real)
    np.testing.assert_allclose(_value(loss, teacher, student, mask), expected, rtol=1e-5)


@MASKS
def test_attention_transfer_equals_numpy(mask):
    teacher, student = _tokens(4), _tokens(3, seed=1)
    real = WHOLE if mask is None else mask

    def attention(x):
        x = np.square(x.astype("float64")).mean(-1) * real
        return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)

    expected = _mean(np.square(attention(teacher) - attention(student)), real)
    loss = _made(mikd.AttentionTransfer(), teacher, student)
    value = _value(loss, teacher, student, student_mask=mask)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-9)


@MASKS
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_vid_and_its_read_out_equal_numpy(mask, reduction):
    teacher, student = _tokens(4), _tokens(3, seed=1)
    loss = _made(mikd.GaussianVIDHead(reduction=reduction), teacher, student)
    real = WHOLE if mask is None else mask
    kernels = [np.array(layer.kernel, "float64") for layer in loss.mean_layers]
    error = np.square(teacher - student @ kernels[0] @ kernels[1])
    variance = np.log1p(np.exp(np.array(loss.alpha, "float64"))) + 1e-12
    each = 0.5 * (error / variance + np.log(variance))
    expected = _mean(each.mean(-1), real)
    if reduction == "sum":
        expected = np.array([e[m].sum() for e, m in zip(each, real, strict=True)])
    np.testing.assert_allclose(_value(loss, teacher, student, mask), expected, rtol=1e-4)
    log_q = -0.5 * (error[real].mean(0) / variance + np.log(2 * math.pi * variance))
    log_g = -0.5 * (np.log(2 * math.pi * teacher[real].var(0)) + 1)
    assert float(loss.gaussian_nats.result()) == pytest.approx((log_q - log_g).mean(), rel=1e-4)


def test_the_first_variance_of_vid_is_that_of_real_tokens():
    teacher, student = _tokens(4), _tokens(3, seed=1)
    loss = _made(mikd.GaussianVIDHead(initial_variance="auto"), teacher, student)
    loss.look_at(teacher, student, student_mask=tf.constant(MASK))
    np.testing.assert_allclose(loss.variance(), teacher[MASK].var(0), rtol=1e-4)


@MASKS
def test_soft_targets_equal_numpy(mask):
    teacher, student = _tokens(4), _tokens(4, seed=1)

    def probabilities(x):
        x = np.exp(x.astype("float64") / 4)
        return x / x.sum(-1, keepdims=True)

    p, q = probabilities(teacher), probabilities(student)
    expected = 16 * _mean((p * np.log(p / q)).sum(-1), WHOLE if mask is None else mask)
    loss = _made(mikd.SoftTargets(temperature=4.0), teacher, student)
    value = _value(loss, teacher, student, student_mask=mask)
    np.testing.assert_allclose(value, expected, rtol=1e-4)


def _by_pairs(critic, teacher, student, real, negatives):
    """`{(example, token): (score, scores of its negatives)}`; a token without any is left out."""
    scores = {}
    for i, others in critic_twins.partners(BATCH, negatives).items():
        for token in range(TOKENS):

            def score(j, i=i, token=token):
                first = teacher[i] if teacher.ndim == 2 else teacher[i, token]
                second = student[j] if student.ndim == 2 else student[j, token]
                return critic_twins.score(critic, first[None], second[None])[0]

            partners = [j for j in others if student.ndim == 2 or real[j, token]]
            if real[i, token] and partners:
                scores[i, token] = score(i), np.array([score(j) for j in partners])
    return scores


def _bound(name, scores, of):
    joint, product = scores[of]
    at_token = np.concatenate([scores[key][1] for key in scores if key[1] == of[1]])
    if name == "jsd":
        return -np.logaddexp(0, -joint) - np.logaddexp(0, product).mean()
    if name == "nwj":
        return joint - np.exp(product - 1).mean()
    if name == "donsker_varadhan":
        return joint - np.log(np.exp(at_token).mean())
    if name == "smile":
        return joint - np.log(np.exp(np.clip(at_token, -5, 5)).mean())
    every = np.append(product, joint)
    return joint - np.log(np.exp(every).mean())


@MASKS
@pytest.mark.parametrize("level", ["feature", "local", "local_reverse"])
@pytest.mark.parametrize("bound", ["jsd", "nwj", "donsker_varadhan", "smile", "info_nce"])
def test_critics_equal_numpy(bound, level, mask):
    teacher, student = _tokens(4), _tokens(3, seed=1)
    if level == "local":
        teacher = teacher[:, 0]
    if level == "local_reverse":
        student = student[:, 0]
    critic = "concat" if bound == "smile" else "separable"
    negatives = 2 if bound == "jsd" else BATCH - 1
    loss = _made(_jsd(getattr(bounds, bound), critic, negatives), teacher, student)
    real = WHOLE if mask is None else mask
    scores = _by_pairs(loss.critic, teacher, student, real, negatives)
    empty = 2 * math.log(2) if bound == "jsd" else 0.0  # Tokens, but no negative.
    expected, ceilings = [], []
    for i in range(BATCH):
        own = [key for key in scores if key[0] == i]
        none = empty if real[i].any() else 0.0
        expected.append(-np.mean([_bound(bound, scores, key) for key in own]) if own else none)
        if own:
            ceilings.append(np.mean([math.log1p(len(scores[key][1])) for key in own]))
    masks = (None, mask) if level == "local" else (mask, None)
    value = _value(loss, teacher, student, *masks)
    np.testing.assert_allclose(value, expected, rtol=1e-3, atol=1e-4)
    limit = np.mean(ceilings)
    if bound != "info_nce":
        joint = np.mean(
            [
                np.mean([scores[key][0] for key in scores if key[0] == i])
                for i in dict.fromkeys(key[0] for key in scores)
            ]
        )
        product = np.concatenate([each for _, each in scores.values()])
        nats, limit = joint - np.log(np.exp(product).mean()), math.log(len(product))
        assert float(loss.mi_nats.result()) == pytest.approx(nats, rel=1e-3)
    assert float(loss.mi_nats.limit()) == pytest.approx(limit, rel=1e-5)


def test_a_critic_measures_real_tokens_alone():
    teacher, student = _tokens(4), _tokens(3, seed=1)
    loss = _made(_jsd(critic="concat"), teacher, student)
    loss(teacher, student, training=True, student_mask=tf.constant(MASK))
    root = np.sign(teacher) * np.sqrt(np.abs(teacher))
    expected = [root[MASK].mean(0), np.abs(teacher[MASK]).mean(0)]
    np.testing.assert_allclose(loss.critic.teacher_moments, expected, rtol=1e-5)


@MASKS
@pytest.mark.parametrize("combine", ["additive", "multiplicative"])
def test_muse_equals_numpy(combine, mask):
    teacher, student = _tokens(4), _tokens(3, seed=1)
    loss = _made(_muse(combine=combine, negatives=2), teacher, student)
    real = WHOLE if mask is None else mask
    critic = loss.critics[0]
    mutual = _by_pairs(critic, teacher, student, real, 2)
    kernel = np.array(critic.student_layer.kernel)

    def own(i, j, token):
        first, second = student[i, token] @ kernel, student[j, token] @ kernel
        cosine = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
        return cosine / critic.temperature + float(critic.bias)

    others = critic_twins.partners(BATCH, 2)
    terms = []
    for i in range(BATCH):
        keys = [key for key in mutual if key[0] == i]
        itself = {
            (i, t): (own(i, i, t), np.array([own(i, j, t) for j in others[i] if real[j, t]]))
            for _, t in keys
        }
        terms.append(
            [
                np.mean([_bound("jsd", scores, key) for key in keys]) + 2 * math.log(2)
                if keys
                else 0.0
                for scores in (mutual, itself)
            ]
        )
    terms, has_token = np.array(terms), real.any(axis=1)
    value = _value(loss, teacher, student, student_mask=mask)
    if combine == "additive":
        np.testing.assert_allclose(value, -terms.sum(1), rtol=1e-4, atol=1e-5)
    else:
        factors = np.log1p(np.exp(terms[has_token].mean(0)))
        assert value.sum() / has_token.sum() == pytest.approx(-factors.prod(), rel=1e-4)
        np.testing.assert_array_equal(value[~has_token], 0.0)
    read = float(loss.readouts["muse_stage1_mutual_nats"].result())
    assert read == pytest.approx(terms[has_token, 0].mean(), rel=1e-4)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "soft_targets"])
def test_a_map_gives_what_its_tokens_give(name):
    """Against tokens and against a map, with class and register tokens in front as well."""
    rng = np.random.default_rng(0)
    teacher = rng.normal(size=(BATCH, 4, 2, 4)).astype("float32")
    student = rng.normal(size=(BATCH, 4, 2, 4)).astype("float32")
    as_tokens = [x.reshape(BATCH, 8, 4) for x in (teacher, student)]
    values = [
        _value(_made(LOSSES[name](), *pair), *pair)
        for pair in (
            (teacher, student),
            as_tokens,
            (teacher, np.concatenate([_tokens(4, 4), as_tokens[1]], axis=1)),
            (as_tokens[0], student),
        )
    ]
    for value in values[1:]:
        np.testing.assert_allclose(value, values[0], rtol=1e-6, atol=1e-6)


def _longer(x, number, value):
    """A sequence with more tokens, which hold anything."""
    added = np.full((len(x), number, *x.shape[2:]), value, x.dtype)
    return np.concatenate([x, added], axis=1)


def _levels(name):
    """Losses without a critic compare tokens with tokens only."""
    critics = not {name.split("_")[0]} & {"hint", "attention", "vid", "soft"}
    return ["feature", *(["local", "local_reverse"] if critics else [])]


@pytest.mark.parametrize(("level", "name"), [(level, n) for n in LOSSES for level in _levels(n)])
def test_padding_changes_nothing_to_the_bit(name, level):
    """Neither the value, nor the read-outs; and the gradient at padded tokens is 0."""
    channels = 3 if name in ("hint", "vid_official") else 4
    teacher, student = _tokens(4), _tokens(channels, seed=1)
    seen = []
    for number, value in ((0, 0.0), (2, np.nan), (15, np.inf)):
        first, second = (_longer(x, number, value) for x in (teacher, student))
        mask = tf.constant(_longer(MASK, number, False))
        first = teacher[:, 0] if level == "local" else first
        second = student[:, 0] if level == "local_reverse" else second
        loss = _made(LOSSES[name](), first, second)
        second = tf.constant(second)
        masks = {"teacher_mask": mask} if level == "local_reverse" else {"student_mask": mask}
        with tf.GradientTape() as tape:
            tape.watch(second)
            many = isinstance(loss, mikd.MUSE)
            if many and "student_mask" in masks:
                masks["student_mask"] = {"stage1": mask}
            values = loss(first, [second] if many else second, training=True, **masks)
        gradient = tape.gradient(values, second).numpy()
        assert np.isfinite(gradient).all()
        if level != "local_reverse":
            assert not gradient[~mask.numpy()].any()
        readouts = [float(metric.result()) for metric in loss.metrics]
        seen.append((values.numpy(), readouts))
    assert np.isfinite(seen[0][0]).all()
    assert seen[0][0][3] == 0.0  # An example without a token.
    for values, readouts in seen[1:]:
        np.testing.assert_array_equal(values, seen[0][0])
        assert readouts == seen[0][1]


@pytest.mark.parametrize("name", LOSSES)
def test_a_mask_without_padding_gives_what_no_mask_gives(name):
    teacher, student = _tokens(4), _tokens(4, seed=1)
    loss = _made(LOSSES[name](), teacher, student)
    np.testing.assert_allclose(
        _value(loss, teacher, student, WHOLE, WHOLE), _value(loss, teacher, student), rtol=1e-5
    )


def _averaged(x, cells):
    """Adaptive averages along a sequence `(tokens, channels)`."""
    size = len(x)
    return [x[i * size // cells : -(-(i + 1) * size // cells)].mean(0) for i in range(cells)]


@MASKS
def test_sequences_of_other_lengths_are_averaged_to_the_shorter_one(mask):
    teacher, student = _tokens(4, 9), _tokens(3, seed=1)
    loss = _made(mikd.Hint(), teacher, student)
    kernel, bias = np.array(loss.regressor.kernel), np.array(loss.regressor.bias)
    lengths = [7, 9, 2, 5, 0] if mask is not None else [9] * BATCH
    real = np.arange(9)[None] < np.array(lengths)[:, None]
    own = WHOLE if mask is None else mask
    expected = []
    for i in range(BATCH):
        cells = min(real[i].sum(), own[i].sum())
        pairs = _averaged(teacher[i][real[i]], cells), _averaged(student[i][own[i]], cells)
        errors = [np.square(t - s @ kernel - bias).mean() for t, s in zip(*pairs, strict=True)]
        expected.append(np.mean(errors) if errors else 0.0)
    masks = (None, None) if mask is None else (real, mask)
    value = _value(loss, teacher, student, *masks)
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    if mask is not None:
        longer = [_longer(x, 20, np.nan) for x in (teacher, student)]
        masks = [_longer(x, 20, False) for x in masks]
        again = _made(mikd.Hint(), *longer)
        np.testing.assert_array_equal(_value(again, *longer, *masks), value)


def test_two_masks_hold_for_both():
    teacher, student = _tokens(4), _tokens(3, seed=1)
    loss = _made(mikd.Hint(), teacher, student)
    other = np.flip(MASK, axis=1)
    both = _value(loss, teacher, student, MASK, other)
    np.testing.assert_array_equal(both, _value(loss, teacher, student, None, MASK & other))
    assert np.any(both != _value(loss, teacher, student, MASK))


@pytest.mark.parametrize("keep", ["value", "gradient"])
def test_xla_gives_what_plain_tensorflow_gives(keep):
    teacher, student = tf.constant(_tokens(4)), tf.constant(_tokens(3, seed=1))
    loss = _made(_jsd(bounds.donsker_varadhan, "concat", "all"), teacher, student)

    def both(student):
        with tf.GradientTape() as tape:
            tape.watch(student)
            value = loss(teacher, student, student_mask=tf.constant(MASK), training=False)
        return {"value": value, "gradient": tape.gradient(value, student)}[keep]

    by_xla = tf.function(both, jit_compile=True)(student)
    np.testing.assert_allclose(by_xla, both(student), rtol=1e-4, atol=1e-5)


def _text_model(width, seed, mask_zero=True):
    keras.utils.set_random_seed(seed)
    ids = keras.Input((TOKENS,), dtype="int32")
    x = keras.layers.Embedding(9, width, mask_zero=mask_zero, name="embed")(ids)
    x = keras.layers.Dense(width, activation="tanh", name="block1")(x)
    pooled = keras.layers.GlobalAveragePooling1D(name="gap")(x)
    return keras.Model(ids, keras.layers.Dense(3)(pooled))


def _texts(examples=12):
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 9, size=(examples, TOKENS)).astype("int32")
    ids[np.arange(TOKENS)[None] >= rng.integers(1, TOKENS + 1, size=examples)[:, None]] = 0
    return ids, rng.integers(3, size=examples)


def _compiled(distiller):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss, run_eagerly=True)
    return distiller


def _distiller():
    losses = [
        mikd.GaussianVIDHead(
            teacher_layer="block1", student_layer="block1", initial_variance="auto", name="vid"
        ),
        mikd.JSDCritic(teacher_layer="gap", student_layer="block1", name="local"),
    ]
    return _compiled(mikd.Distiller(_text_model(6, 1), _text_model(4, 2), losses))


def test_a_cache_keeps_masks_and_a_file_goes_on(tmp_path):
    """Training from a cache, and from a file in between, gives the weights of plain training."""
    ids, labels = _texts()
    plain, cached = _distiller(), _distiller()
    cache = mikd.TeacherCache(
        cached.teacher, ids, labels, places=["block1", "gap"], folder=tmp_path / "cache"
    ).build(verbose=0)
    batches = cache.batches(6, shuffle=False)
    plain.fit(ids, labels, batch_size=6, epochs=2, shuffle=False, verbose=0)
    cached.fit(batches, shuffle=False, verbose=0)
    cached.save(tmp_path / "distiller.keras")
    cached = keras.saving.load_model(tmp_path / "distiller.keras")
    cached.fit(batches, shuffle=False, verbose=0)
    for a, b in zip(plain.trainable_variables, cached.trainable_variables, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6, err_msg=a.path)


def test_more_padding_in_the_data_changes_no_term():
    """Through two networks and the step: the tokens of Keras' own masks."""
    ids, labels = _texts()
    seen = []
    for tokens in (TOKENS, TOKENS + 5):
        keras.utils.set_random_seed(0)
        distiller = _distiller()
        if tokens > TOKENS:
            ids = _longer(ids, tokens - TOKENS, 0)
        networks = [
            keras.Model(inputs := keras.Input((tokens,), dtype="int32"), _again(model, inputs))
            for model in (distiller.teacher, distiller.student)
        ]
        losses = [
            type(loss).from_config(loss.get_config()) for loss in distiller.distillation_losses
        ]
        distiller = _compiled(mikd.Distiller(*networks, losses))
        seen.append(distiller.fit(ids, labels, batch_size=12, shuffle=False, verbose=0).history)
    assert seen[0].keys() == seen[1].keys()
    for name in seen[0]:
        np.testing.assert_allclose(seen[0][name], seen[1][name], rtol=1e-5, err_msg=name)


def _again(model, x):
    for layer in model.layers[1:]:
        x = layer(x)
    return x


def _with_padding_mask(width, seed, tokens=TOKENS):
    """As KerasHub builds it: the mask is an input, and Keras knows of none."""
    keras.utils.set_random_seed(seed)
    inputs = {
        "token_ids": keras.Input((tokens,), dtype="int32", name="token_ids"),
        "padding_mask": keras.Input((tokens,), dtype="int32", name="padding_mask"),
    }
    x = keras.layers.Embedding(9, width)(inputs["token_ids"])
    x = keras.layers.Dense(width, name="block1")(x)
    return keras.Model(inputs, keras.layers.Dense(3, name="head")(x[:, 0]))


def test_the_input_padding_mask_is_the_mask_of_as_many_tokens():
    ids, labels = _texts()
    x = {"token_ids": ids, "padding_mask": (ids > 0).astype("int32")}
    teacher, student = _with_padding_mask(4, 1), _with_padding_mask(4, 2)
    loss = mikd.Hint(teacher_layer="block1", student_layer="block1", name="hint")
    distiller = _compiled(mikd.Distiller(teacher, student, [loss]))
    seen = distiller.evaluate(x, labels, verbose=0, return_dict=True)
    taps = (mikd.FeatureTaps(model, ["block1"])(x, False) for model in (teacher, student))
    first, second = (each["block1"].numpy() for each in taps)
    error = np.square(first - second @ np.array(loss.regressor.kernel)).mean(-1)
    assert seen["hint"] == pytest.approx(_mean(error, ids > 0).mean(), rel=1e-5)


@keras.saving.register_keras_serializable("tokens_test")
def _features(model, x, training):
    tokens = model.embedding(x)
    return {"tokens": tokens, "real": x > 0, "output": model.head(tokens[:, 0])}


class _Subclassed(keras.Model):
    def __init__(self, width, mask_zero=False):
        super().__init__()
        self.embedding = keras.layers.Embedding(9, width, mask_zero=mask_zero)
        self.head = keras.layers.Dense(3)

    def call(self, x):
        return self.head(self.embedding(x)[:, 0])


def test_a_place_can_be_the_mask():
    ids, labels = _texts()
    teacher, student = _text_model(4, 1, mask_zero=False), _Subclassed(3)
    student(ids)
    loss = mikd.Hint(
        teacher_layer="embed", student_layer="tokens", student_mask_layer="real", name="hint"
    )
    assert mikd.Hint.from_config(loss.get_config()).student_mask_layer == "real"
    distiller = mikd.Distiller(teacher, student, [loss], student_features=_features)
    seen = _compiled(distiller).evaluate(ids, labels, verbose=0, return_dict=True)
    first, second = teacher.get_layer("embed")(ids).numpy(), student.embedding(ids).numpy()
    error = np.square(first - second @ np.array(loss.regressor.kernel)).mean(-1)
    assert seen["hint"] == pytest.approx(_mean(error, ids > 0).mean(), rel=1e-5)


def test_a_features_function_may_return_what_keras_has_masked():
    ids, _ = _texts()
    network = _Subclassed(3, mask_zero=True)
    network(ids)

    def features(model, x, training):
        tokens = model.embedding(x)
        return {"tokens": tokens, "output": model.head(tokens[:, 0])}

    taps = mikd.FeatureTaps(
        network, ["tokens"], features=features, inputs=keras.Input((TOKENS,), dtype="int32")
    )
    assert taps.specs[mask_of("tokens")].shape == (None, TOKENS)
    np.testing.assert_array_equal(taps(ids, False)[mask_of("tokens")], ids > 0)


class _NoMasks(mikd.DistillationLoss):
    def call(self, teacher, student, labels=None, training=None):
        return keras.ops.mean(teacher, axis=(1, 2)) - keras.ops.mean(student, axis=(1, 2))


def _half_squared(joint, product):
    return keras.ops.mean(joint, axis=1) - keras.ops.mean(keras.ops.square(product), axis=(1, 2))


@pytest.mark.parametrize(
    "make",
    [
        _NoMasks,
        lambda **kwargs: mikd.JSDCritic(bound=_half_squared, **kwargs),
        lambda **kwargs: mikd.GaussianVIDHead(variant="wgan", **kwargs),
        lambda **kwargs: mikd.KerasLossAdapter(
            keras.distillation.FeatureDistillation(loss="mse"), **kwargs
        ),
    ],
)
def test_a_loss_that_knows_no_masks_is_refused_where_tokens_are_padded(make):
    loss = make(teacher_layer="block1", student_layer="block1")
    with pytest.raises(
        ValueError, match=r"leaves padded tokens out.*\(None, 6, 6\) and \(None, 6, 4\).*docs/"
    ):
        mikd.Distiller(_text_model(6, 1), _text_model(4, 2), [loss])


def test_masks_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"mask.shape=\(2, 3, 4\), product.shape=\(2, 3, 4\)"):
        bounds.jsd(np.ones((2, 4)), np.ones((2, 3, 4)), mask=np.ones((2, 3, 4), bool))
    loss = mikd.Hint(teacher_layer="block1", student_layer="block1", student_mask_layer="gap")
    with pytest.raises(
        ValueError, match=r"as many tokens.*\(None, 6, 4\).*mask of shape \(None, 4\)"
    ):
        mikd.Distiller(_text_model(6, 1), _text_model(4, 2), [loss])
    loss = mikd.Hint(teacher_layer="gap", student_layer="gap", student_mask_layer="block1")
    with pytest.raises(ValueError, match=r"beside its mask. Received: student_layer='gap'"):
        mikd.Distiller(_text_model(6, 1), _text_model(4, 2), [loss])
    with pytest.raises(ValueError, match="Received: teacher_mask_layer=3"):
        mikd.Hint(teacher_mask_layer=3)


@pytest.mark.parametrize(
    ("make", "shapes", "message"),
    [
        (mikd.Hint, ((None, 3, 3), (None, 4, 4, 3)), r"4 x 4.*\(None, 3, 3\).*\(None, 4, 4, 3\)"),
        (
            mikd.Hint,
            ((None, 35, 3), (None, 4, 4, 3)),
            r"4 or 5 class and register tokens. Received: .*\(None, 35, 3",
        ),
        (
            mikd.Hint,
            ((None, None, 3), (None, 4, 3)),
            r"numbers of them that are known.*\(None, 4, 3",
        ),
        (mikd.Hint, ((None, 6, 3), (None, 3)), r"\(None, 6, 3\), student_shape=\(None, 3\)"),
        (mikd.SoftTargets, ((None, 6, 3), (None, 5, 3)), r"same positions.*\(None, 6, 3\).*5, 3\)"),
        (mikd.AttentionTransfer, ((None, 1, 3), (None, 5, 3)), r"more than one position"),
        (
            lambda: mikd.Hint(regressor="repdistiller"),
            ((None, 6, 3), (None, 6, 3)),
            r"a feature map.*\(None, 6, 3\)",
        ),
        (
            lambda: mikd.BeYourOwnTeacher(student_layer=["a"]),
            ([(None, 6, 3), (None, 4)], [(None, 6, 3)]),
            r"list of feature maps.*\(None, 6, 3\)",
        ),
    ],
)
def test_sequences_that_do_not_fit_are_refused(make, shapes, message):
    with pytest.raises(ValueError, match=message):
        make().build(*shapes)


def _image_tokens(size, patch, special, width):
    """The tokens of a vision transformer: patches after class and register tokens."""
    inputs = keras.Input((*size, 2))
    x = keras.layers.Conv2D(width, patch, strides=patch)(inputs)
    x = keras.layers.Reshape((-1, width))(x)
    x = keras.layers.ZeroPadding1D((special, 0), name="tokens")(x)
    return keras.Model(inputs, keras.layers.Dense(3)(x[:, 0]))


@pytest.mark.parametrize(("patch", "special"), [(4, 2), (2, 1)])
def test_tokens_of_images_are_grids_where_their_numbers_differ(patch, special, tmp_path):
    """Images of 8 x 16: 32 patches and a class token; 8 and two tokens, or as many."""
    teacher, student = _image_tokens((8, 16), 2, 1, 4), _image_tokens((8, 16), patch, special, 3)
    loss = mikd.Hint(teacher_layer="tokens", student_layer="tokens", name="hint")
    distiller = _compiled(mikd.Distiller(teacher, student, [loss]))
    x = np.random.default_rng(0).normal(size=(4, 8, 16, 2)).astype("float32")
    labels = np.arange(4) % 3
    first, second = (
        mikd.FeatureTaps(model, ["tokens"])(x, False)["tokens"].numpy()
        for model in (teacher, student)
    )
    if patch == 4:
        first = first[:, 1:].reshape(4, 2, 2, 4, 2, 4).mean(axis=(2, 4)).reshape(4, 8, 4)
        second = second[:, -8:]
    expected = np.square(first - second @ np.array(loss.regressor.kernel)).mean()
    distiller.save(tmp_path / "distiller.keras")
    for each in (distiller, keras.saving.load_model(tmp_path / "distiller.keras")):
        seen = each.evaluate(x, labels, verbose=0, return_dict=True)
        assert seen["hint"] == pytest.approx(expected, rel=1e-4)


def test_tokens_of_images_that_form_no_grid_are_refused():
    teacher, student = _image_tokens((8, 16), 2, 1, 4), _image_tokens((8, 16), 4, 9, 3)
    loss = mikd.Hint(teacher_layer="tokens", student_layer="tokens")
    with pytest.raises(
        ValueError, match=r"student's tokens .* 8 x 16, that of the images.*33, 4\).*17, 3\)"
    ):
        mikd.Distiller(teacher, student, [loss])


def _tagger(seed=0):
    """Logits of every token, with Keras' own mask of padding."""
    keras.utils.set_random_seed(seed)
    ids = keras.Input((TOKENS,), dtype="int32")
    x = keras.layers.Embedding(9, 4, mask_zero=True)(ids)
    return keras.Model(ids, keras.layers.Dense(3)(keras.layers.Dense(4, activation="relu")(x)))


def _trained_as(kind, student):
    """What trains a student on its task alone."""
    nothing = [mikd.SoftTargets(weight=0.0)]
    if kind == "offline":
        return mikd.Distiller(_tagger(5), student, nothing)
    if kind == "mutual":
        return mikd.MutualDistiller([student, _tagger(5)], nothing)
    return mikd.SelfDistiller(student, []) if kind == "self" else student


@pytest.mark.parametrize("kind", ["offline", "self", "mutual"])
def test_labels_of_padding_count_on_no_replica(two_replicas, kind):
    """As in plain Keras, with an incomplete last batch, whose size no graph knows."""
    ids, _ = _texts(20)
    labels = np.random.default_rng(1).integers(3, size=ids.shape)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    seen = {}
    for name in ("keras", kind):
        with two_replicas.scope():
            student = _tagger()
            model = _trained_as(name, student)
            model.compile(keras.optimizers.SGD(0.5), loss, metrics=["accuracy"])
        model.fit(ids, labels, batch_size=8, shuffle=False, verbose=0)
        found = model.evaluate(ids, labels, batch_size=8, verbose=0, return_dict=True)
        accuracy = found["peer1_accuracy" if name == "mutual" else "accuracy"]
        seen[name] = [*student.get_weights(), accuracy]
    for plain, own in zip(seen["keras"], seen[kind], strict=True):
        np.testing.assert_allclose(own, plain, rtol=1e-5, atol=1e-6)
