"""Every benchmark against its anchor package, as one table.

python scripts/bench_all.py                                  every row
python scripts/bench_all.py --only loss_time --json FILE     these; the other rows of FILE stay
python scripts/bench_all.py --json FILE --readme README.md   run nothing; write FILE's table into the README

Needs the extra `bench`. Run it on a quiet machine.
"""

from importlib import import_module
from pathlib import Path

from measure import Bench, main


def discovered() -> dict[str, Bench]:
    """The benches of every other scripts/bench_*.py, by name. Raises ValueError when two share one."""
    benches: dict[str, Bench] = {}
    for path in sorted(Path(__file__).parent.glob("bench_*.py")):
        if path.stem == Path(__file__).stem:
            continue
        own = import_module(path.stem).BENCHES
        if shared := benches.keys() & own:
            raise ValueError(f"{path.name} names the bench '{min(shared)}' again")
        benches |= own
    return benches


if __name__ == "__main__":
    main(discovered(), __doc__)
