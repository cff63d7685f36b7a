import functools
import itertools
import json
import threading
import time

import jax
import numpy as np
import pytest
from absl import logging
from PIL import Image

from blockjax.data import train as train_lib
from blockjax.data.evaluation import evaluation_batches, evaluation_images
from blockjax.data.prefetch import DevicePrefetch
from blockjax.data.sources import open_source

PLAIN = dict(seed=3, flip=False, crop_scale=(1, 1), shift=0)
RICH = dict(seed=3, flip=True, crop_scale=(0.2, 1.0), shift=1)


def numbered_images(count, side):
    """Images that carry their number as red, and where a pixel was as green and blue."""
    images = np.zeros((count, side, side, 3), np.uint8)
    images[..., 0] = np.arange(count)[:, None, None]
    images[..., 1] = np.linspace(0, 255, side)[:, None]
    images[..., 2] = np.linspace(0, 255, side)
    return images


def arrays_source(path, count=30, side=8):
    """Numbered images, small enough to be kept in memory; each is a class of its own."""
    images, labels = numbered_images(count, side), np.arange(count)
    np.savez(path / "a.npz", train_images=images, train_labels=labels, test_images=images)
    np.savez(path / "unlabelled.npz", train_images=images, test_images=images)
    return open_source(f"arrays:{path}/a.npz", "train")


def folder_source(path, count=12, side=100):
    """The same as files, too large to be kept in memory."""
    for i, image in enumerate(numbered_images(count, side)):
        (path / "train" / f"{i:02}").mkdir(parents=True)
        Image.fromarray(image).save(path / "train" / f"{i:02}" / "image.png")
    (path / "test").mkdir()
    return open_source(f"folder:{path}", "train")


SOURCES = pytest.mark.parametrize(
    "make_source", [functools.partial(arrays_source, count=12), folder_source]
)


@pytest.fixture
def warnings(monkeypatch):
    lines = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: lines.append(text % args))
    return lines


@pytest.fixture
def train(request):
    """`train_batches`, closed at the end."""
    opened = []

    def make(source, **options):
        opened.append(train_lib.train_batches(source, **{"image_size": 8, **options}))
        return opened[-1]

    yield make
    for iterator in opened:
        iterator.close()


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def assert_same(batches, expected):
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected, strict=True):
        assert batch.keys() == other.keys()
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key])


@SOURCES
def test_batches(tmp_path, train, make_source):
    iterator = train(make_source(tmp_path), batch_size=5, **RICH)
    batch = next(iterator)
    assert batch["image"].shape == (5, 8, 8, 3) and batch["image"].dtype == np.uint8
    assert batch["label"].shape == (5,) and batch["label"].dtype == np.int32
    images = batch["image"][:, 4, 4, 0]
    np.testing.assert_array_equal(images, batch["label"])  # each image has its own label


def test_stretched_batches_keep_all_of_an_image_and_say_its_aspect(tmp_path, train):
    wide = Image.fromarray(numbered_images(1, 120)[0]).resize((120, 80))
    for name, picture, orientation in (("a", wide, 1), ("b", wide, 6), ("c", wide.rotate(90), 1)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        (tmp_path / "train" / name).mkdir(parents=True)
        picture.save(tmp_path / "train" / name / "image.png", exif=exif)
    (tmp_path / "test").mkdir()
    source = open_source(f"folder:{tmp_path}", "train")
    batch = next(train(source, batch_size=3, image_size=64, stretch=True, **PLAIN))
    assert batch["aspect"].dtype == np.float32 and batch["image"].shape == (3, 64, 64, 3)
    aspects = dict(zip(batch["label"].tolist(), batch["aspect"].tolist(), strict=True))
    assert aspects == {0: 1.5, 1: pytest.approx(2 / 3), 2: 1.5}
    image = batch["image"][batch["label"].tolist().index(0)]
    np.testing.assert_array_equal(image, wide.resize((64, 64), Image.Resampling.BILINEAR))
    # Small images of one shape are stretched too.
    small = arrays_source(tmp_path)
    batch = next(train(small, batch_size=3, image_size=16, stretch=True, **PLAIN))
    np.testing.assert_array_equal(batch["aspect"], np.ones(3))


def test_unlabelled_batches(tmp_path, train):
    arrays_source(tmp_path)
    source = open_source(f"arrays:{tmp_path}/unlabelled.npz", "train")
    assert next(train(source, batch_size=5, **PLAIN)).keys() == {"image"}


@SOURCES
def test_epochs_are_complete_and_differ(tmp_path, train, make_source):
    iterator = train(make_source(tmp_path), batch_size=5, **PLAIN)
    labels = np.concatenate([batch["label"] for batch in take(iterator, 12)])
    epochs = labels.reshape(5, 12)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(12), (5, 1)))
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 5


