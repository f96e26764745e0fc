"""What one process cannot do ends the run for all of them, and is told once."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from vlalign.train.peers import Peers
from vlalign.types import UserError

LINGER = 3.0  # seconds: a launcher ends all when one has left, and the main process has something to tell


@contextmanager
def together(runtime: Peers, soon: bool = False) -> Iterator[None]:
    """Inside, each process acts alone, so that none waits for one that failed; after it all go on, or none.

    `soon`: whether it is short work, for which the slowest process is waited for minutes and not hours.
    Raises the UserError of the first that had one in the main process, and SystemExit in the others.
    """
    failure = None
    try:
        yield
    except UserError as error:
        failure = error
    if not soon:
        runtime.barrier()
    if runtime.total(int(failure is not None)):
        told = next(one for one in runtime.gather(failure) if one is not None)
        if runtime.main:
            raise told from told.__cause__
        time.sleep(LINGER)
        raise SystemExit(2)
