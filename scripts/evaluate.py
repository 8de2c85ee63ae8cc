"""Score a checkpoint on every non-empty combination of its modalities.

Example:
    python scripts/evaluate.py --model outputs/weedmap --dataset data/weedmap --split validation --output results.json
"""

import sys

from sgma_hf.commands.evaluate import main


if __name__ == "__main__":
    sys.exit(main())
