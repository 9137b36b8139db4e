"""`python -m tests.faults` runs the whole matrix (half an hour) and writes docs/reliability.md."""

import sys

from tests.faults.cell import try_out
from tests.faults.matrix import cells
from tests.faults.page import PAGE, page


def main() -> int:
    """Run all cells; 1 if one ends otherwise than it must."""
    outcomes, failures = {}, 0
    for number, cell in enumerate(every := cells(), 1):
        outcome = outcomes[cell] = try_out(cell)
        failures += bool(outcome.wrong)
        print(f"{number}/{len(every)} {cell}: {outcome.wrong or outcome.text}, {outcome.seconds:.1f} s", flush=True)
    PAGE.write_text(page(outcomes), encoding="utf-8")
    print(f"{PAGE}: {len(every) - failures} of {len(every)} as they must")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
