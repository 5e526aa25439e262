"""How much memory there is."""

import math
from types import SimpleNamespace

import jax

from e2h_jax.parallel import devices


def test_a_machines_memory_is_its_own_or_its_containers(tmp_path):
    assert devices.machine_memory(tmp_path) == math.inf
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:       32768 kB\nMemFree:  12 kB\nMemAvailable:    2048 kB\n")
    assert devices.machine_memory(tmp_path) == 2 * 2**20
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    for limit, free in (("max", 2 * 2**20), ("1500000", 500_000), ("99999999999", 2 * 2**20)):
        (group / "memory.max").write_text(f"{limit}\n")
        (group / "memory.current").write_text("1000000\n")
        assert devices.machine_memory(tmp_path) == free


def test_a_devices_memory_is_what_it_says_and_a_cpus_its_share(monkeypatch):
    stats = {"bytes_limit": 100, "bytes_in_use": 30, "peak_bytes_in_use": 60}
    chip = SimpleNamespace(platform="tpu", device_kind="TPU v5 lite", memory_stats=lambda: stats)
    assert devices.free_memory(chip) == 70
    assert devices.free_memory(chip, described=True) == 15.75 * devices.GIB
    chip.memory_stats = lambda: None
    assert devices.free_memory(chip) == math.inf
    monkeypatch.setattr(devices, "machine_memory", lambda: 800.0)
    assert devices.free_memory(jax.devices()[0]) == 100
    assert devices.peak_memory() is None  # main memory is no device's
