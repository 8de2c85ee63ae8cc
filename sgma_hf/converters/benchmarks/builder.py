"""Builders of the `datasets` library for the public data sets: imported and instantiated, not loaded as scripts.

    from sgma_hf.converters.isprs_potsdam import IsprsPotsdam

    builder = IsprsPotsdam(data_dir="/data/Potsdam", split="official", tile=512, height="dsm")
    builder.download_and_prepare()
    rows = builder.as_dataset(split="train")
    stream = builder.as_streaming_dataset(split="train")  # nothing is written

The rows are those that the data set's command converts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import datasets

from .check import CheckReport, survey_source
from .dataset import SPLITS, BenchmarkDataset, ConversionOptions, Scene
from .rows import RowMaker


@dataclass
class BenchmarkConfig(ConversionOptions, datasets.BuilderConfig):
    """Configuration of a builder: the options of a conversion, `tile` by default what suits the data set."""

    allow_missing: bool = False  # whether files that are not there are null instead of an error


class BenchmarkBuilder(datasets.GeneratorBasedBuilder):
    """What the builders share; a subclass names its `reader`. The reader's own options are taken by name, too."""

    BUILDER_CONFIG_CLASS = BenchmarkConfig
    reader: ClassVar[type[BenchmarkDataset]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        description = self.reader.description
        choices = {name: kwargs.pop(name) for name in description.choices if name in kwargs}
        kwargs = {"tile": description.default_tile, **kwargs, "choices": {**kwargs.get("choices", {}), **choices}}
        super().__init__(*args, **kwargs)

    def _info(self) -> datasets.DatasetInfo:
        description = self.reader.description
        return datasets.DatasetInfo(
            description=f"{description.summary}\n\n{description.terms}",
            features=self.reader(self.config).metadata().features(),
            homepage=description.homepage,
            license=description.license,
            citation=description.citation,
        )

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        dataset, folder = self.reader(self.config), self.config.data_dir
        if not folder:
            raise ValueError(
                f"{type(self).__name__} needs the folder of the data set: data_dir=... It is handed out at "
                f"{self.reader.description.homepage}."
            )
        report = CheckReport(dataset, Path(folder), survey_source(dataset, Path(folder)))
        hint = "Pass allow_missing=True to take null for what is not there."
        report.refuse_missing(self.config.allow_missing, hint)
        names = sorted(key.partition("/")[2] for key in report.damaged_scenes())
        report.refuse_damaged(False, f"Pass exclude={names} to leave the scenes out." if names else "")
        scenes = report.survey.scenes
        return [
            datasets.SplitGenerator(name=split, gen_kwargs={"scenes": scenes_of_split})
            for split in SPLITS
            if (scenes_of_split := [scene for scene in scenes if scene.split == split])
        ]

    def _generate_examples(self, scenes: list[Scene]) -> Iterator[tuple[Any, dict[str, Any]]]:
        maker = RowMaker(self.reader(self.config))
        for scene in scenes:
            for row in maker.rows(scene):
                yield row.row_id, row.encoded(maker.metadata)
