"""Run the mutants: python -m tests.mutants"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed

from . import LostError, Mutant, MutantError, every_mutant
from .check import flaws, follow
from .runner import control, judge


def tell(mutant: Mutant) -> tuple[str, str]:
    """What became of `mutant`, and a line about it."""
    began = time.monotonic()
    try:
        verdict = judge(mutant)
    except MutantError as error:
        return "broken", f"BROKEN    {error}"
    name = f"{mutant.name} ({time.monotonic() - began:.0f} s)"
    if verdict.outcome == "caught":
        return "caught", f"caught    {name} by {verdict.by}"
    return verdict.outcome, f"{verdict.outcome.upper():9} {name}: {mutant.row}; {', '.join(mutant.tests)}"


def check(*, fix: bool) -> int:
    """Say which mutants have lost their place, or move them to where their code is now."""
    found = list(flaws(every_mutant()))
    if fix:
        print(f"{follow(error for error in found if isinstance(error, LostError))} mutants follow their code")
        found = [error for error in found if not isinstance(error, LostError) or len(error.now) != 1]
    for error in found:
        print(error)
    return 1 if found else 0


def run(chosen: list[Mutant], at_once: int) -> int:
    """Run them all, and say what became of each."""
    counts: Counter[str] = Counter()
    with ThreadPoolExecutor(at_once) as pool:
        for future in as_completed([pool.submit(tell, mutant) for mutant in chosen]):
            outcome, line = future.result()
            counts[outcome] += 1
            print(line, flush=True)
    others = "".join(
        f", {counts[outcome]} {outcome}" for outcome in ("skipped", "survived", "broken") if counts[outcome]
    )
    print(f"{len(chosen)} mutants, {counts['caught']} caught{others}")
    return 1 if counts["survived"] or counts["broken"] else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/mutants", description="Break asyncfetch: tests must fail.")
    parser.add_argument("-k", metavar="TEXT", action="append", help="only those with TEXT in their name or row")
    parser.add_argument("-j", type=int, default=2, metavar="N", help="so many at once (default %(default)s)")
    parser.add_argument("--list", action="store_true", help="names and rows, and run nothing")
    parser.add_argument("--no-control", action="store_true", help="do not run the tests on the unbroken source first")
    parser.add_argument("--check", action="store_true", help="whether each finds its code and its tests; seconds")
    parser.add_argument("--fix", action="store_true", help="like --check, and those whose code has moved follow it")
    options = parser.parse_args()
    if options.check or options.fix:
        return check(fix=options.fix)
    chosen = [one for one in every_mutant() if not options.k or any(k in f"{one.name} {one.row}" for k in options.k)]
    if options.list or not chosen:
        print(*(f"{mutant.name:45} {mutant.row}" for mutant in chosen), sep="\n")
        return 0 if chosen else 2
    if not options.no_control:
        try:
            control(chosen, options.j)
        except MutantError as error:
            print(error)
            return 1
    return run(chosen, options.j)


if __name__ == "__main__":
    sys.exit(main())
