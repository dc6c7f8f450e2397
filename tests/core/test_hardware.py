"""The device that one process takes, and what it says about it."""

import pytest

from nbutils.core import hardware
from nbutils.core.hardware import DeviceReport, Gpu, choose_device
from tests.train.runs import P100, T4


@pytest.mark.parametrize(
    "report,device,words",
    [
        (DeviceReport((T4,), mps=True), "cuda", "on Tesla T4"),
        (DeviceReport((Gpu("V100", (7, 0), 16.0),)), "cuda", "on V100"),
        (DeviceReport((P100, T4, T4)), "cuda:1", "on Tesla T4"),
        (DeviceReport((P100,)), "cpu", "on the CPU: Tesla P100-PCIE-16GB (capability 6.0) is too old for torch"),
        (DeviceReport((P100,), mps=True), "mps", "on Apple's GPU (MPS)"),
        (DeviceReport(), "cpu", "on the CPU: no GPU found"),
    ],
)
def test_the_device_and_its_line(report, device, words):
    assert choose_device(report) == (device, words)


def test_what_a_process_would_see_is_asked_of_torch_only_where_there_is_a_gpu(monkeypatch):
    """`tests/train/test_launch.py` has what torch then says."""
    monkeypatch.setattr(hardware, "nvidia_gpus", lambda: ())
    monkeypatch.setattr(hardware, "child_report", lambda: pytest.fail("torch was asked"))
    assert hardware.visible_gpus() == ()
