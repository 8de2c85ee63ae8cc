"""Export a checkpoint as a torch.export program or as ONNX.

Example:
    python scripts/export.py --model outputs/weedmap --output weedmap.onnx --size 256
"""

import sys

from sgma_hf.commands.export import main


if __name__ == "__main__":
    sys.exit(main())
