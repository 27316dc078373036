"""LiteRT's benchmark with inputs that every network takes; run as a script, in its own process.

The benchmark feeds integers from -128 to 127, and has no option for others: an embedding fails on
ids that it does not have. Nor does it know int16. This imports nothing of the package, which
would take longer than the benchmark.
"""

import math

_BYTES = {"int16": 2, "uint16": 2, "int32": 4, "uint32": 4, "int64": 8, "uint64": 8}


def main():
    """Runs the benchmark with the options of the command line."""
    import numpy as np
    from ai_edge_litert.tools import benchmark_litert_model as benchmark

    random = getattr(benchmark, "fill_random_input", None)

    def fill(buffer, details):
        size = _BYTES.get(details.get("dtype"))
        if size is None:
            random(buffer, details)
        else:
            # The first id, which every vocabulary has. As bytes, since `write` knows no int16.
            buffer.write(np.zeros(size * math.prod(details["shape"]), np.int8))

    # A version without this function fails as the benchmark alone, which is then explained.
    if random is not None:
        benchmark.fill_random_input = fill
    benchmark.main()


if __name__ == "__main__":
    main()
