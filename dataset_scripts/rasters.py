"""Turn folders of rasters into a dataset.

Example:
    python dataset_scripts/rasters.py --source weedmap --output data/weedmap --modalities nir red green --label label
"""

import sys

from sgma_hf.converters.raster_folders import main


if __name__ == "__main__":
    sys.exit(main())
