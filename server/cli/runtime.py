"""Settings of the process that make the model faster; made before torch is loaded."""

import ctypes
import os
import threading

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's ``mallopt``, from its malloc.h."""
LARGEST_MMAP_THRESHOLD = 32 * 2**20
"""Bytes; the largest value that ``mallopt`` accepts."""


def tune_runtime() -> None:
    """Tune memory allocation and threads for inference on a CPU."""
    _keep_freed_memory()
    # OpenMP threads that spin while idle slow down a busy machine; torch reads this when it loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def keep_log_clean() -> None:
    """Keep libraries from drawing progress bars into the log, and from leaving notices at its end.

    A bar's lock between processes is a semaphore, which Python reports as leaked when the process
    is killed; one between threads does as well here.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())


def _keep_freed_memory() -> None:
    """Have malloc keep up to 1 GiB of freed memory instead of returning it to the system.

    Otherwise every layer's temporaries are new pages, which the system has to clear: 80,000 page
    faults and a tenth of the time when SmolLM2 reads 512 tokens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # only glibc has it
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
        mallopt(M_TRIM_THRESHOLD, 2**30)
