"""Trains with compiled critics for one epoch and then for two more.

No test by itself: compiled_critics_test.py starts it with XLA told to write down what it compiles.

    XLA_FLAGS=--xla_dump_to=<folder> python tests/critic_compilations.py <folder> <case>
"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import cases
import keras


def main(folder, case):
    distiller = cases.distiller_with(cases.LOSSES[case](), xla_critics=True)
    distiller.compile(keras.optimizers.SGD(0.05), cases.cross_entropy(), jit_compile=False)
    counts = []
    for epochs in (1, 2):
        # Two batches of 8 and a short one of 4.
        distiller.fit(*cases.data(20), batch_size=8, epochs=epochs, verbose=0)
        counts.append(len(list(Path(folder).glob("*.before_optimizations.txt"))))
    print(json.dumps(counts))


if __name__ == "__main__":
    main(*sys.argv[1:])
