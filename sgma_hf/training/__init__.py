"""Training on transformers' `Trainer`. Imports the rooms from `model` to `evaluation`.

Enter by `trainer.SgmaTrainer` with `arguments.SgmaTrainingArguments`; `sgma-hf train` makes its rows and model by
`start.start_training`. `collator` makes a batch, `row_sampling` orders the rows, `statistics` and `dynamics` record.
Which weights learn, and how fast, is in `fine_tuning`.
What a sensor varies by is a kind of `augmentation`. Another draw is added to `collator.RowDraws`, as its last.
"""

# Encoders by name.
PVT_V2_SIZES = {
    "pvt_v2_b0": {"hidden_sizes": [32, 64, 160, 256], "depths": [2, 2, 2, 2]},
    "pvt_v2_b1": {"hidden_sizes": [64, 128, 320, 512], "depths": [2, 2, 2, 2]},
    "pvt_v2_b2": {"hidden_sizes": [64, 128, 320, 512], "depths": [3, 4, 6, 3]},
}
