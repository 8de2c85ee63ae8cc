"""Arms that differ in one thing, trained alike with several seeds, and the tables of what came of them.

It may import the rooms from `model` to `training`. Enter at `runs.execute_run` and `card.report.make_card`.
To add an arm, write an `Arm` into `arms.table`: which fields of `SgmaConfig` and of the training arguments it changes,
or the network that it builds. To show what it adds, name it and the arm without that part in `card.report.PARTS`.
"""
