"""Records beside the times what bears on speed: pytest-benchmark's hooks."""

from __future__ import annotations

from fastcnn.bench import machine


def pytest_report_header():
    return machine.load()


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info.clear()
    machine_info.update(machine.facts("cpu"))


def pytest_benchmark_update_commit_info(config, commit_info):
    for name in commit_info.keys() - {"id", "dirty"}:
        del commit_info[name]
