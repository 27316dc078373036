"""Short texts that need no download: paragraphs of the docstrings of the installed scikit-learn.

No script by itself: `import docstrings` works where one of the experiments is started.

The class of a paragraph is the subpackage that it is in, one of `CLASSES`. Whole files are split,
so that no two splits have a file in common. A paragraph that is in more than one file is left out,
as scikit-learn repeats the descriptions of arguments. What is left may still resemble another one.
"""

import ast
import collections
import random
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import sklearn
import tensorflow as tf

CLASSES = (
    *("cluster", "datasets", "decomposition", "ensemble", "linear_model", "metrics"),
    *("model_selection", "preprocessing"),
)
_SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}
_FEWEST_WORDS = 8
# Of the training texts; rarer words are one token, and so is what fills a text up.
_FEWEST_OCCURRENCES = 3
_PADDING, _RARE, _FIRST_WORD = 0, 1, 2


class Texts(NamedTuple):
    """Pipelines of `(tokens, labels)`, int32 `(batch, max_length)` and `(batch,)`.

    Short texts end with tokens of 0. `train` is shuffled anew in every epoch, in full batches only.
    """

    train: tf.data.Dataset
    validation: tf.data.Dataset
    test: tf.data.Dataset
    vocabulary_size: int
    sizes: dict


def load(*, max_length, batch_size, labels_per_class=None, seed=0):
    """Returns the `Texts`; `seed` draws the training texts of each class, and their order.

    About 60 % of the paragraphs of each class are for training, 20 % for validation, 20 % for the
    test: its files, the longest first, go to the split that lacks most. No seed is in that.
    """
    texts = _by_split(_paragraphs())
    counts = collections.Counter(word for text, _ in texts["train"] for word in text)
    words = sorted(word for word, count in counts.items() if count >= _FEWEST_OCCURRENCES)
    numbers = {word: number for number, word in enumerate(words, _FIRST_WORD)}
    if labels_per_class:
        texts["train"] = _few(texts["train"], labels_per_class, seed)
    arrays = {split: _arrays(own, numbers, max_length) for split, own in texts.items()}
    sets = {split: tf.data.Dataset.from_tensor_slices(own) for split, own in arrays.items()}
    train = sets["train"].shuffle(len(texts["train"]), seed=seed)
    return Texts(
        train.batch(batch_size, drop_remainder=True).prefetch(1),
        sets["validation"].batch(256),
        sets["test"].batch(256),
        len(words) + _FIRST_WORD,
        {split: len(own) for split, own in texts.items()},
    )


def _paragraphs():
    """Returns `{class: {file: [words of a paragraph, ...]}}`."""
    root = Path(sklearn.__file__).parent
    found = {
        name: {
            path.relative_to(root).as_posix(): _paragraphs_of(path)
            for path in sorted((root / name).rglob("*.py"))
            if "tests" not in path.parts
        }
        for name in CLASSES
    }
    files = collections.Counter(
        words for own in found.values() for paragraphs in own.values() for words in set(paragraphs)
    )
    return {
        name: {file: [w for w in words if files[w] == 1] for file, words in own.items()}
        for name, own in found.items()
    }


def _paragraphs_of(path):
    """Returns the paragraphs of a file, once each, without those that hold code."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)]
    blocks = [b for node in nodes for b in re.split(r"\n\s*\n", ast.get_docstring(node) or "")]
    words = [tuple(re.findall(r"[a-z]+", block.lower())) for block in blocks if ">>>" not in block]
    return list(dict.fromkeys(w for w in words if len(w) >= _FEWEST_WORDS))


def _by_split(paragraphs):
    """Returns `{split: [(words, label), ...]}`."""
    texts = {split: [] for split in _SHARES}
    for label, name in enumerate(CLASSES):
        files = paragraphs[name]
        wanted = {s: share * sum(map(len, files.values())) for s, share in _SHARES.items()}
        for file in sorted(files, key=lambda file: (-len(files[file]), file)):
            split = max(wanted, key=wanted.get)
            texts[split] += [(words, label) for words in files[file]]
            wanted[split] -= len(files[file])
    return texts


def _few(texts, labels_per_class, seed):
    """Draws as many texts of every class."""
    draw, chosen = random.Random(seed), []
    for label in range(len(CLASSES)):
        own = [text for text in texts if text[1] == label]
        if len(own) < labels_per_class:
            raise SystemExit(
                f"Expected at most {len(own)} texts per class, as many as {CLASSES[label]} has. "
                f"Received: {labels_per_class}"
            )
        chosen += draw.sample(own, labels_per_class)
    return chosen


def _arrays(texts, numbers, max_length):
    tokens = np.full((len(texts), max_length), _PADDING, "int32")
    for row, (words, _) in zip(tokens, texts, strict=True):
        own = [numbers.get(word, _RARE) for word in words[:max_length]]
        row[: len(own)] = own
    return tokens, np.array([label for _, label in texts], "int32")
