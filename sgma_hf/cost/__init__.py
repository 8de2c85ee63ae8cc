"""What fusion and missing modalities cost: time, memory, throughput.

Imports the rooms from `model` to `evaluation`. Enter at `timing.BenchmarkCase` and `timing.measure_case`;
`sgma-hf benchmark` prints it all. Ratios are taken between models that are timed in turn, so that a busy machine slows
both.
"""
