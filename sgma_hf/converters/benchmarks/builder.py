"""Builders of the `datasets` library for the benchmarks: imported and instantiated, as loading scripts are no more.

    from sgma_hf.converters.isprs_potsdam import IsprsPotsdam

    builder = IsprsPotsdam(data_dir="/data/Potsdam", split="official", tile=512, height="dsm")
    builder.download_and_prepare()
    rows = builder.as_dataset(split="train")
    stream = builder.as_streaming_dataset(split="train")  # nothing is written

The rows are those that the data set's command converts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import datasets

from ..writing.parquet import encode_row
from .check import survey_source
from .dataset import SPLITS, BenchmarkDataset, ConversionOptions, Scene
from .rows import RowMaker


_DEFAULT_TILE = -1


@dataclass
class BenchmarkConfig(datasets.BuilderConfig):
    """Configuration of a builder; see `ConversionOptions`.

    Args:
        split: Named protocol; None takes the data set's first.
        tile: Side of a tile in pixels, None for whole scenes; by default what suits the data set.
        stride: Pixels from tile to tile of training scenes.
        exclude: Scenes to leave out.
        missing: Share of training rows that lose a modality.
        coverage: Share of training rows in which a modality ends inside.
        missing_seed: Decides which.
        allow_missing: Whether files that are not there are null instead of an error.
        choices: The data set's own options; the builder takes them by name, too.
    """

    split: str | None = None
    tile: int | None = _DEFAULT_TILE
    stride: int | None = None
    exclude: Sequence[str] = ()
    missing: Mapping[str, float] = field(default_factory=dict)
    coverage: Mapping[str, float] = field(default_factory=dict)
    missing_seed: int = 0
    allow_missing: bool = False
    choices: Mapping[str, Any] = field(default_factory=dict)


class BenchmarkBuilder(datasets.GeneratorBasedBuilder):
    """What the builders share; a subclass names its `reader`."""

    BUILDER_CONFIG_CLASS = BenchmarkConfig
    reader: ClassVar[type[BenchmarkDataset]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        choices = {name: kwargs.pop(name) for name in self.reader.description.choices if name in kwargs}
        if choices:
            kwargs["choices"] = {**kwargs.get("choices", {}), **choices}
        super().__init__(*args, **kwargs)

    def dataset(self) -> BenchmarkDataset:
        """The reader with the options of the configuration."""
        config = self.config
        description = self.reader.description
        options = ConversionOptions(
            split=config.split,
            tile=description.default_tile if config.tile == _DEFAULT_TILE else config.tile,
            stride=config.stride,
            exclude=tuple(config.exclude),
            missing=dict(config.missing),
            coverage=dict(config.coverage),
            missing_seed=config.missing_seed,
            choices=dict(config.choices),
        )
        return self.reader(options)

    def _info(self) -> datasets.DatasetInfo:
        description = self.reader.description
        return datasets.DatasetInfo(
            description=f"{description.summary}\n\n{description.terms}",
            features=self.dataset().metadata().features(),
            homepage=description.homepage,
            license=description.license,
            citation=description.citation,
        )

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        if not self.config.data_dir:
            raise ValueError(
                f"{type(self).__name__} needs the folder of the data set: data_dir=... It is handed out at "
                f"{self.reader.description.homepage}."
            )
        survey = survey_source(self.dataset(), Path(self.config.data_dir))
        missing = [problem for problem in survey.problems if problem.kind == "missing"]
        if missing and not (self.config.allow_missing and survey.scenes):
            raise ValueError(
                f"{self.reader.description.name} in {self.config.data_dir} is not complete:\n"
                + "\n".join(f"  - {problem}" for problem in survey.problems)
                + ("\nPass allow_missing=True to take null for what is not there." if survey.scenes else "")
            )
        damaged = [problem for problem in survey.problems if problem.kind == "damaged"]
        if damaged:
            names = sorted({problem.scene[1] for problem in damaged if problem.scene is not None})
            raise ValueError(
                f"{self.reader.description.name} in {self.config.data_dir} is damaged:\n"
                + "\n".join(f"  - {problem}" for problem in damaged)
                + (f"\nPass exclude={names} to leave the scenes out." if names else "")
            )
        return [
            datasets.SplitGenerator(name=split, gen_kwargs={"scenes": scenes})
            for split in SPLITS
            if (scenes := [scene for scene in survey.scenes if scene.split == split])
        ]

    def _generate_examples(self, scenes: list[Scene]) -> Iterator[tuple[Any, dict[str, Any]]]:
        maker = RowMaker(self.dataset())
        for scene in scenes:
            for row in maker.rows(scene):
                yield row.row_id, encode_row(maker.metadata, row.row_id, row.images, row.label)
