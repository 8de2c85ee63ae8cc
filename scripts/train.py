"""Train SGMA on a dataset whose rows may lack modalities.

Example:
    python scripts/train.py --dataset data/weedmap --output_dir outputs/weedmap --max_steps 500
"""

import sys

from sgma_hf.commands.train import main


if __name__ == "__main__":
    sys.exit(main())
