"""The assembled distillers and recipes between transformers, and between them and CNNs."""

import warnings

import cases
import keras
import numpy as np
import pytest

import keras_mikd as mikd
from keras_mikd import models, recipes

SHAPE = (8, 8, 3)
IMAGES = np.random.default_rng(0).normal(size=(5, *SHAPE)).astype("float32")
LABELS = np.array([0, 1, 2, 1, 0])


def _vit(depth, **kwargs):
    sizes = {"patch_size": 2, "width": 8, "num_heads": 2}
    return models.vision_transformer(
        depth=depth, num_classes=3, input_shape=SHAPE, **sizes, **kwargs
    )


def _cnn():
    return models.digits_cnn(3, SHAPE, widths=(4, 6, 8))


def _hub():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("keras_hub", exc_type=ImportError).models


def _hub_vit(depth):
    hub, sizes = _hub(), {"num_heads": 2, "hidden_dim": 8, "mlp_dim": 16}
    backbone = hub.ViTBackbone(image_shape=SHAPE, patch_size=4, num_layers=depth, **sizes)
    return hub.ViTImageClassifier(backbone, num_classes=3)


def _bert(depth):
    hub, sizes = _hub(), {"num_heads": 2, "hidden_dim": 8, "intermediate_dim": 16}
    backbone = hub.BertBackbone(
        vocabulary_size=20, num_layers=depth, max_sequence_length=16, dropout=0.0, **sizes
    )
    return hub.BertTextClassifier(backbone, num_classes=3, dropout=0.0)


def _texts(length):
    """Texts of 4 to 6 tokens, padded to a length."""
    present = np.arange(length) < np.array([4, 5, 6, 5, 4])[:, None]
    tokens = np.random.default_rng(0).integers(1, 20, (5, length))
    tokens[:, :6] = np.random.default_rng(1).integers(1, 20, (5, 6))
    return {
        "token_ids": np.where(present, tokens, 0).astype("int32"),
        "padding_mask": present.astype("int32"),
        "segment_ids": np.zeros((5, length), "int32"),
    }


def _names(losses):
    return [loss.name for loss in losses]


def _fit(distiller, x=IMAGES, epochs=1, **kwargs):
    distiller.compile(keras.optimizers.Adam(0.01), cases.cross_entropy(), **kwargs)
    history = distiller.fit(x, LABELS, batch_size=3, epochs=epochs, shuffle=False, verbose=0)
    assert all(np.isfinite(values).all() for values in history.history.values())
    return history.history


def test_vid_from_a_deep_vit_to_a_shallow_one():
    distiller = mikd.VIDDistiller(_vit(3), _vit(2))
    names = _names(distiller.distillation_losses)
    assert names == ["vid_block2_to_block1", "vid_block3_to_block2"]
    history = _fit(distiller, epochs=4)  # The last batch is a short one.
    for name in names:
        assert history[name][-1] < history[name][0]


def test_mimkd_from_a_vit_to_a_cnn_and_back():
    to_cnn = mikd.MIMKDDistiller(_vit(3), _cnn())
    stages = [f"jsd_block{k}_to_stage{k}" for k in (1, 2, 3)]
    assert _names(to_cnn.distillation_losses) == ["jsd_global", "jsd_local", *stages]
    _fit(to_cnn, run_eagerly=True)
    to_vit = mikd.MIMKDDistiller(_cnn(), _vit(1, class_token=False))
    assert _names(to_vit.distillation_losses) == [
        "jsd_global",
        "jsd_local",
        "jsd_stage3_to_block1",
    ]
    local = to_vit.distillation_losses[1]
    assert (local.teacher_layer, local.student_layer) == ("pooled", "block1")
    _fit(to_vit, run_eagerly=True)


@pytest.mark.parametrize("recipe", ["hint", "attention_transfer", "info_nce"])
def test_other_recipes_between_a_cnn_and_a_vit(recipe):
    teacher, student = _cnn(), _vit(2)
    losses = getattr(recipes, recipe)(teacher, student)
    assert _names(losses)[-1].endswith("_stage3_to_block2")
    _fit(mikd.Distiller(teacher, student, losses), run_eagerly=True)


@pytest.mark.slow
def test_a_vit_teaches_itself():
    distiller = mikd.MUSEDistiller(_vit(5))
    (muse,) = distiller.distillation_losses
    assert muse.student_layer == [f"block{k}" for k in (1, 3, 4, 5)]
    _fit(distiller, run_eagerly=True)
    model = _vit(3)
    losses = recipes.vid(model, model)
    assert _names(losses) == ["vid_block3_to_block1", "vid_block3_to_block2"]
    _fit(mikd.SelfDistiller(model, losses), run_eagerly=True)


