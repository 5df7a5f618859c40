"""Groups that share a gloo device: how many threads there are, and that the groups work."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed import ProcessGroupGloo, distributed_c10d

from sdp4bit_patches.gloo_device import GlooDevice, device_of_ranks

THREADS = Path("/proc/self/task")


@pytest.fixture(autouse=True)
def job() -> Iterator[None]:
    """A job of one rank."""
    if not THREADS.exists():
        pytest.skip("threads are counted in /proc, which is not here")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def num_devices(at_least: int) -> int:
    """A thread has its name some time after it was started: waits for as many, and then for one that should not be."""
    for _ in range(200):
        if _count() >= at_least:
            break
        time.sleep(0.05)
    time.sleep(0.2)
    return _count()


def _count() -> int:
    return sum((thread / "comm").read_text() == "gloo_tcp_loop\n" for thread in THREADS.iterdir())


def check_works(group: dist.ProcessGroup) -> None:
    values = torch.ones(3)
    dist.all_reduce(values, group=group)
    assert dist.get_backend(group) == "gloo" and values.tolist() == [1.0, 1.0, 1.0]


def test_groups_share_the_device_that_was_chosen_for_them() -> None:
    device, before = GlooDevice(), num_devices(1)
    with device.serves_new_groups():
        groups = [dist.new_group([0]) for _ in range(3)]
    with device.serves_new_groups():
        groups.append(dist.new_group([0]))
    assert num_devices(before + 1) == before + 1
    groups.append(dist.new_group([0]))
    assert num_devices(before + 2) == before + 2, "torch makes one for each group"
    for group in groups:
        check_works(group)


def test_the_device_that_was_chosen_first_serves() -> None:
    inner, before = device_of_ranks([0]), num_devices(1)
    with GlooDevice().serves_new_groups():
        with inner.serves_new_groups():
            dist.new_group([0])
        dist.new_group([0])
    assert num_devices(before + 1) == before + 1 and inner._devices == []


def test_all_groups_of_the_same_ranks_have_the_same_device() -> None:
    assert device_of_ranks([1, 0]) is device_of_ranks((0, 1))
    assert len({id(device_of_ranks(ranks)) for ranks in (None, [0], [1], [0, 1])}) == 4


def test_megatrons_groups_of_the_same_ranks_share_one_on_a_cpu() -> None:
    script = """
import torch
import torch.distributed as dist
from sdp4bit_patches import cpu_device, gloo_device
cpu_device.install()
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
groups = [dist.new_group(ranks=[0]) for _ in range(3)]
devices = [group._get_backend(torch.device("cpu")).options._devices for group in groups]
[device] = gloo_device.device_of_ranks([0])._devices
print(all(own == [device] for own in devices))
dist.destroy_process_group()
"""
    if torch.cuda.is_available():
        pytest.skip("only where there is no CUDA")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout == "True\n", done.stderr


def test_torch_has_its_class_back_when_a_group_could_not_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "no_such_interface")
    with pytest.raises(RuntimeError, match="no_such_interface"), GlooDevice().serves_new_groups():
        dist.new_group([0])
    assert distributed_c10d.ProcessGroupGloo is ProcessGroupGloo


def test_the_interface_is_the_one_that_torch_would_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    with GlooDevice().serves_new_groups():
        group = dist.new_group([0])
    check_works(group)
    assert len(group._get_backend(torch.device("cpu")).options._devices) == 1


def test_the_time_out_is_that_of_the_group() -> None:
    with GlooDevice().serves_new_groups():
        group = dist.new_group([0], timeout=timedelta(seconds=7))
    assert group._get_backend(torch.device("cpu")).options._timeout == timedelta(seconds=7)
