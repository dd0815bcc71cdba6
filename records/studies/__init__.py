"""Claims of papers, tried on this machine: `python -m records.studies NAME`."""
