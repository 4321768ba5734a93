"""A GPU's few minutes: `first` builds, checks and times what decides most, `full` all the rest.

    python bench/gpu.py first|full [--rehearse] [--only PART ...]

A row is printed, and written to gpu_first.jsonl or gpu_full.jsonl, as soon as it is known. When it ends, in
whatever way, all rows are in gpu_first.json or gpu_full.json. They lie in $OUT, or in bench/results where OUT
is not set; what tools print is in a .log beside them. --rehearse does each part in small on a CPU, measuring
nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gpu_summary

ROOT = Path(__file__).resolve().parents[1]
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])
PYTHONPATH = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
ENV = {**os.environ, "PATH": PATH, "PYTHONPATH": PYTHONPATH, "PYTHONUNBUFFERED": "1"}
SMALL = {"PYTHONDONTWRITEBYTECODE": "", "TRITON_INTERPRET": "1"}  # of a rehearsal, whose bytecode is kept
SECONDS = {"first": 240, "full": 300}
TRITON = [f"triton, {d}, {f}" for d in ("bfloat16", "float32", "float16") for f in ("channels_last", "NCHW")]
PLANS = {  # groups of parts that run at once, with the seconds that each may take
    "first": [
        {"machine": 15}, {"build": 110, **dict.fromkeys(TRITON[:4], 90)}, {"kernels": 20}, {"rates": 8},
        {"epilogues": 30}, {"memcheck": 45, "racecheck": 45, "tests": 50}, {"blocks": 25}, {"networks": 45},
        {"ncu": 25}, {"unsearched": 35},
    ],
    "full": [
        {"machine": 15}, {"build": 90, **dict.fromkeys(TRITON, 90)}, {"kernels": 20},
        {"tests": 90, "memcheck": 90, "racecheck": 90}, {"initcheck": 60, "synccheck": 60, "other tests": 60},
        {"defaults": 20}, {"unsearched": 20}, {"peers": 75}, {"all epilogues": 60},
    ],
}  # fmt: skip
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
LEAST, RESERVE = 4, 4  # seconds that a part needs to be begun, and that the end of it all needs
STICKY = 3  # gpu_rows.STICKY: the device takes no more in that process


def end(process: subprocess.Popen) -> None:
    """And all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def which(program: str) -> str | None:
    return shutil.which(program, path=PATH)


