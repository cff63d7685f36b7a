import os
import pickle
import shutil
import time
from io import BytesIO

import numpy as np
import pytest
from absl import logging
from PIL import Image

from blockjax.data.embedded.compose import read_digits
from blockjax.data.sources import open_source
from blockjax.data.sources.source import DatasetUnavailable


def write_image(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (value, value, value)).save(path)


def names(source, root):
    return [os.path.relpath(source.name(i), root) for i in range(len(source))]


def test_folder_of_classes_holds_out_a_tenth_of_each_class(tmp_path):
    for name, count in (("cat", 20), ("dog", 5), ("eel", 1)):
        for i in range(count):
            write_image(tmp_path / name / f"{i:02}.png")
    train, test = (open_source(f"folder:{tmp_path}", split) for split in ("train", "test"))
    assert [name[:3] for name in names(test, tmp_path)] == ["cat", "cat", "dog"]
    assert len(train) == 23
    again = open_source(f"folder:{tmp_path}", "test")
    assert names(again, tmp_path) == names(test, tmp_path)
    assert not set(names(train, tmp_path)) & set(names(test, tmp_path))
    assert train.class_names == test.class_names == ["cat", "dog", "eel"]
    np.testing.assert_array_equal(np.bincount(train.labels), [18, 4, 1])
    assert [test[i]["label"] for i in range(3)] == [0, 0, 1]
    assert train.labels.dtype == np.int32


def test_folder_of_splits_shares_class_numbers(tmp_path):
    write_image(tmp_path / "train" / "cat" / "a.JPG")
    write_image(tmp_path / "train" / "dog" / "b.webp")
    write_image(tmp_path / "val" / "dog" / "deep" / "er" / "c.jpeg")
    for name in (".hidden.png", "notes.txt", "__MACOSX/d.png", ".git/e.png"):
        (tmp_path / "val" / "dog" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "val" / "dog" / name).touch()
    for split in ("test", "val", "validation"):
        source = open_source(f"folder:{tmp_path}", split)
        assert names(source, tmp_path) == ["val/dog/deep/er/c.jpeg"]
        assert source.class_names == ["cat", "dog"]
        assert source.labels.tolist() == [1]
    assert len(open_source(f"folder:{tmp_path}", "train")) == 2


def test_folder_prefers_the_split_that_was_asked_for(tmp_path):
    for split in ("train", "test", "validation", "extra"):
        write_image(tmp_path / split / f"{split}.png")
    for split in ("train", "test", "validation", "extra"):
        source = open_source(f"folder:{tmp_path}", split)
        assert names(source, tmp_path) == [f"{split}/{split}.png"]


def test_folder_with_a_train_part_only_holds_out(tmp_path):
    for i in range(20):
        write_image(tmp_path / "train" / f"{i:02}.png")
    train, test = (open_source(f"folder:{tmp_path}", split) for split in ("train", "test"))
    assert len(test) == 2 and names(test, tmp_path)[0].startswith("train/")
    assert len({*names(train, tmp_path), *names(test, tmp_path)}) == 20


def test_flat_folder_has_no_labels(tmp_path):
    for i in range(10):
        write_image(tmp_path / f"{i}.bmp", i)
    source = open_source(f"folder:{tmp_path}", "train")
    assert len(source) == 9
    assert source.labels is None and source.class_names is None and not source.labelled
    example = source[0]
    assert example.keys() == {"image"}
    value = np.asarray(Image.open(BytesIO(example["image"])))[0, 0, 0]
    assert names(source, tmp_path)[0] == f"{value}.bmp"


def test_slices_of_a_folder_are_mixed_and_complete(tmp_path):
    for name in ("cat", "dog"):
        for i in range(20):
            write_image(tmp_path / "train" / name / f"{i}.png")
        write_image(tmp_path / "test" / name / "0.png")
    parts = [open_source(f"folder:{tmp_path}", f"train[{s}]") for s in (":25%", "25%:-20", "-20:")]
    assert [len(part) for part in parts] == [10, 10, 20]
    assert len({name for part in parts for name in names(part, tmp_path)}) == 40
    assert set(parts[0].labels) == {0, 1}
    again = open_source(f"folder:{tmp_path}", "train[:25%]")
    assert names(again, tmp_path) == names(parts[0], tmp_path)


