"""Run the mutants: python -m tests.mutants"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed

from . import Mutant, MutantError, every_mutant
from .runner import control, judge


def tell(mutant: Mutant) -> tuple[bool, str]:
    """Whether `mutant` is caught, and a line about it."""
    began = time.monotonic()
    try:
        verdict = judge(mutant)
    except MutantError as error:
        return False, f"BROKEN    {error}"
    seconds = time.monotonic() - began
    if verdict.caught:
        return True, f"caught    {mutant.name} ({seconds:.0f} s) by {verdict.by}"
    return False, f"SURVIVED  {mutant.name} ({seconds:.0f} s): {mutant.row}; {', '.join(mutant.tests)} passed"


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/mutants", description="Break asyncfetch on purpose; tests must fail.")
    parser.add_argument("-k", metavar="TEXT", action="append", help="only those with TEXT in their name or row")
    parser.add_argument("-j", type=int, default=2, metavar="N", help="so many at once (default %(default)s)")
    parser.add_argument("--list", action="store_true", help="names and rows, and run nothing")
    parser.add_argument("--no-control", action="store_true", help="do not run the tests on the unbroken source first")
    options = parser.parse_args()
    chosen = [one for one in every_mutant() if not options.k or any(k in f"{one.name} {one.row}" for k in options.k)]
    if options.list or not chosen:
        print(*(f"{mutant.name:45} {mutant.row}" for mutant in chosen), sep="\n")
        return 0 if chosen else 2
    if not options.no_control:
        try:
            control(chosen)
        except MutantError as error:
            print(error)
            return 1
    caught = 0
    with ThreadPoolExecutor(options.j) as pool:
        for future in as_completed([pool.submit(tell, mutant) for mutant in chosen]):
            good, line = future.result()
            caught += good
            print(line, flush=True)
    print(f"{len(chosen)} mutants, {caught} caught")
    return 0 if caught == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
