"""Figures of teachers and students: curves, confusion matrix, t-SNE, CMI trajectory, Eigen-CAM.

Every function that draws returns a `matplotlib.figure.Figure` that belongs to the caller alone.
Pyplot is not used, no backend is chosen, and nothing has to be closed. `save_png` and
`log_to_tensorboard` store a figure. Needs `pip install "keras_mikd[figures]"`.
"""

from keras_mikd.figures.cmi_trajectory import cmi_trajectory
from keras_mikd.figures.confusion_matrix import confusion_matrix
from keras_mikd.figures.eigen_cam import eigen_cam
from keras_mikd.figures.eigen_cam_grid import eigen_cam_grid
from keras_mikd.figures.export_sizes import export_sizes
from keras_mikd.figures.figure_output import log_to_tensorboard, save_png
from keras_mikd.figures.learning_curves import learning_curves
from keras_mikd.figures.logits_tsne import logits_tsne

__all__ = [
    "cmi_trajectory",
    "confusion_matrix",
    "eigen_cam",
    "eigen_cam_grid",
    "export_sizes",
    "log_to_tensorboard",
    "save_png",
    "learning_curves",
    "logits_tsne",
]
