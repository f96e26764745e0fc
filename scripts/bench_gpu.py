"""Memory and time of the losses on a GPU, forward and backward, against open_clip's, D = 512.

python scripts/bench_gpu.py [--only NAME ...] [--repeats 5] [--json FILE]

The steps are those of `bench_loss.py`. Memory: the peak that PyTorch allocates beyond what was there before
the step. Where there is no GPU nothing is measured.
"""

import torch
from bench_loss import ANCHOR, SMALL, WHOLE, ours, theirs
from measure import Bench, Prepare, Row, Step, compared, main, row

from vlalign.registry import OBJECTIVES

SIZES = {"8k": 8192, "32k": 32_768}


def whole(side: Prepare, rows: int, objective: str) -> Step:
    """A step that ends when the GPU has done it."""
    step = side(rows, objective, device="cuda")

    def done() -> None:
        step()
        torch.cuda.synchronize()

    return done


def peak(side: Prepare, rows: int, objective: str) -> float:
    """MiB of a step, the second of its process."""
    step = whole(side, rows, objective)
    step()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def against(objective: str, repeats: int) -> list[Row]:
    """Time and memory beside the anchor."""
    anchor, found = ANCHOR[objective], []
    for name, rows in SIZES.items():
        costs = [[peak(side, rows, objective) for _ in range(repeats)] for side in (ours, theirs)]
        found.append(row(f"{objective} GPU memory at {name}", anchor, *costs, target=None, unit="MiB"))
        steps = (whole(side, rows, objective) for side in (ours, theirs))
        found.append(
            compared(
                f"{objective} GPU time at {name}", anchor, *steps,
                target=None, repeats=repeats, at_most=True,
            )
        )  # fmt: skip
    return found


def beside(objective: str, repeats: int) -> Row:
    """Time of an objective at 32k over that of our own contrast."""
    whole(ours, SMALL, objective)()
    steps = (whole(ours, SIZES["32k"], name) for name in (objective, "info_nce"))
    name = f"{objective} over info_nce, GPU time at 32k"
    return compared(name, "our info_nce", *steps, target=None, repeats=repeats, at_most=True)


def present(bench: Bench) -> Bench:
    """The same where there is a GPU, else no rows."""
    return lambda repeats: bench(repeats) if torch.cuda.is_available() else []


BENCHES: dict[str, Bench] = {
    "gpu_info_nce": present(lambda repeats: against("info_nce", repeats)),
    "gpu_sigmoid": present(lambda repeats: against("sigmoid", repeats)),
    "gpu_objectives": present(
        lambda repeats: [beside(name, repeats) for name in OBJECTIVES.names() if name not in WHOLE]
    ),
}

if __name__ == "__main__":
    main(BENCHES, __doc__)
