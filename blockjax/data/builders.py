"""The embedded images as a TFDS data set: ArrayRecord files, built once on first use."""

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds
from absl import logging
from PIL import Image

from blockjax.data.embedded import compose


class Embedded(tfds.core.GeneratorBasedBuilder):
    """Digits on photos: ten classes, 4,000 training and 1,000 test images of 32 x 32 pixels."""

    name = "blockjax_embedded"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        side = compose.IMAGE_SIZE
        return tfds.core.DatasetInfo(
            builder=self,
            description="MNIST digits blended with crops of eleven photos.",
            license="MNIST digits: CC BY-SA 3.0; photos: CC0 or public domain",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(side, side, 3), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        images_BHWC, labels_B = compose.compose()
        train, test = slice(None, compose.TRAIN_COUNT), slice(compose.TRAIN_COUNT, None)
        return {
            "train": self._generate_examples(images_BHWC[train], labels_B[train]),
            "test": self._generate_examples(images_BHWC[test], labels_B[test]),
        }

    def _generate_examples(self, images_BHWC, labels_B) -> Iterator[tuple[int, dict]]:
        for i, (image_HWC, label) in enumerate(zip(images_BHWC, labels_B, strict=True)):
            # Without TensorFlow, TFDS takes encoded images only.
            png = io.BytesIO()
            Image.fromarray(image_HWC).save(png, "PNG")
            png.seek(0)
            yield i, {"image": png, "label": int(label)}


def is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
    """Tells whether the files of `builder` exist, without the warnings of TFDS when they do not."""
    return (Path(builder.data_dir) / "dataset_info.json").exists()


def embedded_builder(data_dir: str | os.PathLike | None = None) -> tfds.core.DatasetBuilder:
    """Returns the builder of the embedded data set, built if it was not.

    Processes that build at the same time do not disturb one another. Where `data_dir` cannot be
    written, the data set goes to the system's directory for temporary files.

    Args:
      data_dir: the directory of TFDS data sets; None means $TFDS_DATA_DIR or
        ~/tensorflow_datasets.
    """
    builder = Embedded(data_dir=data_dir, file_format="array_record")
    if is_prepared(builder):
        return builder
    # Layout: <data_dir>/<name>/<version>.
    directory = Path(builder.data_dir).parent.parent
    try:
        return _build(directory)
    except OSError as error:
        fallback = Path(tempfile.gettempdir()) / f"blockjax_data_{os.getuid()}"
        logging.warning(
            "Cannot write the embedded data set to %s (%s); using %s. Set data.dir to a "
            "directory that can be written to keep it.",
            directory,
            error,
            fallback,
        )
        return _build(fallback)


def _build(directory: Path) -> tfds.core.DatasetBuilder:
    builder = Embedded(data_dir=directory, file_format="array_record")
    if is_prepared(builder):
        return builder
    directory.mkdir(parents=True, exist_ok=True)
    logging.info("Building the embedded data set in %s, once; this takes seconds.", directory)
    # Each process builds in a directory of its own; moving it into place is atomic, so that
    # others see all of it or nothing, and of several processes one wins.
    with tempfile.TemporaryDirectory(dir=directory, prefix=".blockjax_embedded_") as scratch:
        draft = Embedded(data_dir=scratch, file_format="array_record")
        # TFDS speaks of downloads and shows progress bars; there is nothing to wait for here.
        silence = io.StringIO()
        with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
            draft.download_and_prepare(
                download_config=tfds.download.DownloadConfig(try_download_gcs=False)
            )
        target = Path(builder.data_dir)
        target.parent.mkdir(exist_ok=True)
        try:
            os.rename(draft.data_dir, target)
        except OSError:
            if not is_prepared(builder):
                raise
    return Embedded(data_dir=directory, file_format="array_record")
