"""What fusion and missing modalities cost: time, memory, throughput."""
