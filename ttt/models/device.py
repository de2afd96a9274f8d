"""What differs between devices: when work is done, how much memory is free, copies to the host."""

from collections.abc import Mapping

import torch
from torch import Tensor


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that was launched on it; a CPU always has.

    A GPU runs behind the host, so seconds are true only where they end with this.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that are free on a GPU, torch's cached ones included; None for a CPU."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(free + cached)


def to_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors to the host, contiguous, without holding up what the GPU is computing.

    The copies go through pinned memory on a stream of their own; the caller's thread waits for
    them, the model's does not.
    """
    devices = {t.device for t in tensors.values() if t.is_cuda}
    if not devices:
        return {name: t.contiguous() for name, t in tensors.items()}
    [device] = devices
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.default_stream())
        with torch.cuda.stream(stream):
            copies = {name: _pinned_copy(t, stream) for name, t in tensors.items()}
        stream.synchronize()
    return copies


def _pinned_copy(tensor: Tensor, stream: torch.cuda.Stream) -> Tensor:
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    copy.copy_(tensor, non_blocking=True)
    if tensor.is_cuda:
        tensor.record_stream(stream)
    return copy
