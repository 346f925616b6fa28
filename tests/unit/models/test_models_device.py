"""Device names become devices that are there."""

import pytest
import torch

from kdpipe.errors import DeviceError
from kdpipe.models import resolve_device


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.usefixtures("two_gpus")
def test_cuda_is_preferred_and_numbered() -> None:
    assert resolve_device("auto") == torch.device("cuda")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(DeviceError, match="'cuda:2' is not available: found 2 CUDA devices"):
        resolve_device("cuda:2")


@pytest.mark.usefixtures("no_gpu")
def test_absent_devices_are_named() -> None:
    assert resolve_device("auto") == torch.device("cpu")
    for name in ("cuda", "cuda:0", "mps"):
        with pytest.raises(DeviceError, match=f"'{name}' is not available"):
            resolve_device(name)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "", "cudaa"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(DeviceError, match="expected auto, cpu, cuda, cuda:N or mps"):
        resolve_device(name)


@pytest.mark.usefixtures("no_gpu")
def test_a_typo_gets_a_hint() -> None:
    with pytest.raises(DeviceError, match="did you mean 'cuda'"):
        resolve_device("cudaa")