def told(*words: str) -> str:
    """What a program prints; nothing where it is not there."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(words, capture_output=True, text=True, timeout=20).stdout.strip()
    return ""


def smi(query: str) -> list[str]:
    return told("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader", "--id=0").split(", ")


Call = Callable[[str], None]


class Run:
    """One command's rows and processes."""

    def __init__(self, command: str, rehearse: bool, out: Path) -> None:
        self.command, self.rehearse, self.began = command, rehearse, time.monotonic()
        self.deadline = self.began + SECONDS[command] - RESERVE
        out.mkdir(parents=True, exist_ok=True)
        self.json, self.stream = out / f"gpu_{command}.json", (out / f"gpu_{command}.jsonl").open("w")
        self.log, self.lock = (out / f"gpu_{command}.log").open("w"), threading.Lock()
        self.rows: list[dict[str, Any]] = []
        self.counted: dict[str, Any] = {}  # by part, of tests and sanitizers
        self.live: list[subprocess.Popen] = []
        self.folder = tempfile.TemporaryDirectory()
        self.env = {"PYTHONPYCACHEPREFIX": self.folder.name} | ENV | SMALL if rehearse else ENV
        self.ended = False

    def say(self, part: str, name: str, **values: Any) -> None:
        row = {"s": round(time.monotonic() - self.began, 1), "part": part, "name": name, **values}
        with self.lock:
            if self.stream.closed:
                return
            self.rows.append(row)
            self.stream.write(json.dumps(row) + "\n")
            self.stream.flush()
            told = ", ".join(f"{k} {v}" for k, v in values.items())
            print(f"{row['s']:6.1f} {part} | {name} | {told}"[:300], flush=True)

    def watch(self, part: str, words: list[str], until: float, each: Call, **env: str) -> Any:
        """Runs a program, and gives its lines to `each`; its exit status, "not here" or "limit"."""
        if which(words[0]) is None:
            return "not here"
        process = subprocess.Popen(
            words, cwd=ROOT, env=self.env | env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        self.live.append(process)
        timer = threading.Timer(0 if self.ended else max(0, until - time.monotonic()), end, [process])
        timer.start()
        for line in process.stdout:
            self.log.write(f"{part} | {line}")
            self.log.flush()
            each(line.rstrip("\n"))
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # its number stays its own until wait()
        timer.cancel()
        end(process)
        status = process.wait()
        return "limit" if self.ended or time.monotonic() >= until else status

    def work(self, part: str, until: float, tool: Sequence[str] = (), **env: str) -> list[str]:
        """All rows of a part, under a tool if given; after a crash, a new process goes on with the next one.

        Returns what else was printed.
        """
        first, fruitless, others, current = 0, 0, [], ""

        def each(line: str) -> None:
            nonlocal seen, current
            if line.startswith("begins "):
                current = line.removeprefix("begins ")
            elif line.startswith("{"):
                self.say(part, **json.loads(line))
                seen += 1
            else:
                others.append(line)

        while fruitless < 2:
            seen, words = 0, [sys.executable, __file__, self.command, "--part", part, "--from", str(first)]
            words += ["--until", str(until - 2)] + ["--rehearse"] * self.rehearse
            status = self.watch(part, [*tool, *words], until, each, **env)
            if status == 0:
                break
            if status == "limit":
                self.say(part, f"{part}, the rest", error=f"ended at its limit, in {current}")
                break
            first, fruitless = first + seen, 0 if seen else fruitless + 1
            if status != STICKY:
                self.say(part, current, verdict="died", error=f"exit status {status}; see the log")
                first += 1
        return others

    def machine(self, part: str, until: float) -> None:
        query = "name,driver_version,compute_cap,clocks.sm,clocks.mem,clocks.max.sm,power.limit"
        self.say(part, "nvidia-smi", told=dict(zip(query.split(","), smi(query), strict=False)))
        tools = ("nvcc", "cmake", "ninja", "compute-sanitizer", "ncu")
        self.say(part, "tools", cpus=os.cpu_count(), **{tool: which(tool) or "not here" for tool in tools})

    def build(self, part: str, until: float) -> None:
        """In place, for this GPU alone: by pip, else by CMake itself; in a rehearsal neither builds."""
        if self.command == "full" and self.built(until):
            return
        folder, define = self.folder.name, f"-DFASTCNN_CUDA={'ON' if which('nvcc') else 'OFF'}"
        env = {"CUDAARCHS": smi("compute_cap")[0].replace(".", "") or "90", "CMAKE_ARGS": define}
        found = told(sys.executable, "-m", "pybind11", "--cmakedir")
        cmake = ["cmake", "-S", ".", "-B", folder, define, f"-DPython_EXECUTABLE={sys.executable}"]
        cmake += [f"-Dpybind11_DIR={found}"] + ["-GNinja"] * bool(which("ninja"))
        pip = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index"]
        pip += ["--dry-run"] * self.rehearse + ["-e", "."]
        steps = [cmake, ["cmake", "--build", folder], ["cmake", "--install", folder, "--prefix", "."]]
        for way, commands in {"pip": [pip], "CMake": steps[:1] if self.rehearse else steps}.items():
            start, status = time.monotonic(), 0
            for words in commands:
                status = status or self.watch(part, words, until, lambda line: None, **env)
            self.say(part, way, seconds=round(time.monotonic() - start, 1), status=status, **env)
            if not self.rehearse and self.built(until):
                return
        self.built(until)

    def built(self, until: float) -> bool:
        self.work("facts", until + 10)
        return any(row.get("has code for this GPU") for row in self.rows)

    def sanitize(self, part: str, until: float) -> None:
        """Over our kernels alone, of which Triton's have short names; the filter is of mangled names."""
        option = re.search(r"--kernel-(?:name|regex)(?= )", told("compute-sanitizer", "--help"))
        tool = ["compute-sanitizer", "--tool", part, "--print-limit", "20"]
        tool += [option[0], "kns=fastcnn", option[0], "kns=block_kernel"] if option else []
        # In a large cached block no access is out of bounds, and nothing uninitialised.
        env = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if part in ("memcheck", "initcheck") else {}
        printed = self.work(part, until, tool if which(tool[0]) else [], **env)
        errors = gpu_summary.sanitizer_errors("\n".join(printed))
        self.counted[part] = {"errors": errors, **self.verdicts(part)}
        self.say(part, part, **self.counted[part])

    def verdicts(self, part: str) -> dict[str, int]:
        """What did not run is wrong, too."""
        rows = [row for row in self.rows if row["part"] == part]
        said = [row.get("verdict", "not run") for row in rows if "verdict" in row or "error" in row]
        right = {"ok": said.count("ok"), "does not fit": said.count("does not fit")}
        return {**right, "wrong": len(said) - sum(right.values())}

    def ncu(self, part: str, until: float) -> None:
        tool = ["ncu", "--clock-control", "none", "--csv", "--page", "raw", "--print-units", "base"]
        tool += ["--kernel-name-base", "mangled", "--kernel-name", "regex:fastcnn", "--launch-count", "18"]
        tool += ["--metrics", ",".join(gpu_summary.METRICS)]
        for name, values in gpu_summary.ncu_rows(self.work(part, until, tool if which("ncu") else [])):
            self.say(part, name, **values)

    def test(self, part: str, until: float) -> None:
        """tests/test_cuda.py, or the others that know of a GPU; by xdist's processes where it is there."""
        compiling = ("triton_conv", "triton_pixels", "triton_planes")  # anew for each shape that is drawn
        left_out = ("cuda", "gpu_harness", *compiling)
        files = [f for f in sorted((ROOT / "tests").glob("test_*.py")) if f.stem[5:] not in left_out]
        others = [str(f.relative_to(ROOT)) for f in files if "cuda" in f.read_text()]
        others += ["-n8"] if importlib.util.find_spec("xdist") else []
        others = ["tests/test_space_to_depth.py"] if self.rehearse else others
        words = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "--tb=short"]
        words += ["tests/test_cuda.py"] if part == "tests" else others
        tests = gpu_summary.Tests()

        def each(line: str) -> None:
            if failed := tests.read(line):
                self.say(part, failed, verdict="failed")
            self.counted[part] = tests.counts()

        status = self.watch(part, words, until, each)
        self.say(part, part, status=status, **tests.counts())

    def part(self, part: str, until: float) -> None:
        special = {"machine": self.machine, "build": self.build, "ncu": self.ncu, "tests": self.test}
        special |= {"other tests": self.test, **dict.fromkeys(SANITIZERS, self.sanitize)}
        try:
            if until - time.monotonic() < LEAST:
                self.say(part, f"{part}, all of it", error="no time left")
            else:
                special.get(part, self.work)(part, until)
        except Exception as error:
            self.say(part, f"{part}, the rest", error=f"{type(error).__name__}: {error}")

    def group(self, parts: dict[str, float]) -> None:
        now = time.monotonic()
        deadlines = {part: min(now + limit, self.deadline) for part, limit in parts.items()}
        threads = [threading.Thread(target=self.part, args=item, daemon=True) for item in deadlines.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(deadlines.values()) + 2 - now)

    def result(self) -> dict[str, Any]:
        rows = {row["name"]: row for row in self.rows}
        card, versions = rows.get("nvidia-smi", {}).get("told", {}), rows.get("versions", {})
        return {
            "command": self.command,
            "rehearsal": self.rehearse,
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "device": card.get("name"),
            "compute capability": card.get("compute_cap"),
            "driver": card.get("driver_version"),
            "versions": {k: v for k, v in versions.items() if k not in ("s", "part", "name")},
            "extension": rows.get("extension", {}).get("build_info"),
            "kernels": self.verdicts("kernels"),
            **self.counted,
            "rows": self.rows,
        }

    def finish(self) -> None:
        """Ends what still runs; writes the one file, in place of the rows as they came, and what it says."""
        self.ended = True
        for process in self.live:
            if process.poll() is None:
                end(process)
        with self.lock:
            result = self.result()
            self.json.write_text(json.dumps(result, indent=1) + "\n")
            self.stream.close()
            Path(self.stream.name).unlink()
            print(gpu_summary.summary(result), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=PLANS)
    parser.add_argument("--rehearse", action="store_true", help="in small, on a CPU")
    parser.add_argument("--only", nargs="+", metavar="PART", help="some of its parts")
    for name, kind in (("part", str), ("from", int), ("until", float)):
        parser.add_argument(f"--{name}", type=kind, dest=f"row_{name}", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row_part:
        rows = importlib.import_module("gpu_rows")
        rows.run(args.row_part, args.row_from, args.row_until, args.rehearse, args.command == "full")
        return 0
    if not args.rehearse and not smi("name")[0]:
        parser.error("nvidia-smi names no GPU; --rehearse needs none")
    plan = PLANS[args.command]
    if args.rehearse:
        # All at once, as nothing is measured; the first one leaves compiled modules to the rest.
        parts = [part for group in plan[1:] for part in group]
        plan = [{"machine": 60, "restarts": 60}, dict.fromkeys(parts, SECONDS[args.command])]
    if unknown := set(args.only or ()) - {part for group in plan for part in group}:
        parser.error(f"{args.command} has no such parts: {', '.join(sorted(unknown))}")
    run = Run(args.command, args.rehearse, Path(os.environ.get("OUT") or ROOT / "bench" / "results"))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for group in plan:
            run.group({p: limit for p, limit in group.items() if not args.only or p in args.only})
    except KeyboardInterrupt:
        run.say("all", "interrupted")
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        run.finish()
    return 0


if __name__ == "__main__":
    sys.exit(main())
