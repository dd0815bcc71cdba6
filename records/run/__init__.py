"""What the trainer reads and writes: recipe, track, log, and the run as one script."""
