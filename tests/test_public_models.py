"""Public models: fuse changes no result; bench/public_models.py counts and times; its page."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastcnn

BENCH = Path(__file__).parents[1] / "bench"
if not BENCH.exists():
    pytest.skip("a copy of the package without its benchmarks", allow_module_level=True)
sys.path.insert(0, str(BENCH))
from public_zoo import written  # noqa: E402

sys.path.remove(str(BENCH))


@pytest.fixture
def public_models(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    import public_models

    threads = torch.get_num_threads()
    yield public_models
    torch.set_num_threads(threads)


@pytest.mark.parametrize("entry", written(), ids=lambda entry: entry.name)
@torch.no_grad()
def test_fuse_changes_no_result(entry):
    model, x = entry.make(), entry.images(1)
    plain = model(x)
    for fold_bn in (False, True):
        fused = fastcnn.fuse(model, fold_bn=fold_bn)(x)
        assert (fused - plain).norm() < 1e-5 * plain.norm()


def test_names_are_unique_and_enough_need_torch_alone():
    names = [entry.name for entry in written()]
    assert len(set(names)) == len(names) >= 25


def test_find_counts_blocks_and_folds():
    models = ["kernelbench/lenet5", "kernelbench/transition_layer", "kernelbench/regnet"]
    command = [sys.executable, BENCH / "public_models.py", "--find", "-k", *models]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    *found, summary = result.stdout.splitlines()
    assert [row.split()[:5] for row in found] == [
        ["kernelbench/lenet5", "2", "blocks", "0", "folds"],
        ["kernelbench/transition_layer", "0", "blocks", "0", "folds"],
        ["kernelbench/regnet", "3", "blocks", "6", "folds"],
    ]
    assert summary == "blocks or folds found in 2 of 3 models"


def test_a_run_can_be_resumed_and_becomes_a_page(public_models, monkeypatch, tmp_path):
    from report_public import page

    path = tmp_path / "public.json"
    options = ["--quick", "--batches", "2", "1", "--out", str(path), "-k", "/lenet"]
    monkeypatch.setattr("sys.argv", ["public_models.py", *options])
    public_models.main()
    names = ["cifar/lenet", "kernelbench/lenet5"]
    data = json.loads(path.read_text())
    assert [model["name"] for model in data["models"]] == names
    for model in data["models"]:
        assert [row["batch"] for row in model["batches"]] == [1, 2]
        for row in model["batches"]:
            assert list(row["times_faster"]) == ["eager", "fuse", "fold_bn", "torch.fx"]
            assert not row["failed"]

    monkeypatch.setattr("sys.argv", ["public_models.py", *options, "fire_module", "--resume"])
    public_models.main()
    resumed = json.loads(path.read_text())
    assert resumed["models"][:2] == data["models"]
    assert [model["name"] for model in resumed["models"]] == [*names, "kernelbench/fire_module"]

    row = resumed["models"][0]["batches"][0]
    row["times_faster"] |= {
        "fuse": {"low": 0.8, "median": 0.9, "high": 1.1},
        "fold_bn": {"low": 0.4, "median": 0.5, "high": 0.6},
        "torch.fx": {"low": 1.2, "median": 1.25, "high": 1.3},
    }
    resumed["models"][1]["batches"][1] = {"batch": 2, "left_out": "a call would take 9 s"}
    del resumed["models"][2]["batches"][0]["times_faster"]["torch.fx"]
    resumed["models"][2]["batches"][0]["failed"] = {"torch.fx": "TraceError: no"}
    text = page(resumed)
    assert text.count("| cifar/lenet | 1 | ≈ 0.90 | 0.50 | 1.25 |\n") == 2
    assert "- kernelbench/lenet5, batch 2: a call would take 9 s\n" in text
    assert "- kernelbench/fire_module, batch 1: torch.fx: TraceError: no\n" in text


def test_what_takes_too_long_is_left_out_and_who_fails_is_named(public_models, monkeypatch):
    def compiled(module):
        raise RuntimeError("no compiler")

    (entry,) = [entry for entry in written() if entry.name == "cifar/lenet"]
    monkeypatch.setattr(public_models, "compiled", compiled)
    first, second = public_models.measure(entry, [1, 8], public_models.QUICK, compile=True, slow=0)["batches"]
    assert list(first["seconds"]) == ["eager", "fuse", "fold_bn", "torch.fx"]
    error = "RuntimeError: no compiler"
    assert first["failed"] == {"torch.compile": error, "fold_bn, torch.compile": error}
    assert second["left_out"].startswith("a call would take ")
