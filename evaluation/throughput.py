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


def latency(function, calls=50, seconds=1):
    """Median time of a call of a function without arguments, in seconds.

    Ten calls are not counted, and `calls` are; fewer, but two at least, where those after the first would take longer than
    `seconds`.
    """
    function()
    times, start = [], time.perf_counter()
    while len(times) < 9 + calls and (len(times) < 3 or time.perf_counter() - start < seconds):
        before = time.perf_counter()
        function()
        times.append(time.perf_counter() - before)
    return float(np.median(times[min(9, len(times) // 2):]))