@SOURCES
def test_seed_decides(tmp_path, train, make_source):
    source = make_source(tmp_path)
    first = take(train(source, batch_size=4, **RICH), 4)
    assert_same(take(train(source, batch_size=4, **RICH), 4), first)
    other = take(train(source, batch_size=4, **(RICH | {"seed": 4})), 4)
    assert any(np.any(a["label"] != b["label"]) for a, b in zip(first, other, strict=True))


@SOURCES
def test_every_epoch_is_augmented_anew(tmp_path, train, make_source):
    source = make_source(tmp_path, count=1)
    images = [batch["image"][0] for batch in take(train(source, batch_size=1, **RICH), 4)]
    for image, other in itertools.combinations(images, 2):
        assert not np.array_equal(image, other)


@SOURCES
@pytest.mark.parametrize("parts", [[[0, 1, 2], [3, 4, 5]], [[0, 4], [1, 2], [3, 5]]])
def test_processes_share_the_batch(tmp_path, train, make_source, parts):
    source = make_source(tmp_path)
    alone = take(train(source, batch_size=6, **RICH), 5)
    # Each makes what one process makes in the same places, hence all of an epoch and nothing twice.
    for rows in parts:
        own = take(train(source, batch_size=6, rows=np.array(rows), **RICH), 5)
        assert_same(own, [{key: value[rows] for key, value in batch.items()} for batch in alone])


@SOURCES
@pytest.mark.parametrize("steps", [0, 1, 4])  # 12 examples: an epoch ends in the third batch
def test_resume_is_exact(tmp_path, train, make_source, steps):
    source = make_source(tmp_path)
    iterator = train(source, batch_size=5, **RICH)
    take(iterator, steps)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = take(iterator, 6)
    resumed = train(source, batch_size=5, **RICH)
    take(resumed, 2)
    resumed.set_state(state)
    assert resumed.get_state() == state
    assert_same(take(resumed, 6), expected)


def test_resume_with_another_batch_size_goes_on_in_the_order(tmp_path, train):
    source = arrays_source(tmp_path, count=12)
    iterator = train(source, batch_size=3, **PLAIN)
    take(iterator, 2)
    resumed = train(source, batch_size=6, **PLAIN)
    resumed.set_state(iterator.get_state())
    expected = np.concatenate([batch["label"] for batch in take(iterator, 2)])
    np.testing.assert_array_equal(next(resumed)["label"], expected)


def test_resume_refuses_another_order(tmp_path, train):
    source = arrays_source(tmp_path, count=12)
    state = train(source, batch_size=3, **PLAIN).get_state()
    with pytest.raises(
        ValueError, match=r"seed was 3 when it was saved and is 4 now.*config\.seed"
    ):
        train(source, batch_size=3, **(PLAIN | {"seed": 4})).set_state(state)
    with pytest.raises(ValueError, match=r"images was 11 .* and is 12 now.*data\.source"):
        train(source, batch_size=3, **PLAIN).set_state(state | {"size": 11})