def test_folder_errors(tmp_path):
    with pytest.raises(ValueError, match=r"data\.source.*nowhere, which does not exist"):
        open_source(f"folder:{tmp_path}/nowhere", "train")
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "a.txt").touch()
    with pytest.raises(ValueError, match=rf"data\.source names {tmp_path}, which has no image"):
        open_source(f"folder:{tmp_path}", "train")
    write_image(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"split is empty.*data\.test_split"):
        open_source(f"folder:{tmp_path}", "test")
    with pytest.raises(ValueError, match=r"no split 'foo'; it has train, test"):
        open_source(f"folder:{tmp_path}", "foo")
    with pytest.raises(ValueError, match=r"'train\[:a\]' is not understood.*data\.train_split"):
        open_source(f"folder:{tmp_path}", "train[:a]")


@pytest.mark.parametrize("name", ["train", "test", "val"])
def test_a_class_with_the_name_of_a_split_is_not_taken_for_one(tmp_path, name):
    for folder in ("bus", "car", name):
        for i in range(3):
            write_image(tmp_path / folder / f"{i}.png")
    message = (
        rf"{name} could be a split or a class beside bus, car\. .*class, move all .*split, move"
    )
    for split in ("train", "test"):
        with pytest.raises(ValueError, match=message):
            open_source(f"folder:{tmp_path}", split)
    # Moved, as the message says, they are three classes.
    (tmp_path / "all").mkdir()
    for folder in ("bus", "car", name):
        (tmp_path / folder).rename(tmp_path / "all" / folder)
    (tmp_path / "all").rename(tmp_path / "train")
    source = open_source(f"folder:{tmp_path}", "train")
    assert source.class_names == sorted(["bus", "car", name])


def test_folders_beside_splits_are_named(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: lines.append(text % args))
    write_image(tmp_path / "train" / "cat" / "a.png")
    write_image(tmp_path / "extra" / "a.png")
    (tmp_path / "notes").mkdir()
    assert open_source(f"folder:{tmp_path}", "extra").labels is None
    assert not lines
    assert open_source(f"folder:{tmp_path}", "train").class_names == ["cat"]
    assert len(lines) == 1 and "splits train; extra beside" in lines[0]


def test_links_in_a_circle_are_named(tmp_path):
    write_image(tmp_path / "folder" / "cat" / "a.png")
    (tmp_path / "folder" / "loop").symlink_to("loop")
    with pytest.raises(ValueError, match=r"folder/loop cannot be read: Too many levels.*Repair"):
        open_source(f"folder:{tmp_path}/folder", "train")
    for kind in ("folder", "arrays"):
        with pytest.raises(ValueError, match=r"folder/loop, which does not exist"):
            open_source(f"{kind}:{tmp_path}/folder/loop", "train")


IMAGES = np.arange(30 * 4 * 5 * 3, dtype=np.uint8).reshape(30, 4, 5, 3)
LABELS = np.arange(30) % 3


