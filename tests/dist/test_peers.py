"""What is told when a process dies or hangs, and how long the others wait for it."""

import os
import socket
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as torch_dist

from vlalign.train import peers
from vlalign.train.peers import MINUTES, Peers, patience
from vlalign.types import RecipeError, UserError

WORLD, ODD = 3, 1


def process(rank: int, how: str, folder: str, port: int) -> None:
    """Writes what it ends with into `folder/rank`."""
    torch.set_num_threads(1)
    peers.GRACE = 3.0
    os.environ |= {MINUTES: "0.05", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch_dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    us = Peers(rank, WORLD)
    told = f"total {us.total(rank)}, everyone {us.gather(str(rank))}"
    if rank == ODD and how == "dies":
        os._exit(9)
    if rank == ODD and how in ("hangs", "slow"):
        time.sleep(12 if how == "hangs" else 5)
    try:
        if how == "slow":
            us.barrier()
        us.total(1)
    except RuntimeError as error:
        try:
            us.explain(error)
        except UserError as explained:
            told = str(explained)
        except SystemExit as left:
            told = f"left with {left.code}"
    (Path(folder) / str(rank)).write_text(told, encoding="utf-8")
    os._exit(0)  # as a process that failed: it takes no leave of the others


def ends(how: str, folder: Path) -> list[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    them = [context.Process(target=process, args=(rank, how, str(folder), port)) for rank in range(WORLD)]
    for one in them:
        one.start()
    for one in them:
        one.join(60)
    return [(folder / str(rank)).read_text() for rank in range(WORLD) if (folder / str(rank)).exists()]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["dies", "hangs"])
def test_the_first_process_names_the_one_that_does_not_answer(tmp_path, how):
    told, *others = ends(how, tmp_path)
    did = {"dies": "1 has ended", "hangs": "1 has not answered within 0.05 minutes"}[how]
    assert told.startswith(f"of 3 processes, {did}, so the others leave") and "last checkpoint" in told
    assert others[-1] == "left with 1"


@pytest.mark.slow
def test_meeting_waits_longer_than_a_step_does(tmp_path):
    assert ends("slow", tmp_path) == [f"total 3, everyone {['0', '1', '2']}"] * WORLD


@pytest.mark.parametrize("asked", ["0", "-1", "soon", "inf", "nan"])
def test_a_time_out_that_is_none_is_refused(monkeypatch, asked):
    monkeypatch.setenv(MINUTES, asked)
    with pytest.raises(RecipeError, match=f"{MINUTES}: must be a number of minutes above 0, got '{asked}'"):
        patience()


def test_alone_one_hears_oneself():
    us = Peers(0, 1)
    assert (us.total(3), us.gather("here"), us.main) == (3, ["here"], True)
    us.barrier()
    us.explain(RuntimeError("gloo: Connection closed by peer"))  # nobody to blame: the error goes on as it is