@pytest.mark.slow
def test_workers_make_the_same_batches(tmp_path, train):
    source = folder_source(tmp_path)
    expected = take(train(source, batch_size=5, **RICH), 9)
    iterator = train(source, batch_size=5, workers=2, **RICH)
    assert_same(take(iterator, 4), expected[:4])
    state = iterator.get_state()
    iterator.close()
    resumed = train(source, batch_size=5, workers=2, **RICH)
    resumed.set_state(state)
    assert_same(take(resumed, 5), expected[4:])
    resumed.close()
    alone = train(source, batch_size=5, **RICH)  # a state fits any number of workers
    alone.set_state(state)
    assert_same(take(alone, 5), expected[4:])


@pytest.mark.slow
def test_workers_report_corrupt_images(tmp_path, train):
    source = folder_source(tmp_path)
    (tmp_path / "train" / "05" / "image.png").write_bytes(b"")
    iterator = train(source, batch_size=12, workers=1, on_corrupt="error", **PLAIN)
    with pytest.raises(ValueError, match=r"05/image\.png: the file is empty.*data\.on_corrupt"):
        next(iterator)


def corrupt(path, *numbers):
    broken = itertools.cycle([lambda data: b"", lambda data: data[:60], lambda data: b"text"])
    for number, change in zip(numbers, broken, strict=False):
        file = path / "train" / f"{number:02}" / "image.png"
        file.write_bytes(change(file.read_bytes()))


def test_next_readable_image_replaces_a_corrupt_one(tmp_path, train, warnings):
    source = folder_source(tmp_path)
    before = take(train(source, batch_size=6, **PLAIN), 6)
    corrupt(tmp_path, 4, 5, 11)
    iterator = train(source, batch_size=6, **PLAIN)
    after = take(iterator, 3)
    state = iterator.get_state()
    after += take(iterator, 3)
    replaced = np.arange(12)
    replaced[[4, 5, 11]] = 6, 6, 0
    for batch, other in zip(after, before, strict=True):
        np.testing.assert_array_equal(batch["label"], replaced[other["label"]])
        np.testing.assert_array_equal(batch["image"][:, 4, 4, 0], batch["label"])
    resumed = train(source, batch_size=6, **PLAIN)
    resumed.set_state(state)
    assert_same(take(resumed, 3), after[3:])
    # Two iterators have read each of them; two threads may meet one at the same moment.
    for number in (4, 5, 11):
        named = [line for line in warnings if source.name(number) in line]
        assert 2 <= len(named) <= 4
    assert all(any(source.name(n) in line for n in (4, 5, 11)) for line in warnings)


def test_small_corrupt_images_are_left_out(tmp_path, train, warnings):
    source = folder_source(tmp_path, side=12)
    corrupt(tmp_path, 0, 5)
    iterator = train(source, batch_size=10, **PLAIN)
    assert sorted(next(iterator)["label"]) == [1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    assert len(warnings) == 1
    assert "2 of 12" in warnings[0]
    assert source.name(0) in warnings[0] and source.name(5) in warnings[0]


@pytest.mark.parametrize("side", [12, 100])
def test_corrupt_images_as_errors(tmp_path, train, side):
    source = folder_source(tmp_path, side=side)
    corrupt(tmp_path, 7)
    message = r"07/image\.png: the file is empty\. .*data\.on_corrupt"
    with pytest.raises(ValueError, match=message):
        next(train(source, batch_size=12, on_corrupt="error", **PLAIN))
    with pytest.raises(ValueError, match=message):
        evaluation_images(source, 8, on_corrupt="error")
    with pytest.raises(ValueError, match=r"data\.on_corrupt is 'ignore'"):
        train(source, batch_size=12, on_corrupt="ignore", **PLAIN)


def test_batch_that_failed_is_tried_again(tmp_path, train):
    source = folder_source(tmp_path)
    good = (tmp_path / "train" / "07" / "image.png").read_bytes()
    expected = take(train(source, batch_size=4, **PLAIN), 3)
    corrupt(tmp_path, 7)
    batches, iterator = [], train(source, batch_size=4, on_corrupt="error", **PLAIN)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"07/image\.png"):
            while True:
                batches.append(next(iterator))
    (tmp_path / "train" / "07" / "image.png").write_bytes(good)
    batches += take(iterator, 3 - len(batches))
    assert_same(batches, expected)