@pytest.mark.parametrize(
    ("arrays", "train", "test"),
    [
        (dict(train_images=IMAGES, train_labels=LABELS, test_images=IMAGES[:7]), 30, 7),
        (dict(train_images=IMAGES, train_labels=LABELS, val_images=IMAGES[:6]), 30, 6),
        (dict(x_train=IMAGES, y_train=LABELS[:, None], x_test=IMAGES[:7, :, :, 0]), 30, 7),
        (dict(images=IMAGES, labels=LABELS), 27, 3),
        (dict(train_images=IMAGES, train_labels=LABELS), 27, 3),
    ],
)
def test_arrays(tmp_path, arrays, train, test):
    np.savez(tmp_path / "a.npz", **arrays)
    source = open_source(f"arrays:{tmp_path}/a.npz", "train")
    held_out = open_source(f"arrays:{tmp_path}/a.npz", "test")
    assert (len(source), len(held_out)) == (train, test)
    kept = [
        int(np.flatnonzero((source[i]["image"] == IMAGES).all((1, 2, 3)))[0]) for i in range(train)
    ]
    assert kept == sorted(set(kept))
    np.testing.assert_array_equal(source.labels, LABELS[kept])
    assert source[3]["label"] == LABELS[kept[3]]
    if train < 30:  # the rest
        assert not any(
            (IMAGES[kept] == held_out[i]["image"]).all((1, 2, 3)).any() for i in range(test)
        )
    assert held_out.labelled == ("labels" in arrays or ("test_images" not in arrays and train < 30))
    sliced = open_source(f"arrays:{tmp_path}/a.npz", "train[:50%]")
    assert len(sliced) == round(train / 2)


@pytest.mark.parametrize("period", [2, 5, 10])
def test_a_tenth_of_each_class_is_held_out_where_labels_are_periodic(tmp_path, period):
    labels = np.arange(200) % period
    np.savez(tmp_path / "a.npz", images=np.zeros((200, 4, 4), np.uint8), labels=labels)
    held_out = open_source(f"arrays:{tmp_path}/a.npz", "test")
    np.testing.assert_array_equal(np.bincount(held_out.labels), [20 // period] * period)


def test_what_is_held_out_of_classes_of_one_example(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((30, 4, 4), np.uint8), labels=np.arange(30))
    assert len(open_source(f"arrays:{tmp_path}/a.npz", "test")) == 3


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (dict(faces=IMAGES), r"has the arrays faces.*train_images, x_train"),
        (dict(images=IMAGES / 255), "float64: store images as uint8"),
        (dict(images=IMAGES[..., :2]), r"shape \(30, 4, 5, 2\)"),
        (dict(images=IMAGES[0, 0]), r"shape \(5, 3\)"),
        (dict(images=IMAGES, labels=LABELS[:5]), "one integer for each of the 30 images"),
        (dict(images=IMAGES, labels=LABELS / 2), "one integer for each of the 30 images"),
        (dict(images=IMAGES, labels=np.array([None] * 30)), "cannot read images, labels"),
        (dict(test_images=IMAGES), "no split 'train'; it has test"),
    ],
)
def test_arrays_errors(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        open_source(f"arrays:{tmp_path}/a.npz", "train")


def test_arrays_file_errors(tmp_path):
    with pytest.raises(ValueError, match=r"data\.source.*which does not exist"):
        open_source(f"arrays:{tmp_path}/a.npz", "train")
    for content in (b"", b"no archive", b"PK\x03\x04 broken"):
        (tmp_path / "a.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.npz, which is not a \.npz file"):
            open_source(f"arrays:{tmp_path}/a.npz", "train")
    np.save(tmp_path / "b.npy", IMAGES)
    with pytest.raises(ValueError, match=r"b\.npy, which is not a \.npz file"):
        open_source(f"arrays:{tmp_path}/b.npy", "train")


def test_sources_can_be_pickled(tmp_path):
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=LABELS)
    for i in range(11):
        write_image(tmp_path / "folder" / "cat" / f"{i}.png", i)
    for spec in (f"arrays:{tmp_path}/a.npz", f"folder:{tmp_path}/folder"):
        source = open_source(spec, "test")
        copy = pickle.loads(pickle.dumps(source))
        assert len(copy) == len(source) and copy.description == source.description
        np.testing.assert_array_equal(copy[1]["image"], source[1]["image"])
        np.testing.assert_array_equal(copy.labels, source.labels)


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("embeded", "Did you mean 'embedded'"),
        ("folders:/x", "Did you mean 'folder:/x'"),
        ("embedded:scene", "Did you mean 'embedded:scenes'"),
        ("cifar10", "Did you mean 'tfds:cifar10'"),
        (
            "tfds:",
            "none of embedded, embedded:scenes, tfds:<name>, folder:<path>, arrays:<file.npz>",
        ),
        ("", "none of embedded, embedded:scenes, tfds:<name>, folder:<path>, arrays:<file.npz>"),
    ],
)
def test_unknown_kinds(spec, hint):
    with pytest.raises(ValueError, match=rf"data\.source is '{spec}'.*{hint}"):
        open_source(spec, "train")


