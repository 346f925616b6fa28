"""Names of devices to torch devices."""

from __future__ import annotations

import re

import torch

from kdpipe.errors import DeviceError, did_you_mean


def resolve_device(name: str) -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps`` into a device that is there.

    ``auto`` is CUDA where there is one, else the CPU.

    Raises:
        DeviceError: the name is unknown, or this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    if name == "mps":
        if not torch.backends.mps.is_available():
            raise DeviceError("device 'mps' is not available here; use 'auto' or 'cpu'")
        return torch.device("mps")
    match = re.fullmatch(r"cuda(?::(\d+))?", name)
    if match is None:
        hint = did_you_mean(name, ("auto", "cpu", "cuda", "mps"))
        raise DeviceError(f"unknown device '{name}'{hint} (expected auto, cpu, cuda, cuda:N or mps)")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(match[1] or 0) >= found:
        raise DeviceError(f"device '{name}' is not available: found {found} CUDA devices; use 'auto' or 'cpu'")
    return torch.device(name)
