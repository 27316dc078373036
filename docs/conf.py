"""Settings of the site; `make docs` builds it."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_extensions")]
# The cells of tutorials run in a process of their own, with the package of this tree.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras_mikd

project = "keras_mikd"
author = project_copyright = "the authors of keras_mikd"
version = release = keras_mikd.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "myst_nb",
    "api_pages",
]
exclude_patterns = ["_extensions"]

# Docstrings write code in single backticks.
default_role = "code"
add_module_names = False
autodoc_typehints = "none"
autodoc_preserve_defaults = True
# What is inherited of Keras is documented there.
autodoc_inherit_docstrings = False
# Errors and types of Python, NumPy and TensorFlow have no page here. Napoleon takes the words
# before a colon for a type.
nitpick_ignore_regex = [("py:exc", r".*"), ("py:class", r"(?!keras_mikd).*")]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

# A cell that fails ends the build. A page whose cells did not change is not run again.
nb_execution_mode = "cache"
nb_execution_cache_path = str(ROOT / "build" / "docs_cells")
nb_execution_raise_on_error = True
nb_execution_timeout = 900
# What a cell writes beside itself is no part of the docs.
nb_execution_in_temp = True
# TensorFlow writes there which accelerators are missing where the site is built.
nb_output_stderr = "remove"

html_theme = "furo"
html_title = "keras_mikd"
