import keras
import pytest

from keras_mikd.checkpoints.student_checkpoint import StudentCheckpoint
from keras_mikd.distribution.worker_callbacks import without_writers


def test_what_writes_files_is_left_out_and_the_rest_stays(tmp_path):
    own, stopping = keras.callbacks.Callback(), keras.callbacks.EarlyStopping("loss")
    writers = [
        keras.callbacks.TensorBoard(tmp_path),
        keras.callbacks.ModelCheckpoint(tmp_path / "model.keras"),
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
        StudentCheckpoint(tmp_path / "student.keras"),
    ]
    assert without_writers([own, *writers, stopping]) == [own, stopping]
    together = keras.callbacks.CallbackList([own, *writers, stopping])
    assert without_writers(together) == [own, stopping]


@pytest.mark.parametrize("nothing", [None, []])
def test_no_callbacks(nothing):
    assert without_writers(nothing) == []


def test_a_backup_is_restored_and_neither_written_nor_deleted(tmp_path):
    def model():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        return model

    chief = model()
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    backup.set_model(chief)
    backup.on_epoch_end(0)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "backup").iterdir()}
    (restore,) = without_writers(backup)
    worker = model()
    restore.set_model(worker)
    restore.on_train_begin()
    for a, b in zip(chief.get_weights(), worker.get_weights(), strict=True):
        assert (a == b).all()
    restore.on_epoch_end(1)
    restore.on_train_end()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "backup").iterdir()} == before
