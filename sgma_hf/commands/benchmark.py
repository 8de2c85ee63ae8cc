"""`sgma-hf benchmark`: what fusion, missing modalities and the sampling branch cost in time and memory.

Times the training step and the inference of SGMA beside mean fusion with the same encoder and head and beside the bare
encoder, all in the paper's form, and of SGMA with the adapters and the Dice loss that the package adds by default.
Measures their peaks of memory, the operators that the host dispatches and how often it waits for a GPU, the loading
of data, and the evaluation of all combinations of modalities.
With `--sweep`, again for other numbers of modalities and classes, sizes, and shares of modalities present.
"""

from dataclasses import dataclass, field, fields

from sgma_hf.commands.arguments import DataclassParser
from sgma_hf.commands.checkpoint_arguments import choose_device
from sgma_hf.data.command_line import report_errors
from sgma_hf.data.whole_files import write_json
from sgma_hf.training import PVT_V2_SIZES


# What the figures that are measured alone are not of.
_OF_MANY = ("num_dates", "sweep", "bf16", "gaps", "compiled")


@dataclass
class BenchmarkArguments:
    """Arguments of `sgma-hf benchmark`."""

    backbone_config: str = field(default="pvt_v2_b2", metadata={"choices": list(PVT_V2_SIZES), "help": "Encoder."})
    size: int = field(default=256, metadata={"help": "Side of the square images in pixels."})
    batch_size: int = field(default=1, metadata={"help": "Images per pass."})
    num_modalities: int = field(default=3, metadata={"help": "Modalities; the first has three bands, others one."})
    num_dates: int = field(default=1, metadata={"help": "Images of each modality, each of a date."})
    num_labels: int = field(default=5, metadata={"help": "Classes."})
    decoder_hidden_size: int = field(default=128, metadata={"help": "Width of the decode head."})
    logits_stride: int = field(
        default=4, metadata={"choices": [4, 2, 1], "help": "Pixels a side of the cells of the logits."}
    )
    repeats: int = field(default=15, metadata={"help": "Rounds; the median over them is reported."})
    threads: int = field(default=1, metadata={"help": "Threads of torch."})
    seed: int = field(default=0, metadata={"help": "Seed of weights and images."})
    output: str | None = field(default=None, metadata={"help": "JSON file to write the figures to."})
    memory: bool = field(default=True, metadata={"help": "Measure peaks of memory, each in a process of its own."})
    sweep: bool = field(
        default=False, metadata={"help": "Also vary one number at a time, over the lists below; takes many minutes."}
    )
    sweep_modalities: list[int] = field(
        default_factory=lambda: [1, 2, 3, 4, 5], metadata={"help": "Numbers of modalities of the sweep."}
    )
    sweep_labels: list[int] = field(
        default_factory=lambda: [2, 5, 10, 25], metadata={"help": "Numbers of classes of the sweep."}
    )
    sweep_sizes: list[int] = field(
        default_factory=lambda: [128, 256, 384, 512], metadata={"help": "Sides of the images of the sweep, in pixels."}
    )
    sweep_present: list[int] = field(
        default_factory=lambda: [1, 2, 3],
        metadata={"help": "How many of the modalities are present, in the sweep; more than there are is left out."},
    )
    sweep_dates: list[int] = field(default_factory=lambda: [1, 5, 20], metadata={"help": "Dates of the sweep."})
    sweep_repeats: int = field(default=5, metadata={"help": "Rounds for each point of the sweep."})
    overlap_model: str | None = field(
        default=None,
        metadata={"help": "Checkpoint: measure how much neighbouring tiles of a scene disagree, and nothing else."},
    )
    overlap_rasters: list[str] | None = field(
        default=None, metadata={"help": "The scene, MODALITY=FILE for each; two tiles wide, one high, or larger."}
    )
    raster_throughput: bool = field(
        default=False,
        metadata={
            "help": "Measure how fast GeoTIFFs become a map, by tiles of --size, against the bare model on the same "
            "tiles in memory, and nothing else. Takes the extra geo."
        },
    )
    raster_tiles: int = field(default=4, metadata={"help": "Tiles along each side of the scene of that."})
    device: str = field(default="cpu", metadata={"help": "Where the models run: cpu, cuda, ..."})
    bf16: bool = field(default=False, metadata={"help": "Autocast to bfloat16."})
    gaps: bool = field(default=False, metadata={"help": "Let one modality end inside the images: masks per pixel."})
    compiled: bool = field(
        default=False,
        metadata={"help": "Compile the models by torch.compile; only time and memory are measured."},
    )

    def __post_init__(self):
        for name in ("size", "batch_size", "num_modalities", "num_dates", "num_labels", "repeats", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"`--{name}` is {getattr(self, name)}; expected at least 1.")
        if self.overlap_rasters and self.overlap_model is None:
            raise ValueError("`--overlap_rasters` is the scene for an `--overlap_model`; name that, or leave it out.")
        alone = [name for name in ("overlap_model", "raster_throughput") if getattr(self, name)]
        ignored = [name for name in _OF_MANY if getattr(self, name) != getattr(BenchmarkArguments, name)]
        if alone and alone[1:] + ignored:
            names = ", ".join(f"`--{name}`" for name in alone[1:] + ignored)
            raise ValueError(f"`--{alone[0]}` measures that alone, without {names}; leave one of the two out.")


@report_errors("sgma-hf benchmark", on_stop="--output holds what was measured so far")
def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    (args,) = DataclassParser(BenchmarkArguments, prog="sgma-hf benchmark", description=__doc__).parse(argv)

    import torch

    from sgma_hf.commands.benchmark_sections import measure_sections
    from sgma_hf.cost.timing import BenchmarkCase
    from sgma_hf.publishing.record import hardware_name

    torch.set_num_threads(args.threads)
    processor = hardware_name(torch.device(choose_device(args.device)))
    machine = {"processor": processor, "torch": torch.__version__, "threads": args.threads}
    given = vars(args) | {"backbone_config": {"model_type": "pvt_v2", **PVT_V2_SIZES[args.backbone_config]}}
    case = BenchmarkCase(**{item.name: given[item.name] for item in fields(BenchmarkCase) if item.name in given})
    print(f"{machine['processor']}, torch {machine['torch']}, {machine['threads']} thread(s)\n", flush=True)
    figures = {"arguments": vars(args), "machine": machine}
    for measured, text in measure_sections(args, case):
        figures |= measured
        print(f"{text}\n", flush=True)
        if args.output is not None:
            write_json(args.output, figures)
    return 0
