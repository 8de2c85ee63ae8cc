"""Write procedural scenes with colour, height and near infrared as a dataset.

Example:
    python dataset_scripts/demo_scenes.py --out data/demo --tiles 240 --size 128
"""

import sys

from sgma_hf.converters.demo_scenes import main


if __name__ == "__main__":
    sys.exit(main())
