"""Training: datasets, the loop (lightning-fabric confined to ``engine``), schedules, checkpoints."""
