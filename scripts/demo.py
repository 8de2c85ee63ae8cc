"""Train, evaluate on every combination of modalities, save, reload and predict, on procedural scenes.

Example:
    python scripts/demo.py --output_dir demo_output
"""

import sys

from sgma_hf.commands.demo import main


if __name__ == "__main__":
    sys.exit(main())