def test_paths_without_a_kind(tmp_path):
    with pytest.raises(ValueError, match=rf"Did you mean 'folder:{tmp_path}'"):
        open_source(str(tmp_path), "train")
    np.savez(tmp_path / "a.npz", images=IMAGES)
    with pytest.raises(ValueError, match=rf"Did you mean 'arrays:{tmp_path}/a\.npz'"):
        open_source(f"{tmp_path}/a.npz", "train")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar1", r"no data set 'cifar1'. Did you mean tfds:cifar10\?"),
        ("nosuch_data/config:1.0.0", "no data set 'nosuch_data/config:1.0.0'"),
        ("imagenet_resized/31x31", r"(?s)data\.source.*31x31.*32x32"),
        ("mnist:9.9.9", r"data\.source.*9\.9\.9"),
        (
            "cifar10",
            r"(?s)cifar10/3\.0\.2 is not prepared in .*\n  python -m blockjax\.data\.prepare "
            r"tfds:cifar10 --data_dir .*data\.dir.*'embedded'",
        ),
        ("imagenet2012", "(?s)fetch yourself: .*ILSVRC2012_img_train.tar"),
    ],
)
def test_tfds_errors_come_at_once(tmp_path, name, message):
    start = time.monotonic()
    with pytest.raises(DatasetUnavailable, match=message):
        open_source(f"tfds:{name}", "train", str(tmp_path))
    assert time.monotonic() - start < 60  # an attempt to download takes minutes without a network
    assert not os.listdir(tmp_path)


@pytest.fixture(scope="module")
def prepared_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfds")
    open_source("embedded", "test", str(directory))
    return directory


def test_tfds_splits(prepared_dir):
    def opened(split):
        return open_source("tfds:blockjax_embedded", split, str(prepared_dir))

    assert [len(opened(s)) for s in ("test[:10%]", "test[10%:]", "train+test")] == [100, 900, 5000]
    whole, tail = opened("test"), opened("test[10%:]")
    assert tail[5] == whole[105]
    assert tail[5]["image"].startswith(b"\x89PNG")
    _, digits = read_digits()
    np.testing.assert_array_equal(np.sort(whole.labels), np.sort(digits[4000:]))
    assert pickle.loads(pickle.dumps(tail))[5] == tail[5]
    assert "record 5" in tail.name(5)
    with pytest.raises(DatasetUnavailable, match=r"no split 'val'; it has test, train.*_split"):
        opened("val")
    for split in ("test[50%:10%]", "test[:x]"):
        with pytest.raises(DatasetUnavailable, match=r"(?s)cannot read split.*data\.train_split"):
            opened(split)


def test_a_source_can_be_looped_over(prepared_dir):
    source = open_source("tfds:blockjax_embedded", "test[:5]", str(prepared_dir))
    assert [example["label"] for example in source] == source.labels.tolist()


def test_tfds_missing_file(prepared_dir, tmp_path):
    shutil.copytree(prepared_dir, tmp_path, dirs_exist_ok=True)
    next(tmp_path.rglob("*test.array_record*")).unlink()
    with pytest.raises(DatasetUnavailable, match=r"1 files are missing, .*test\.array_record"):
        open_source("embedded", "test", str(tmp_path))
    assert len(open_source("embedded", "train", str(tmp_path))) == 4000


def test_tfds_other_file_format(tmp_path, prepared_dir):
    shutil.copytree(prepared_dir, tmp_path, dirs_exist_ok=True)
    info = next(tmp_path.rglob("dataset_info.json"))
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(DatasetUnavailable, match=r"reads ArrayRecord\. Set data\.dir"):
        open_source("tfds:blockjax_embedded", "test", str(tmp_path))
