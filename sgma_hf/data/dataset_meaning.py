"""Whether a data set means what a checkpoint takes it to mean: names of its classes, values that stand for no data."""

from transformers import BaseImageProcessor, PreTrainedConfig
from transformers.utils import logging

from .rows import DatasetMetadata


logger = logging.get_logger(__name__)


def check_meaning(metadata: DatasetMetadata | None, config: PreTrainedConfig, processor: BaseImageProcessor) -> None:
    """Compare a data set with a model that is to be evaluated on it or trained further.

    The processor takes over the data set's nodata values, with a warning: in these rows they are no measurements,
    whatever they were in those that the model knows.

    Args:
        metadata: Of the data set; nothing is known and nothing compared without.
        config: Of the model.
        processor: Of the model; changed in place.

    Raises:
        ValueError: If a class of the data set is one of the model's under another id.
    """
    if metadata is None:
        return
    _check_class_names(metadata.class_names, [str(config.id2label[index]) for index in range(config.num_labels)])
    for name, values in zip(metadata.modalities, metadata.nodata, strict=True):
        if name not in processor.modalities:
            continue
        index = processor.modalities.index(name)
        new = [value for value in values if value not in processor.nodata[index]]
        if new:
            logger.warning(
                f"The data set declares {new} of modality {name!r} to be no data, which the checkpoint's processor "
                f"does not know (its `nodata` of {name!r} is {processor.nodata[index]}): they count as no data."
            )
            processor.nodata = [[*old, *new] if place == index else old for place, old in enumerate(processor.nodata)]


def _check_class_names(there: list[str], known: list[str]) -> None:
    ids = {_plain(name): index for index, name in enumerate(known)}
    moved = [(index, name) for index, name in enumerate(there) if ids.get(_plain(name), index) != index]
    if moved:
        listed = ", ".join(f"{name!r} is {index} there and {ids[_plain(name)]} here" for index, name in moved)
        raise ValueError(
            f"The data set's classes are {there}, the model's {known}: {listed}. Convert the data set again with the "
            "classes in the model's order (`--classes`)."
        )
    if there and list(map(_plain, there)) != list(map(_plain, known)):
        logger.warning(
            f"The data set's classes are called {there}, the model's {known}: label ids are taken as the model's "
            "classes. Make sure that they mean the same."
        )


def _plain(name: str) -> str:
    """A class's name however it is written: "Low vegetation" is "low_vegetation"."""
    return name.casefold().replace("_", " ").replace("-", " ").strip()
