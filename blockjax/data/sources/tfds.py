"""TFDS data sets in ArrayRecord files, read without TensorFlow."""

import difflib
import functools

import numpy as np

from blockjax.data.sources.source import DatasetUnavailable, Source, description_of


class TfdsSource(Source):
    """A split of a prepared TFDS data set in ArrayRecord files; images stay encoded."""

    def __init__(self, builder, split: str):
        """Opens the files.

        Args:
          builder: a TFDS builder whose data set is prepared.
          split: a split in TFDS's notation, for instance `train[:10%]`.
        """
        import tensorflow_datasets as tfds

        features = builder.info.features
        images = [key for key, value in features.items() if isinstance(value, tfds.features.Image)]
        if not images:
            raise DatasetUnavailable(
                f"{title_of(builder)} has no images, only {', '.join(features)}: set data.source to a data set "
                "with an Image feature."
            )
        self._image = "image" if "image" in images else images[0]
        label = dict(features.items()).get("label")
        self.labelled = isinstance(label, tfds.features.ClassLabel)
        self.class_names = list(label.names) if self.labelled else None
        self._records = open_records(builder, split)
        self._title = f"{builder.info.full_name} {split}"
        self.description = description_of(self._title, len(self), self.class_names)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict:
        record = parse_record(self._records[int(index)])
        example = {"image": record[self._image].bytes_list.value[0]}
        if self.labelled:
            example["label"] = record["label"].int64_list.value[0]
        return example

    @functools.cached_property
    def labels(self) -> np.ndarray | None:
        """Labels, int32 [len(self)], or None; reads every record, once."""
        if not self.labelled:
            return None
        return np.array([self[i]["label"] for i in range(len(self))], np.int32)

    def name(self, index: int) -> str:
        return f"{self._title}, record {index}"


def title_of(builder) -> str:
    """Returns what messages call a prepared data set."""
    return f"{builder.info.full_name} in {builder.data_dir}"


def open_records(builder, split: str):
    """Returns the serialized examples of a split, a sequence of bytes; see `parse_record`.

    Args:
      builder: a TFDS builder whose data set is prepared.
      split: a split in TFDS's notation, for instance `train[:10%]`.

    Raises:
      DatasetUnavailable: there is no such split, or its files are not all there.
    """
    import tensorflow_datasets as tfds

    title, splits = title_of(builder), builder.info.splits
    for base in (part.split("[")[0].strip() for part in split.split("+")):
        if base not in splits:
            raise DatasetUnavailable(
                f"{title} has no split {base!r}; it has {', '.join(sorted(splits))}: set "
                "data.train_split and data.test_split."
            )
        missing = [path for path in splits[base].filepaths if not path.exists()]
        if missing:
            raise DatasetUnavailable(
                f"{title} is incomplete: {len(missing)} files are missing, {missing[0]} is one."
            )
    try:
        # Parsed here: TFDS would copy the bytes twice, and decode features that nobody reads.
        records = builder.as_data_source(
            split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
        len(records)  # refuses slices that end before they start
    except (ValueError, AssertionError) as error:
        raise DatasetUnavailable(
            f"{title}: cannot read split {split!r}: {error} Set data.train_split and "
            "data.test_split, for instance to 'train[:10%]'."
        ) from error
    return records


def parse_record(record: bytes):
    """Returns the features of a serialized example, by name."""
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example.FromString(record).features.feature


def find_builder(name: str, data_dir: str | None = None):
    """Returns the TFDS builder for `name`, prepared or not.

    Args:
      name: a name of the TFDS catalogue or of a data set in `data_dir`, optionally with a config and
        a version: `imagenet_resized/32x32:0.1.0`.
      data_dir: as in `open_source`.

    Raises:
      DatasetUnavailable: there is no such data set, config or version, or it was prepared in
        another file format than ArrayRecord.
    """
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:
        near = difflib.get_close_matches(name, catalogue(), n=1)
        hint = f" Did you mean tfds:{near[0]}?" if near else ""
        raise DatasetUnavailable(
            f"TFDS has no data set {name!r}.{hint} Set data.source."
        ) from error
    except (ImportError, OSError) as error:  # a few need TensorFlow or files even for that
        raise DatasetUnavailable(f"TFDS cannot describe {name} here: {error}") from error
    except (ValueError, AssertionError, RuntimeError) as error:
        if "File format is already set" in str(error):
            raise DatasetUnavailable(
                f"{name} was prepared in {data_dir or 'the TFDS directory'} in another file "
                "format; blockjax reads ArrayRecord. Set data.dir to another directory and run "
                f"{prepare_command(name, '<directory>')}"
            ) from error
        raise DatasetUnavailable(
            f"data.source is tfds:{name}: the config or version does not exist: {error}"
        ) from error


def catalogue() -> list[str]:
    """Returns the names of TFDS's own data sets."""
    import tensorflow_datasets as tfds

    # Listing the sets of the community needs TensorFlow.
    return tfds.list_builders(with_community_datasets=False)


def prepare_command(name: str, data_dir: str | None) -> str:
    """Returns the command that prepares the TFDS data set `name`."""
    where = f" --data_dir {data_dir}" if data_dir else ""
    return f"python -m blockjax.data.prepare tfds:{name}{where}"


def prepared_builder(name: str, data_dir: str | None, instead: str = "'embedded'"):
    """Returns the TFDS builder of a data set that is prepared.

    Args:
      name: as for `find_builder`.
      data_dir: as in `open_source`.
      instead: what to name as the `data.source` that needs no download.

    Raises:
      DatasetUnavailable: it is unknown or not prepared; says how to prepare it.
    """
    from blockjax.data import builders

    builder = find_builder(name, data_dir)
    if not builders.is_prepared(builder):
        manual = (builder.MANUAL_DOWNLOAD_INSTRUCTIONS or "").strip()
        files = f"It needs files that you fetch yourself: {manual}\n" if manual else ""
        raise DatasetUnavailable(
            f"{builder.info.full_name} is not prepared in {builder.data_dir}.\n{files}"
            "Prepare it once, where there is a network and TensorFlow (reading needs neither):\n"
            f"  {prepare_command(name, data_dir)}\n"
            f"Or set data.dir to where it is prepared, or data.source to {instead}, which needs "
            "no download."
        )
    return builder


def open_tfds(name: str, split: str, data_dir: str | None) -> Source:
    """Opens one split of a prepared data set of images; see `open_source` for the arguments.

    Raises:
      DatasetUnavailable: it is unknown, not prepared, or has no images or no such split.
    """
    return TfdsSource(prepared_builder(name, data_dir), split)
