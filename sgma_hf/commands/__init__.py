"""The console command `sgma-hf <command> [arguments]`; each command is a module with a `main(argv)`."""

import importlib
import sys

from sgma_hf.data.command_line import OWN_MODULES, did_you_mean, import_own_module, report_errors


# Command -> (module, one line of help). Modules are imported when their command is called: `sgma-hf --help` answers
# at once, and a missing extra stops only the commands that need it.
COMMANDS = {
    "train": ("sgma_hf.commands.train", "train a model on a dataset of rows with nullable modalities"),
    "evaluate": ("sgma_hf.commands.evaluate", "score a checkpoint on every combination of its modalities"),
    "predict": ("sgma_hf.commands.predict", "predict a label map from the rasters at hand"),
    "change": ("sgma_hf.commands.change", "say what changed between two maps of a place, and what may explain it"),
    "recolour": ("sgma_hf.commands.recolour", "give classes other colours, in a checkpoint or in maps"),
    "report": ("sgma_hf.commands.report", "write a page of maps, areas and scores that opens anywhere"),
    "app": ("sgma_hf.commands.app", "serve a page to try a model on, or write it as a Hugging Face Space"),
    "demo": ("sgma_hf.commands.demo", "train, evaluate and predict on procedural scenes"),
    "reproduce": (
        "sgma_hf.commands.reproduce",
        "run an experiment of the paper from end to end, by a recipe",
    ),
    "plot-dynamics": ("sgma_hf.commands.plot_dynamics", "draw how each modality learned over a training run"),
    "push-to-hub": ("sgma_hf.commands.push_to_hub", "push a checkpoint with its processor, code and card to the Hub"),
    "export": ("sgma_hf.commands.export", "write a checkpoint as a torch.export program or as ONNX"),
    "benchmark": ("sgma_hf.commands.benchmark", "measure the cost of fusion and of missing modalities"),
    "compare": ("sgma_hf.commands.compare", "train arms x seeds on one data set, one JSON line per run"),
    "results-card": ("sgma_hf.commands.results_card", "write the results card of a comparison from its JSON lines"),
    "inspect": ("sgma_hf.commands.inspect_folder", "say what a folder of rasters holds, and how to convert it"),
    "convert-rasters": ("sgma_hf.converters.raster_folders", "turn folders of rasters into a dataset"),
    "demo-scenes": ("sgma_hf.converters.demo_scenes", "write a dataset of procedural scenes"),
    "demo-series": ("sgma_hf.converters.demo_series", "write a dataset of made-up fields with many dates"),
    "isprs-potsdam": ("sgma_hf.converters.isprs_potsdam", "check or convert ISPRS Potsdam: RGB, NIR, height"),
    "isprs-vaihingen": ("sgma_hf.converters.isprs_vaihingen", "check or convert ISPRS Vaihingen: IRRG, height"),
    "dfc2023": ("sgma_hf.converters.dfc2023", "check or convert DFC2023: RGB, height, SAR; buildings"),
    "deliver": ("sgma_hf.converters.deliver", "check or convert DELIVER: RGB, depth, events, lidar"),
    "pastis": ("sgma_hf.converters.series.pastis", "check or convert PASTIS: a year of Sentinel-2 and -1; crops"),
    "multisenge": (
        "sgma_hf.converters.series.multisenge",
        "check or convert MultiSenGE: a year of Sentinel-2 and -1; land use",
    ),
}


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: sgma-hf [--import MODULE] <command> [arguments]",
            "",
            "commands:",
            *lines,
            "",
            "`sgma-hf <command> --help` has the rest. `--import` is for modules that register fusions or encoders of",
            "your own, from the working folder or installed; it can be repeated.",
        ]
    )


@report_errors("sgma-hf")
def main(argv: list[str] | None = None) -> int:
    """Import the modules that `--import` names, and run the command that the next argument names.

    Args:
        argv: Arguments without the program's name; None takes those of the process.

    Returns:
        The exit status: that of the command, or 2 where no known command is named or a module cannot be imported.
    """
    argv = sys.argv[1:] if argv is None else argv
    OWN_MODULES.clear()
    while argv and argv[0] == "--import":
        if len(argv) == 1:
            raise ValueError("--import names no module; expected `--import MODULE` in front of the command")
        import_own_module(argv[1])
        OWN_MODULES.append(argv[1])
        argv = argv[2:]
    if argv and argv[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if not argv:
        print(f"sgma-hf: no command given\n\n{_usage()}", file=sys.stderr)
        return 2
    command = argv[0].replace("_", "-")
    if command not in COMMANDS:
        hint = did_you_mean(command, COMMANDS) or "; `sgma-hf --help` lists them"
        print(f"sgma-hf: there is no command {argv[0]}{hint}", file=sys.stderr)
        return 2
    module, _ = COMMANDS[command]
    try:
        return importlib.import_module(module).main(argv[1:]) or 0
    finally:
        OWN_MODULES.clear()
