"""`sgma-hf export`: a checkpoint as a torch.export program or as ONNX.

    sgma-hf export --model DIR_OR_ID --output model.pt2 --size 512
    sgma-hf export --model DIR_OR_ID --output model.onnx --size 512

Inputs: `pixel_values`, float32 (batch_size, channels, height, width), normalised as by the image processor, and
`modality_mask`, bool (batch_size, num_modalities), or with `--pixel_mask` (batch_size, num_modalities, height, width).
Outputs: `logits`, float32 (batch_size, num_labels, height, width); with `--outputs logits robustness coverage` also
`coverage`, bool (batch_size, height, width), True where any modality covers the pixel, and `robustness`, float32
(batch_size, num_modalities, height, width), shares that sum to 1 there. The batch size is free. Height and width are
those of --size, since predictions are made by tiles of one size, and a fixed one lets the compiler lay everything out;
with --dynamic_size they are any multiples of 32 from 64 on. Other sides would need a graph for each remainder, for
padding and cropping. What the image processor does is described in a JSON file beside the model. A graph computes
absent modalities, too, and gives them no weight: printed is the time of one image with all of them and with one
missing, of the file and of the model, which skips what is absent. ONNX takes the extra `onnx`.
"""

import argparse

from sgma_hf.commands.checkpoint_arguments import check_checkpoint, load_model
from sgma_hf.data.command_line import Parser, report_errors


_OUTPUTS = ("logits", "robustness", "coverage")


def _parser() -> Parser:
    parser = Parser(prog="sgma-hf export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, metavar="DIR_OR_ID", help="checkpoint: a folder, or an id on the Hub")
    add("--output", required=True, metavar="FILE", help="file to write: .pt2 for torch.export, .onnx for ONNX")
    add("--size", type=int, metavar="PIXELS", help="height and width of the images; default: that of training")
    parser.add_switch("--pixel_mask", help="take a mask per pixel instead of one per modality")
    parser.add_switch("--dynamic_size", help="take images whose sides are any multiples of 32 pixels, from 64 on")
    names = " ".join(_OUTPUTS)
    add("--outputs", nargs="+", choices=_OUTPUTS, default=["logits"], metavar="NAME", help=f"some of: {names}")
    return parser


@report_errors("sgma-hf export")
def main(argv: list[str] | None = None) -> None:
    """Export, check the result against the model, and say what was written."""
    args = _parser().parse_args(argv)
    check_checkpoint(args.model)

    from transformers import AutoImageProcessor

    from sgma_hf.prediction.export import check_export_path, export_model

    output = check_export_path(args.output)  # before the weights are loaded
    difference, latencies = export_model(
        load_model(args.model, dtype="float32", device="cpu"),
        AutoImageProcessor.from_pretrained(args.model),
        output,
        size=args.size,
        pixel_mask=args.pixel_mask,
        dynamic_size=args.dynamic_size,
        outputs=[name for name in _OUTPUTS if name in args.outputs],
    )
    print(f"{output}  largest difference to the model: {difference:.1e} of the largest value")
    print(f"{output.with_suffix('.json')}  modalities, normalisation and classes")
    for name, seconds in latencies.items():
        print(f"{1000 * seconds:8.1f} ms  {name}")
