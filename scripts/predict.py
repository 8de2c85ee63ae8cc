"""Predict a label map, a colour picture and robustness maps from the rasters at hand.

Example:
    python scripts/predict.py --model outputs/weedmap --nir nir.png --red red.png --output map.png
"""

import sys

from sgma_hf.commands.predict import main


if __name__ == "__main__":
    sys.exit(main())
