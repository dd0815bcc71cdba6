"""What logs show: reading them, doubts, statistics, comparison, the rules."""
