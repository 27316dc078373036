import pytest

from keras_mikd.losses.parts.shape_checks import check_pair


def test_two_vectors_and_two_maps_pass():
    check_pair((None, 3), (None, 4))
    check_pair((None, 8, 8, 3), (None, 4, 4, 5))


@pytest.mark.parametrize(
    ("teacher", "student", "ranks", "message"),
    [
        ((None, 3), (None, 8, 8, 3), (2, 4), r"two vectors .* or two feature maps .*'pooled'"),
        ((None, 8, 8, 3), (None, 8, 8, 3), (2,), r"two vectors \(batch, channels\)\. Received"),
        ((None, 3), (None, 3), (4,), "two feature maps"),
        ((None, 5, 3), (None, 5, 3), (2, 4), r"teacher_shape=\(None, 5, 3\)"),
        ((None, None), (None, 3), (2, 4), "last axis of both tensors to be known"),
        ([(None, 3), (None, 4)], (None, 3), (2, 4), "one place, not a list"),
        ((None, 3), [(None, 3)], (2, 4), "one place, not a list"),
    ],
)
def test_everything_else_is_refused(teacher, student, ranks, message):
    with pytest.raises(ValueError, match=message):
        check_pair(teacher, student, ranks=ranks)
