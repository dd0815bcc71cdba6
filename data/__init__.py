"""Where training data comes from: one module per source, all writing the shards of `data/shards.py`."""