def test_only_corrupt_images(tmp_path, train, warnings):
    source = folder_source(tmp_path)
    corrupt(tmp_path, *range(12))
    with pytest.raises(ValueError, match=r"not one image can be read.*data\.source"):
        next(train(source, batch_size=4, **PLAIN))
    with pytest.raises(ValueError, match="not one image can be read"):
        evaluation_images(source, 8)


def in_memory(iterator):
    return isinstance(iterator.batches, train_lib._MemoryBatches)


def test_what_is_kept_in_memory(tmp_path, train, monkeypatch):
    small = folder_source(tmp_path / "small", side=96)
    large = folder_source(tmp_path / "large", side=97)
    assert in_memory(train(small, batch_size=2, **RICH))
    assert not in_memory(train(large, batch_size=2, **RICH))
    monkeypatch.setattr(train_lib, "SMALL_BYTES", 12 * 64 * 64 * 3)
    assert in_memory(train(small, batch_size=2, image_size=31, **RICH))
    assert not in_memory(train(small, batch_size=2, image_size=32, **RICH))
    Image.new("RGB", (20, 30)).save(small.name(3))
    assert not in_memory(train(small, batch_size=2, **RICH))


def test_odd_small_image_is_resized(tmp_path, train):
    source = folder_source(tmp_path, count=64, side=12)
    Image.new("RGB", (36, 18), (1, 1, 1)).save(source.name(1))  # not one of those that are probed
    batch = next(train(source, batch_size=64, **RICH))
    assert sorted(batch["label"]) == list(range(64))
    assert np.all(batch["image"][list(batch["label"]).index(1)] == 1)  # grey


def test_evaluation_images(tmp_path):
    source = folder_source(tmp_path)
    images, labels = evaluation_images(source, 8)
    assert images.shape == (12, 8, 8, 3) and images.dtype == np.uint8
    np.testing.assert_array_equal(images[:, 4, 4, 0], np.arange(12))
    np.testing.assert_array_equal(labels, np.arange(12))
    assert labels.dtype == np.int32
    assert len(evaluation_images(source, 8, limit=100)[1]) == 12


