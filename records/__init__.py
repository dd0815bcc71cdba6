"""Records: read any log of the benchmark, judge it, compare entries, submit one. Never imports torch."""
