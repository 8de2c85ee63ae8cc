"""Write made-up fields, whose crops differ in their course through the year, as a dataset.

Example:
    python dataset_scripts/demo_series.py --output data/series --rows 480
"""

import sys

from sgma_hf.converters.demo_series import main


if __name__ == "__main__":
    sys.exit(main())
