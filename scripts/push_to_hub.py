"""Push a checkpoint with its processor, code and card to the Hub.

Example:
    python scripts/push_to_hub.py --model outputs/weedmap --repo_id org/sgma-weedmap
"""

import sys

from sgma_hf.commands.push_to_hub import main


if __name__ == "__main__":
    sys.exit(main())
