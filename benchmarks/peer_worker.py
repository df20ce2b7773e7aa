"""Runs ONNX models in one inference engine, in that engine's own Python, as peers.py asks line by line.

It imports nothing of this project: `python peer_worker.py NAME THREADS`, NAME one of ENGINES.
"""

import json
import os
import sys
import time
from importlib import metadata
from pathlib import Path


def deepsparse(path, x, threads):
    from deepsparse import Engine

    engine = Engine(model=path, batch_size=x.shape[0], num_cores=threads)
    return lambda: engine.run([x], val_inp=False)[0]


def openvino(path, x, threads, precision="f32", quantize=False):
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    if quantize:
        import nncf

        model = nncf.quantize(model, nncf.Dataset([x] * 4), subset_size=4)
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
    }
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    tensor = openvino.Tensor(x)
    return lambda: request.infer([tensor], share_inputs=True, share_outputs=True)[0]


def openvino_bfloat16(path, x, threads):
    return openvino(path, x, threads, "bf16")


def openvino_int8(path, x, threads):
    return openvino(path, x, threads, quantize=True)


ENGINES = {
    "deepsparse": deepsparse,
    "openvino": openvino,
    "openvino-bfloat16": openvino_bfloat16,
    "openvino-int8": openvino_int8,
}


NEEDS = {
    "deepsparse": ("deepsparse",),
    "openvino": ("openvino",),
    "openvino-bfloat16": ("openvino",),
    "openvino-int8": ("openvino", "nncf"),
}


def versions(name):
    """Of the packages of an engine, which are imported; raises what their import raises."""
    for package in NEEDS[name]:
        __import__(package)
    return {package: metadata.version(package) for package in NEEDS[name]}


def waited():
    """Seconds that this process' threads have waited on a run queue (0 where the kernel does not tell)."""
    total = 0
    for stat in Path("/proc/self/task").glob("*/schedstat"):
        try:
            total += int(stat.read_text().split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue  # the thread has ended
    return total * 1e-9


def load(name, threads, model, x, y):
    """The engine's call of the ONNX file `model` on the array in `x`, whose result goes to `y` once."""
    import numpy

    call = ENGINES[name](model, numpy.load(x), threads)
    numpy.save(y, numpy.asarray(call()))
    return call


def run(call, repeats, first):
    for _ in range(first):
        call()
    before, begin = waited(), time.perf_counter()
    for _ in range(repeats):
        call()
    return [time.perf_counter() - begin, waited() - before]


def serve(name, threads, requests, replies):
    call = None
    for line in requests:
        request = json.loads(line)
        try:
            if "versions" in request:
                reply = [versions(name)]
            elif "repeats" in request:
                reply = run(call, request["repeats"], request["first"])
            else:
                call = load(name, threads, **request)
                reply = True
        except Exception as error:  # whatever the engine raises, the other side names
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # engines print to standard output
    serve(sys.argv[1], int(sys.argv[2]), sys.stdin, answers)
