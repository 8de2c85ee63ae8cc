"""What modalities, classes and models may be; without torch and transformers, for those who read rasters alone."""

import re


# A modality name is also a column of the data set, a command-line flag and a part of output file names.
RESERVED_MODALITY_NAMES = frozenset(
    "allow_other_scale areas assets bands batch_size bbox bf16 classes config coverage dataset date_table dates "
    "device dtype extras format fp16 help id image images index label label_all_touched label_attribute "
    "label_background label_buffer label_date label_extent label_priority labels like map mask mask_values min_area "
    "min_confidence missing modalities modality modality_mask model nodata num_workers out output pixel_values plot "
    "polygons preview processor reliance_by resampling resolution resume robustness scene_by scenes score_classes "
    "scoring_label seed sequence shard sieve source split stride tile tile_size tta zone_by zones".split()
)
ROW_COLUMNS = ("id", "label", "scoring_label", "sequence", "label_date", "preview")  # beside the modalities
# Days: a year and its parts, by which a model of satellites' series knows the season.
YEARLY_PERIODS = (365.25, 182.6, 121.75, 91.3, 60.9)
DATES_SUFFIX = "_dates"  # of the column that says when the rasters of a modality's series were taken
MAX_MODALITIES = 64
MAX_CHANNELS = 4096  # per modality; hyperspectral sensors have a few hundred bands
IGNORE_INDEX = 255  # of a pixel without a label; label maps are uint8
MAX_LABELS = IGNORE_INDEX
MAX_DATE_PERIODS = 64
MAX_IMAGE_SIDE = 65_536  # pixels of a window or of a resized image
# Defaults of a model, which commands name in their help.
MODALITY_ADAPTER_SIZE = 16
DICE_LOSS_WEIGHT = 1.0


def check_modalities(modalities, modality_channels):
    """Raise ValueError unless two parallel lists, names and numbers of bands, describe the modalities of a model."""
    if not 1 <= len(modalities) <= MAX_MODALITIES:
        raise ValueError(f"`modalities` has {len(modalities)} entries; expected 1 to {MAX_MODALITIES} names.")
    if len(modalities) != len(modality_channels):
        raise ValueError(
            f"`modalities` has {len(modalities)} entries and `modality_channels` has {len(modality_channels)}; "
            "they are parallel lists, so give one channel count per modality."
        )
    for name in modalities:
        if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise ValueError(
                f"Modality name {name!r} is malformed; use lower-case letters, digits and underscores, letter first."
            )
        if name in RESERVED_MODALITY_NAMES or name.endswith(DATES_SUFFIX):
            raise ValueError(f"Modality name {name!r} is reserved for a column or a flag; choose another name.")
    repeated = sorted({name for name in modalities if list(modalities).count(name) > 1})
    if repeated:
        raise ValueError(f"`modalities` repeats {repeated}; every modality needs a name of its own.")
    for name, channels in zip(modalities, modality_channels, strict=True):
        if isinstance(channels, bool) or not isinstance(channels, int) or not 1 <= channels <= MAX_CHANNELS:
            raise ValueError(f"Modality {name!r} has {channels!r} channels; expected 1 to {MAX_CHANNELS}.")


def check_num_labels(num_labels):
    """Raise ValueError unless a number of classes is 2 to 255."""
    if isinstance(num_labels, bool) or not isinstance(num_labels, int) or not 2 <= num_labels <= MAX_LABELS:
        raise ValueError(
            f"`num_labels` is {num_labels!r}; expected 2 to {MAX_LABELS} classes. "
            "For one class against the rest use 2, with the rest as class 0."
        )
