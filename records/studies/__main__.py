"""python -m records.studies [NAME [--train]]: try a paper's claim here, and write records/studies/NAME/.

Without a name: the studies and their claims. --train: for a study of trainings, run those that its folder
lacks first, one after the other; without it the page is made of the runs that are there.
"""

import argparse
import sys
import time

from records import RecordError
from records.run.signals import say
from records.studies import (
    of_budgets,
    of_comparisons,
    of_designs,
    of_matrices,
    of_noise,
    of_proxies,
    of_stages,
    of_trainings,
)
from records.studies.page import Study, write_index, write_page

ROOMS = (of_matrices, of_comparisons, of_trainings, of_designs, of_stages, of_noise, of_budgets, of_proxies)
STUDIES: dict[str, Study] = {study.name: study for room in ROOMS for study in room.STUDIES}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m records.studies", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("name", nargs="?", choices=sorted(STUDIES))
    parser.add_argument("--train", action="store_true", help="run the trainings that are missing")
    options = parser.parse_args(arguments)
    if options.name is None:
        say("\n".join(f"{name}: {study.claim}" for name, study in STUDIES.items()))
        return 0
    study, began = STUDIES[options.name], time.perf_counter()
    try:
        findings = study.find(options.train)
    except RecordError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(write_page(study, findings, (time.perf_counter() - began) / 60))
    print(write_index(STUDIES.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
