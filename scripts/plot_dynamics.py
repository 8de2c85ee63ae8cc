"""Draw how each modality learned over a training run.

Example:
    python scripts/plot_dynamics.py --run outputs/weedmap --output dynamics.png
"""

import sys

from sgma_hf.commands.plot_dynamics import main


if __name__ == "__main__":
    sys.exit(main())
