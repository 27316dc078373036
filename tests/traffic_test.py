"""What replicas send one another in a step: the gradients of what is trained, and the logs."""

import cases
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mikd as mikd
from benchmarks import traffic

BATCH = 16


@pytest.fixture
def sent(two_replicas):
    """Fits a model for two steps: `(model, what the first replica sent, what the second did)`."""

    def fit(build):
        with two_replicas.scope():
            model = build()
            model.compile(keras.optimizers.SGD(0.05), cases.cross_entropy())
        batches = tf.data.Dataset.from_tensor_slices(cases.data(2 * BATCH))
        noted = traffic.Traffic(model)
        model.fit(batches.batch(BATCH, drop_remainder=True), shuffle=False, verbose=0)
        return model, *(rows for _, rows in sorted(noted.by_device().items()))

    return fit


def _sizes(variables):
    return sorted(int(np.prod(v.shape)) for v in variables)


def _reduced(rows):
    return [row for row in rows if row.kind == traffic.REDUCE]


def test_only_gradients_of_the_student_and_the_losses_are_reduced(two_replicas, sent):
    with two_replicas.scope():
        teacher = cases.network((7, 11), normalize=True)
        student = cases.student(normalize=True)
    model, first, second = sent(lambda: mikd.VIDDistiller(teacher, student))
    # One tensor, in which there is a gradient for every variable that is trained and nothing else.
    for (gradients,) in (_reduced(first), _reduced(second)):
        assert sorted(gradients.parts) == _sizes(model.trainable_variables)
        assert gradients.bytes == 4 * sum(gradients.parts)
    kernels = {size for size in _sizes(teacher.weights) if size > 100}
    assert kernels and not kernels & set(gradients.parts)
    # The step counter to the second replica; from there a scalar for each of the logs.
    assert [row.bytes for row in first if row.kind != traffic.REDUCE] == [8]
    logs = [row.bytes for row in second if row.kind != traffic.REDUCE]
    assert logs == [4] * len(model.history.history)


@pytest.mark.slow
def test_the_weights_of_a_teacher_that_is_trained_are_seen(sent):
    model, first, _ = sent(lambda: mikd.MCMITeacher(cases.teacher(), centroids="epoch"))
    (gradients,) = _reduced(first)
    assert sorted(gradients.parts) == _sizes(model.teacher.trainable_variables)


@pytest.mark.parametrize(
    ("gather", "bound"),
    [
        (True, mikd.bounds.info_nce),
        pytest.param(True, mikd.bounds.donsker_varadhan, marks=pytest.mark.slow),
        pytest.param(False, mikd.bounds.jsd, marks=pytest.mark.slow),
    ],
)
def test_global_negatives_are_sent_and_local_ones_are_not(sent, gather, bound):
    def build():
        critic = mikd.SeparableCritic(width=8)
        loss = mikd.JSDCritic(critic=critic, bound=bound, negatives="all", gather=gather)
        return cases.distiller_with(loss)

    model, first, second = sent(build)
    weights = sum(_sizes(model.trainable_variables))
    *others, gradients = _reduced(first)
    assert gradients.bytes == 4 * weights
    gathered = [row.bytes for row in first if row.kind == traffic.GATHER and row.bytes > 100]
    channels, local = 5, BATCH // 2
    if gather:
        # Features of the student, and for a bound that couples examples the scores with every
        # student of the batch; what comes back is the gradient of what was gathered.
        rows = [channels] if bound is mikd.bounds.info_nce else [channels, BATCH]
        assert gathered == [4 * local * row for row in rows]
        assert [row.bytes for row in others] == [4 * BATCH * row for row in reversed(rows)]
    else:
        assert gathered == [] and others == []
        assert max(row.bytes for row in [*first, *second] if row.kind == traffic.COPY) == 8


@pytest.mark.slow
@pytest.mark.parametrize("negatives", [1, 3])
def test_a_number_of_negatives_is_drawn_from_all_examples_which_are_sent_once(sent, negatives):
    def build():
        loss = mikd.JSDCritic(critic=mikd.SeparableCritic(width=8), negatives=negatives)
        return cases.distiller_with(loss)

    model, first, _ = sent(build)
    *others, gradients = _reduced(first)
    assert gradients.bytes == 4 * sum(_sizes(model.trainable_variables))
    channels, local = 5, BATCH // 2
    assert max(row.bytes for row in first if row.kind == traffic.GATHER) == 4 * local * channels
    # The gradient of what both replicas sent.
    assert [row.bytes for row in others] == [4 * BATCH * channels]


@pytest.mark.slow
@pytest.mark.parametrize("known", [True, False])
def test_batches_of_known_size_have_no_shapes_that_depend_on_values(two_replicas, known):
    """A TPU wants to know every shape; the masks for a short last batch do not let it."""
    with two_replicas.scope():
        model = mikd.MUSEDistiller(cases.student(), xla_critics=False)
        model.compile("sgd", cases.cross_entropy())
    noted = traffic.Traffic(model)
    batches = tf.data.Dataset.from_tensor_slices(cases.data(BATCH))
    model.fit(batches.batch(BATCH, drop_remainder=known), shuffle=False, verbose=0)
    kinds = {op.type for op in noted.graph.get_operations()}
    assert ("Where" in kinds) is not known


if __name__ == "__main__":
    pytest.main([__file__])
