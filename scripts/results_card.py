"""Write the results card of a comparison from its JSON lines.

Example:
    python scripts/results_card.py --results runs/compare.jsonl --output model_cards/results_mine.md
"""

import sys

from sgma_hf.commands.results_card import main


if __name__ == "__main__":
    sys.exit(main())