# KerasHub compiles its tasks when they are made, in a way that Keras does not save.
@pytest.mark.filterwarnings("ignore:.compile... was not called as part of model loading")
@pytest.mark.slow
def test_a_distiller_of_keras_hubs_vits_is_saved_and_goes_on(tmp_path):
    """Their blocks are in a layer that is opened; the file has the place and no layer."""
    distiller = mikd.VIDDistiller(_hub_vit(2), _hub_vit(1))
    _fit(distiller, run_eagerly=True)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    (head,) = loaded.distillation_losses
    assert (head.name, head.teacher_layer) == ("vid_block2_to_block1", "block2")
    for a, b in zip(loaded.variables, distiller.variables, strict=True):
        np.testing.assert_array_equal(a, b)
    for each in (distiller, loaded):
        each.run_eagerly = True
        each.fit(IMAGES, LABELS, batch_size=5, verbose=0)
    for a, b in zip(loaded.student.weights, distiller.student.weights, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_cache_holds_the_blocks_of_an_opened_encoder():
    teacher = _hub_vit(2)
    cache = mikd.TeacherCache(teacher, IMAGES, LABELS, ["block2", "pooled"], batch_size=5)
    cached = mikd.VIDDistiller(teacher, _vit(1))
    (name,) = _names(cached.distillation_losses)
    cached.compile("sgd", cases.cross_entropy(), run_eagerly=True)
    batches = cache.build(verbose=0).batches(5, shuffle=False)
    from_cache = cached.evaluate(batches, verbose=0, return_dict=True)
    computed = cached.evaluate(IMAGES, LABELS, verbose=0, return_dict=True)
    assert from_cache[name] == pytest.approx(computed[name], rel=1e-5)


@pytest.mark.slow
def test_two_replicas_read_the_blocks_of_an_opened_encoder(two_replicas):
    def update(strategy=None):
        keras.utils.set_random_seed(1)
        distiller = mikd.VIDDistiller(_hub_vit(2), _hub_vit(1))
        distiller.compile("sgd", cases.cross_entropy())
        distiller.fit(IMAGES[:4], LABELS[:4], batch_size=4, verbose=0)
        return distiller.student.get_weights()

    one = update()
    with two_replicas.scope():
        two = update()
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.slow
def test_more_padding_changes_no_loss_between_berts():
    teacher, student = _bert(2), _bert(1)
    distiller = mikd.VIDDistiller(teacher, student)
    assert _names(distiller.distillation_losses) == ["vid_block2_to_block1"]
    distiller.compile("sgd", cases.cross_entropy(), run_eagerly=True)
    short, long = (
        distiller.evaluate(_texts(length), LABELS, verbose=0, return_dict=True)
        for length in (6, 11)
    )
    assert {name: long[name] for name in short} == pytest.approx(short, abs=1e-5)
    _fit(mikd.MIMKDDistiller(teacher, student), _texts(8), run_eagerly=True)


@keras.saving.register_keras_serializable("transformer_distillers_test")
class _Subclassed(keras.Model):
    """A transformer without a graph."""

    def __init__(self, depth, **kwargs):
        super().__init__(**kwargs)
        self.embed = keras.layers.Dense(8)
        self.blocks = [keras.layers.MultiHeadAttention(2, 4) for _ in range(depth)]
        self.head = keras.layers.Dense(3)

    def call(self, x, training=False):
        return _features(self, x, training)["output"]


def _features(model, x, training):
    tokens, blocks = model.embed(keras.ops.reshape(x, (-1, 64, 3))), {}
    for number, block in enumerate(model.blocks, start=1):
        tokens = blocks[f"block{number}"] = tokens + block(tokens, tokens, training=training)
    return {"output": model.head(keras.ops.mean(tokens, axis=1)), **blocks}


def test_blocks_of_a_subclassed_teacher_come_from_a_function():
    """As docs/howto/places.md says."""
    teacher = _Subclassed(4)
    teacher(IMAGES)
    hint = mikd.Hint(teacher_layer="block4", student_layer="block2")
    with pytest.raises(ValueError, match="Expected a model with a graph.*pass `features`"):
        mikd.Distiller(teacher, _vit(2), [hint])
    hint = mikd.Hint(teacher_layer="block4", student_layer="block2")
    distiller = mikd.Distiller(teacher, _vit(2), [hint], teacher_features=_features)
    _fit(distiller, run_eagerly=True)
    with pytest.raises(ValueError, match="Expected a Functional model.*`features` function"):
        mikd.VIDDistiller(teacher, _vit(2))


def test_a_replica_without_texts_leaves_no_nan(two_replicas):
    """A row of padding alone has no mean; what stands in for an example must not be one."""
    texts = np.random.default_rng(0).integers(1, 9, size=(9, 6))
    labels = np.arange(9) % 3
    with two_replicas.scope():
        teacher, student = (
            models.text_transformer(
                depth=depth, num_classes=3, vocabulary_size=9, max_length=6, width=8
            )
            for depth in (2, 1)
        )
        distiller = mikd.Distiller(teacher, student, recipes.kd(teacher, student))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        distiller.compile(keras.optimizers.SGD(0.1), loss)
    distiller.fit(texts, labels, batch_size=8, shuffle=False, verbose=0)
    assert all(np.isfinite(weight.numpy()).all() for weight in student.weights)
