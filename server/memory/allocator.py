"""What the process holds, and how freed memory is returned to the system."""

import ctypes
import gc

import psutil


def resident_bytes() -> int:
    """Return the memory of this process, in bytes (its resident set size)."""
    size: int = psutil.Process().memory_info().rss
    return size


def return_freed_memory() -> None:
    """Return memory that was freed to the system; do nothing where malloc cannot.

    While the model works, malloc keeps what is freed (``runtime``), because new pages are slow.
    After an adaptation that is most of what the process holds.
    """
    gc.collect()  # an autograd graph that is part of a cycle is not freed before
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only glibc has it
    if trim is not None:
        trim(0)
