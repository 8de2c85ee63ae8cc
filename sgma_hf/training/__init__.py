"""Training on transformers' `Trainer`. Imports the rooms from `model` to `evaluation`.

Enter by `trainer.SgmaTrainer` with `arguments.SgmaTrainingArguments`; `sgma-hf train` makes its rows and model by
`start.start_training`. `collator` makes a batch, `row_sampling` orders the rows, `statistics` and `dynamics` record.
An augmentation is added to `collator.RowDraws`, last of its draws, and to `SgmaDataCollator`, with its argument.
"""
