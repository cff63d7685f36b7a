"""The embedded images as TFDS data sets: ArrayRecord files, built once on first use."""

import abc
import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds
from absl import logging
from PIL import Image

from blockjax.data.embedded import compose, scenes


class _Composed(tfds.core.GeneratorBasedBuilder):
    """A data set that is composed of the digits and photos in the package."""

    VERSION = tfds.core.Version("1.0.0")
    SIDE: int
    TEXT: str

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.TEXT,
            license="MNIST digits: CC BY-SA 3.0; photos: CC0 or public domain",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(
                        shape=(self.SIDE, self.SIDE, 3), encoding_format="png"
                    ),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
        )

    @abc.abstractmethod
    def _parts(self) -> dict:
        """Returns {"train", "test": images and labels}."""

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        return {name: self._generate_examples(*part) for name, part in self._parts().items()}

    def _generate_examples(self, images_BHWC, labels_B) -> Iterator[tuple[int, dict]]:
        for i, (image_HWC, label) in enumerate(zip(images_BHWC, labels_B, strict=True)):
            # Without TensorFlow, TFDS takes encoded images only.
            png = io.BytesIO()
            Image.fromarray(image_HWC).save(png, "PNG")
            png.seek(0)
            yield i, {"image": png, "label": int(label)}


class Embedded(_Composed):
    """Digits on photos: ten classes, 4,000 training and 1,000 test images of 32 x 32 pixels."""

    name = "blockjax_embedded"
    SIDE = compose.IMAGE_SIZE
    TEXT = "MNIST digits blended with crops of eleven photos."

    def _parts(self) -> dict:
        images_BHWC, labels_B = compose.compose()
        train, test = slice(None, compose.TRAIN_COUNT), slice(compose.TRAIN_COUNT, None)
        return {
            "train": (images_BHWC[train], labels_B[train]),
            "test": (images_BHWC[test], labels_B[test]),
        }


class Scenes(_Composed):
    """Sixteen digits derived from one of ten symbols, the class: 40,000 training and 2,000 test images of 32 x 32
    pixels.
    """

    name = "blockjax_scenes"
    VERSION = tfds.core.Version("2.0.0")
    SIDE = scenes.IMAGE_SIZE
    TEXT = "Sixteen MNIST digits on a photo, derived from one symbol by a grammar; the label is the symbol."

    def _parts(self) -> dict:
        return scenes.compose_scenes()


# By what follows "embedded" in data.source.
EMBEDDED = {"": Embedded, ":scenes": Scenes}


def is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
    """Tells whether the files of `builder` exist, without the warnings of TFDS when they do not."""
    return (Path(builder.data_dir) / "dataset_info.json").exists()


def embedded_builder(
    data_dir: str | os.PathLike | None = None, kind: type[_Composed] = Embedded
) -> tfds.core.DatasetBuilder:
    """Returns the builder of an embedded data set, built if it was not.

    Processes that build at the same time do not disturb one another. Where `data_dir` cannot be
    written, the data set goes to the system's directory for temporary files.

    Args:
      data_dir: the directory of TFDS data sets; None means $TFDS_DATA_DIR or
        ~/tensorflow_datasets.
      kind: of `EMBEDDED`.
    """
    builder = kind(data_dir=data_dir, file_format="array_record")
    if is_prepared(builder):
        return builder
    # Layout: <data_dir>/<name>/<version>.
    directory = Path(builder.data_dir).parent.parent
    try:
        return _build(directory, kind)
    except OSError as error:
        fallback = Path(tempfile.gettempdir()) / f"blockjax_data_{os.getuid()}"
        logging.warning(
            "Cannot write the embedded data set to %s (%s); using %s. Set data.dir to a "
            "writable directory to keep it.",
            directory,
            error,
            fallback,
        )
        return _build(fallback, kind)


def _build(directory: Path, kind: type[_Composed]) -> tfds.core.DatasetBuilder:
    builder = kind(data_dir=directory, file_format="array_record")
    if is_prepared(builder):
        return builder
    directory.mkdir(parents=True, exist_ok=True)
    logging.info("Building %s in %s, once; this takes seconds.", kind.name, directory)
    # Each process builds in a directory of its own; moving it into place is atomic, so that
    # others see all of it or nothing, and of several processes one wins.
    with tempfile.TemporaryDirectory(dir=directory, prefix=".blockjax_embedded_") as scratch:
        draft = kind(data_dir=scratch, file_format="array_record")
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
    return kind(data_dir=directory, file_format="array_record")
