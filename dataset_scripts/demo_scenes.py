"""Write procedural scenes with colour, height and near infrared as a dataset.

Example:
    python dataset_scripts/demo_scenes.py --output data/demo --tiles 240 --tile_size 128
"""

import sys

from sgma_hf.converters.demo_scenes import main


if __name__ == "__main__":
    sys.exit(main())