def test_limited_evaluation_is_mixed_and_always_the_same(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((1000, 4, 4), np.uint8), labels=np.arange(1000))
    source = open_source(f"arrays:{tmp_path}/a.npz", "train[0:]")
    _, labels = evaluation_images(source, 4, limit=90)
    assert len(set(labels)) == 90
    assert np.all(np.bincount(labels % 9, minlength=9) > 0)
    assert np.all(np.bincount(labels // 100, minlength=10) > 0)
    np.testing.assert_array_equal(evaluation_images(source, 4, limit=90)[1], labels)


def test_evaluation_leaves_corrupt_images_out(tmp_path, warnings):
    source = folder_source(tmp_path)
    corrupt(tmp_path, 2, 9)
    images, labels = evaluation_images(source, 8)
    np.testing.assert_array_equal(labels, [0, 1, 3, 4, 5, 6, 7, 8, 10, 11])
    np.testing.assert_array_equal(images[:, 4, 4, 0], labels)
    assert len(warnings) == 1 and source.name(2) in warnings[0] and source.name(9) in warnings[0]


def test_parts_of_an_evaluation_without_readable_images_are_left_out(tmp_path, warnings):
    source = folder_source(tmp_path)
    corrupt(tmp_path, 0, 1, 2, 3, 4, 10, 11)
    parts = list(evaluation_batches(source, 8, 5))
    assert [labels.tolist() for _, labels in parts] == [[5, 6, 7, 8, 9]]
    assert len(warnings) == 2
    with pytest.raises(ValueError, match=r"00/image\.png.*data\.on_corrupt"):
        list(evaluation_batches(source, 8, 5, on_corrupt="error"))
    corrupt(tmp_path, *range(12))
    with pytest.raises(ValueError, match=r"not one image can be read.*data\.source"):
        list(evaluation_batches(source, 8, 5))


def test_evaluation_without_labels(tmp_path):
    arrays_source(tmp_path)
    source = open_source(f"arrays:{tmp_path}/unlabelled.npz", "test")
    images, labels = evaluation_images(source, 8)
    assert len(images) == 30 and labels is None


class Counter:
    """An iterator over numbers that counts what was taken from it."""

    def __init__(self, stop=10**6):
        self.position, self.stop, self.closed = 0, stop, False

    def __next__(self):
        if self.position == self.stop:
            raise StopIteration
        if self.position == 1000:
            raise ValueError("number 1000 is bad")
        self.position += 1
        return self.position - 1

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]

    def close(self):
        self.closed = True


def wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert condition()


def test_prefetch_keeps_order_and_runs_ahead_by_size():
    counter = Counter()
    prefetch = DevicePrefetch(counter, lambda number: number * 10, size=3)
    assert counter.position == 0
    assert take(prefetch, 5) == [0, 10, 20, 30, 40]
    wait_until(lambda: counter.position == 8)
    time.sleep(0.02)
    assert counter.position == 8  # five handed out, three wait
    prefetch.close()
    assert counter.closed


def test_prefetch_state_is_that_of_the_last_batch_handed_out():
    counter = Counter()
    prefetch = DevicePrefetch(counter, lambda number: number)
    assert prefetch.get_state() == {"position": 0}
    take(prefetch, 3)
    wait_until(lambda: counter.position == 5)
    assert prefetch.get_state() == {"position": 3}
    prefetch.set_state({"position": 100})
    assert prefetch.get_state() == {"position": 100}
    assert take(prefetch, 2) == [100, 101]
    wait_until(lambda: counter.position == 104)
    prefetch.close()
    assert prefetch.get_state() == {"position": 102}
    assert next(prefetch) == 102
    prefetch.close()


def test_prefetch_hands_errors_on_and_ends():
    prefetch = DevicePrefetch(Counter(stop=3), lambda number: number)
    assert list(prefetch) == [0, 1, 2]
    prefetch = DevicePrefetch(Counter(), lambda number: number)
    prefetch.set_state({"position": 999})
    assert next(prefetch) == 999
    for _ in range(2):  # asked again, it tries again
        with pytest.raises(ValueError, match="number 1000 is bad"):
            next(prefetch)
    assert not any(thread.name == "device-prefetch" for thread in threading.enumerate())


def test_prefetch_counts_waiting_while_the_device_is_idle():
    gate = threading.Semaphore(0)

    class Gated(Counter):
        def __next__(self):
            gate.acquire()
            return super().__next__()

    def release_after(looks):
        """Is busy for some looks, in which nothing may be counted; then a batch comes a little later."""
        left = [looks]

        def is_busy():
            left[0] -= 1
            if left[0] == 0:
                threading.Timer(0.1, gate.release).start()
            return left[0] > 0

        return is_busy

    prefetch = DevicePrefetch(Gated(), lambda number: number)
    gate.release()
    assert prefetch.take(lambda: True) == 0
    assert prefetch.waited == 0.0
    assert prefetch.take(release_after(50)) == 1  # 50 looks of 2 ms, then 0.1 s
    assert prefetch.waited > 0.05
    waited = prefetch.waited
    threading.Timer(0.1, gate.release).start()
    assert prefetch.take(lambda: True) == 2
    assert prefetch.waited == waited
    gate.release()
    wait_until(lambda: not prefetch._ready.empty())
    assert next(prefetch) == 3
    assert prefetch.waited < waited + 0.05
    gate.release()  # the thread ends only after a batch
    prefetch.close()


def test_prefetch_of_training_batches(tmp_path, train):
    source = arrays_source(tmp_path)
    expected = take(train(source, batch_size=4, **RICH), 10)
    prefetch = DevicePrefetch(train(source, batch_size=4, **RICH), jax.device_put)
    batches = take(prefetch, 5)
    assert isinstance(batches[0]["image"], jax.Array)
    state = prefetch.get_state()
    prefetch.set_state(state)
    batches += take(prefetch, 5)
    prefetch.close()
    assert_same(batches, expected)
