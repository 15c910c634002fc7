"""How fast something is: images/s of a function, and the latency of a call. Without TensorFlow."""
import time

import numpy as np


def images_per_second(function, images, seconds):
    """Images/s of a function without arguments that handles `images` images a call, over at least `seconds`, after a first call."""
    function()
    start, calls = time.perf_counter(), 0
    while calls == 0 or time.perf_counter() - start < seconds:
        function()
        calls += 1
    return calls * images / (time.perf_counter() - start)


def latency(function, calls=50):
    """Median time of a call of a function without arguments, in seconds, after ten calls that are not counted."""
    times = []
    for _ in range(10 + calls):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return float(np.median(times[10:]))
