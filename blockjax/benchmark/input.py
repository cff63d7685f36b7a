"""How many images a core decodes and crops in a second, and what worker processes add."""

import tempfile
import time
from pathlib import Path

import numpy as np

from blockjax.benchmark.photos import made_jpegs
from blockjax.data import turbo
from blockjax.data.augment import decode_and_crop
from blockjax.data.decode import decode
from blockjax.data.iterator import cpu_count
from blockjax.data.sources.folder import open_folder
from blockjax.data.train import train_batches
from blockjax.report.table import render_table

SIDE, BATCH = 224, 32
CROPS = {"crop_scale": (0.2, 1.0), "shift": 0, "flip": True}


def input_path(rounds: int, count: int = 256, *, height: int = 375, width: int = 500) -> None:
    """Prints images per core-second by Pillow alone and with the extra turbo, in turns, and per second by workers.

    Args:
      rounds: how often each is timed; medians are printed.
      count: how many files, `photos.made_jpegs`.
      height: of the files, in pixels.
      width: of the files, in pixels.
    """
    files = list(made_jpegs(count, height, width))
    title = f"JPEGs of {width} x {height} and {np.mean([len(file) for file in files]) / 1e3:.0f} kB"
    with tempfile.TemporaryDirectory() as folder:
        for i, file in enumerate(files):
            (Path(folder) / f"{i:05}.jpg").write_bytes(file)
        source = open_folder(Path(folder), "train")
        make = _training(source, 0).batches

        def crop(i):
            return decode_and_crop(files[i], SIDE, np.random.default_rng(i), **CROPS)

        parts = {
            "decode": (lambda i: decode(files[i]), range(count)),
            f"decode, crop, resize to {SIDE}": (crop, range(count)),
            "whole path: read, crop, batch": (make, range(0, count - BATCH + 1, BATCH)),
        }
        rows = []
        for part, (function, places) in parts.items():
            rates = _in_turns(function, places, len(places) * places.step, rounds)
            rows += [
                [part, way, round(rate), rate / rates["Pillow"]] for way, rate in rates.items()
            ]
        render_table(
            f"{title}, one process", ["part", "by", "images / core-second", "/ Pillow"], rows
        )
        rates = {
            workers: _rate(source, workers, rounds)
            for workers in (0, 1, 2, 4, 8)
            if workers <= cpu_count()
        }
    render_table(
        f"{title}, whole path, {cpu_count()} cores",
        ["data.workers", "images / second", "/ 0"],
        [[str(workers), round(rate), rate / rates[0]] for workers, rate in rates.items()],
    )


def _training(source, workers):
    return train_batches(
        source, batch_size=BATCH, image_size=SIDE, seed=0, workers=workers, **CROPS
    )


def _in_turns(function, places, images, rounds):
    """Returns images per second of CPU time: the median of each way."""
    ways = {"Pillow": False} | ({"turbo": True} if turbo.INSTALLED else {})
    seconds = {way: [] for way in ways}
    for turn in range(rounds + 1):
        for way, turbo.INSTALLED in ways.items():  # the last is what is installed
            start = time.process_time()
            for place in places:
                function(place)
            if turn:  # the first warms up
                seconds[way].append(time.process_time() - start)
    return {way: images / float(np.median(values)) for way, values in seconds.items()}


def _rate(source, workers, rounds):
    """Returns images per second, from when every worker has started."""
    iterator = _training(source, workers)
    try:
        for _ in range(4 * max(1, workers)):
            next(iterator)
        start, batches = time.perf_counter(), 16 * max(1, workers) * rounds
        for _ in range(batches):
            next(iterator)
        return batches * BATCH / (time.perf_counter() - start)
    finally:
        iterator.close()
