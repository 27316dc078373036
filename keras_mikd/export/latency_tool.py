"""LiteRT's benchmark with inputs that every network takes; run as a script, in its own process.

The benchmark feeds integers from -128 to 127, and has no option for others: an embedding fails on
ids that it does not have. Nor does it know int16, or run a file whose last operator reshapes: that
one is timed by the interpreter. This imports nothing of the package, which would take longer than
the benchmark.
"""

import argparse
import json
import math
import time

_BYTES = {"int16": 2, "uint16": 2, "int32": 4, "uint32": 4, "int64": 8, "uint64": 8}
_NO_BUFFER = "Failed to register output tensor buffer"


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
    try:
        benchmark.main()
    except RuntimeError as error:
        if _NO_BUFFER not in str(error):
            raise
        time_interpreter()


def time_interpreter():
    """Times the calls of the interpreter, with the benchmark's options, and writes its file."""
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    parser = argparse.ArgumentParser()
    for name in ("model", "result_json"):
        parser.add_argument(f"--{name}")
    for name in ("num_threads", "num_runs", "warmup_runs"):
        parser.add_argument(f"--{name}", type=int)
    options = parser.parse_args()
    interpreter = Interpreter(model_path=options.model, num_threads=options.num_threads)
    interpreter.allocate_tensors()
    random = np.random.default_rng(0)
    for detail in interpreter.get_input_details():
        kind = np.dtype(detail["dtype"])
        value = random.uniform(-1, 1, detail["shape"]) if kind.kind == "f" else 0
        if kind.name in ("int8", "uint8"):
            value = random.integers(0, 128, detail["shape"])
        interpreter.set_tensor(
            detail["index"], np.broadcast_to(value, detail["shape"]).astype(kind)
        )
    taken = []
    for _ in range(options.warmup_runs + options.num_runs):
        start = time.perf_counter()
        interpreter.invoke()
        taken.append(1000 * (time.perf_counter() - start))
    taken = taken[options.warmup_runs :]
    found = {"median_ms": float(np.median(taken)), "p95_ms": float(np.quantile(taken, 0.95))}
    with open(options.result_json, "w") as file:
        json.dump({"latency": found}, file)


if __name__ == "__main__":
    main()
