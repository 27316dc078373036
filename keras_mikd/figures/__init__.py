"""Figures of teachers and students: curves, confusion matrix, t-SNE, CMI trajectory, Eigen-CAM.

Every function that draws returns a `matplotlib.figure.Figure` that belongs to the caller alone.
Pyplot is not used, no backend is chosen, and nothing has to be closed. `save_png` and
`log_to_tensorboard` store a figure. Needs `pip install "keras_mikd[figures]"`.
"""

from keras_mikd.figures.cmi_trajectory import cmi_trajectory as cmi_trajectory
from keras_mikd.figures.confusion_matrix import confusion_matrix as confusion_matrix
from keras_mikd.figures.eigen_cam import eigen_cam as eigen_cam
from keras_mikd.figures.eigen_cam_grid import eigen_cam_grid as eigen_cam_grid
from keras_mikd.figures.export_sizes import export_sizes as export_sizes
from keras_mikd.figures.figure_output import log_to_tensorboard as log_to_tensorboard
from keras_mikd.figures.figure_output import save_png as save_png
from keras_mikd.figures.learning_curves import learning_curves as learning_curves
from keras_mikd.figures.logits_tsne import logits_tsne as logits_tsne
