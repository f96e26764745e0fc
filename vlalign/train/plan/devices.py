"""Devices as their data sheets have them, and this machine as it is measured."""

import os
import time
from dataclasses import dataclass

GIB = 2**30
MACHINE = 8  # accelerators that share a machine's own links
NETWORK = 50e9  # bytes/s of one accelerator to other machines: NVIDIA DGX H100 data sheet, 400 Gb/s each


@dataclass(frozen=True, kw_only=True)
class Device:
    """Peaks of one process's device, without sparsity. `link`: bytes/s that it sends to its neighbours.

    `reached`: the share of the peak that a step is taken to reach; `usable`: of the memory, that tensors get.
    """

    name: str
    memory: int  # bytes
    bf16: float  # FLOP/s
    fp32: float  # FLOP/s
    link: float
    reached: float = 0.4
    usable: float = 0.9
    sheet: str

    def link_of(self, processes: int) -> float:
        """Bytes/s that a process sends in a ring of so many."""
        return self.link if processes <= MACHINE else min(self.link, NETWORK)


DEVICES = {
    "h100": Device(
        name="NVIDIA H100 SXM", memory=80 * GIB, bf16=989e12, fp32=67e12, link=450e9,
        sheet="NVIDIA H100 Tensor Core GPU data sheet (NVLink, 900 GB/s both ways)",
    ),
    "h200": Device(
        name="NVIDIA H200 SXM", memory=141 * GIB, bf16=989e12, fp32=67e12, link=450e9,
        sheet="NVIDIA H200 Tensor Core GPU data sheet (NVLink, 900 GB/s both ways)",
    ),
    "a100": Device(
        name="NVIDIA A100 80GB SXM", memory=80 * GIB, bf16=312e12, fp32=19.5e12, link=300e9,
        sheet="NVIDIA A100 Tensor Core GPU data sheet (NVLink, 600 GB/s both ways)",
    ),
    "l40s": Device(
        name="NVIDIA L40S", memory=48 * GIB, bf16=362e12, fp32=91.6e12, link=32e9,
        sheet="NVIDIA L40S GPU data sheet (PCIe 4.0 x16, 64 GB/s both ways)",
    ),
    "l4": Device(
        name="NVIDIA L4", memory=24 * GIB, bf16=121e12, fp32=30.3e12, link=32e9,
        sheet="NVIDIA L4 Tensor Core GPU data sheet (PCIe 4.0 x16, 64 GB/s both ways)",
    ),
}  # fmt: skip
NAMES = (*DEVICES, "cpu")


def device(name: str, processes: int) -> Device:
    """A device of `NAMES`; `cpu` is this machine, of which each process gets its part."""
    return DEVICES[name] if name in DEVICES else here(processes)


def here(processes: int) -> Device:
    """This machine: its memory is asked for, the FLOP/s of its matrix products are measured (0.2 s)."""
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    peaks = {}
    for dtype in (torch.bfloat16, torch.float32):
        a = torch.ones(1024, 1024, dtype=dtype)
        a @ a
        start, products = time.perf_counter(), 0
        while time.perf_counter() - start < 0.1:
            a @ a
            products += 1
        peaks[dtype] = 2 * 1024**3 * products / (time.perf_counter() - start) / processes
    return Device(
        name="this machine's CPU", memory=memory // processes, bf16=peaks[torch.bfloat16],
        fp32=peaks[torch.float32], link=1e9, reached=0.7,
        sheet=f"measured: products of 1024 x 1024 matrices, {torch.get_num_threads()} threads, shared by all "
        "processes; 1 GB/s between them is assumed; glibc keeps what is freed, and "
        "may hold half as much again, unless MALLOC_MMAP_THRESHOLD_=65536",
    )  # fmt: skip
