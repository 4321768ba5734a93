"""Builds, checks and times the kernels in a GPU's few minutes: `first` what decides most, `full` the rest.

    python bench/gpu.py first|full [--rehearse] [--only PART ...]

Prints each row as soon as it is known. gpu_first.json or gpu_full.json, in $OUT or else in bench/results, is
written after each group of parts and at the end, whatever ends it; beside it, a .log has rows and the output
of tools as they come. --rehearse runs each part in small on a CPU, and measures nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gpu_summary import CHECKS, RIGHT, summary
from gpu_tools import METRICS, Tests, ncu_rows, sanitizer_errors

ROOT = Path(__file__).resolve().parents[1]
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])
PYTHONPATH = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
ENV = {**os.environ, "PATH": PATH, "PYTHONPATH": PYTHONPATH, "PYTHONUNBUFFERED": "1"}
SECONDS = {"first": 240, "full": 300}
TRITON = [f"triton, {d}, {f}" for d in ("bfloat16", "float32", "float16") for f in ("channels_last", "NCHW")]
PLANS = {  # groups of parts that run at once, with the seconds that each may take
    "first": [
        {"machine": 15}, {"build": 110, **dict.fromkeys(TRITON[:4], 90)}, {"kernels": 20}, {"rates": 8},
        {"epilogues": 50}, {"memcheck": 45, "racecheck": 45, "tests": 50}, {"blocks": 25}, {"networks": 25},
        {"ncu": 25}, {"unsearched": 35},
    ],
    "full": [
        {"machine": 15}, {"build": 90, **dict.fromkeys(TRITON, 90)}, {"kernels": 20},
        {"tests": 90, "memcheck": 90, "racecheck": 90}, {"synccheck": 60, "other tests": 60},
        {"defaults": 20}, {"unsearched": 20}, {"peers": 75}, {"all epilogues": 60},
    ],
}  # fmt: skip
RESERVE = 4  # seconds that the end needs
STICKY, OVER = 3, 4  # gpu_part.py's exit statuses: the device takes no more in that process; no time left


def end(process: subprocess.Popen) -> None:
    """Ends a process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def which(program: str) -> str | None:
    return shutil.which(program, path=PATH)


def output(*words: str) -> str:
    """Returns what a program prints; nothing where it is not there."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(words, capture_output=True, text=True, timeout=20).stdout.strip()
    return ""


def smi(query: str) -> list[str]:
    return output("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader", "--id=0").split(", ")


class Run:
    """A command's rows and processes."""

    def __init__(self, command: str, rehearse: bool, out: Path) -> None:
        self.command, self.rehearse, self.began = command, rehearse, time.monotonic()
        self.deadline = self.began + SECONDS[command] - RESERVE
        out.mkdir(parents=True, exist_ok=True)
        self.json, self.log = out / f"gpu_{command}.json", (out / f"gpu_{command}.log").open("w")
        self.lock, self.ended = threading.RLock(), False
        self.rows: list[dict[str, Any]] = []
        self.processes: list[subprocess.Popen] = []
        self.threads: list[threading.Thread] = []
        self.env = ENV | {"TRITON_INTERPRET": "1"} if rehearse else ENV

    def note(self, line: str) -> None:
        with self.lock:
            self.log.write(line + "\n")
            self.log.flush()

    def say(self, part: str, name: str, **values: Any) -> None:
        row = {"s": round(time.monotonic() - self.began, 1), "part": part, "name": name, **values}
        with self.lock:
            self.rows.append(row)
            self.note(json.dumps(row))
            what = ", ".join(f"{k} {v}" for k, v in values.items())
            print(f"{row['s']:6.1f} {part} | {name} | {what}"[:300], flush=True)

    def watch(
        self, part: str, words: list[str], until: float, each: Callable[[str], None], **env: str
    ) -> int | str:
        """Runs a program, and calls `each` with its lines; returns its exit status, or "limit"."""
        process = subprocess.Popen(
            words, cwd=ROOT, env=self.env | env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        self.processes.append(process)
        timer = threading.Timer(0 if self.ended else max(0, until - time.monotonic()), end, [process])
        timer.start()
        for line in map(str.rstrip, process.stdout):
            if not line.startswith("{"):  # not a row, which is noted when it is said
                self.note(f"{part} | {line}")
            each(line)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # its number stays its own until wait()
        timer.cancel()
        end(process)
        status = process.wait()
        return "limit" if self.ended or time.monotonic() >= until else status

    def work(self, part: str, until: float, tool: Sequence[str] = (), **env: str) -> list[str]:
        """Runs all rows of a part, under a tool if given, and returns what else was printed.

        After a crash, a new process goes on with the next row; two in a row that come to none are enough.
        """
        first, fruitless, others, current = 0, 0, [], ""
        flags = ["--rehearse"] * self.rehearse + ["--thorough"] * (self.command == "full")

        def each(line: str) -> None:
            nonlocal first, fruitless, current
            if line.startswith("begins "):
                current = line.removeprefix("begins ")
            elif line.startswith("{"):
                row = json.loads(line)
                self.say(part, **row)
                first, fruitless, current = first + 1, 0, f"what follows {row['name']}"
            else:
                others.append(line)

        while fruitless < 2:
            fruitless, current = fruitless + 1, f"the start of {part}"
            words = [sys.executable, "bench/gpu_part.py", part, str(first), str(until - 2), *flags]
            status = self.watch(part, [*tool, *words], until, each, **env)
            if status == 0:
                break
            if status in ("limit", OVER):
                self.say(part, f"{part}, the rest", error=f"no time left, in {current}")
                break
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
        """Builds in place, for this GPU alone, unless that is there; in a rehearsal pip only prepares it."""
        if self.command == "full" and self.built(until):
            return
        env = {"CUDAARCHS": smi("compute_cap")[0].replace(".", "") or "90"}
        env["CMAKE_ARGS"] = f"-DFASTCNN_CUDA={'ON' if which('nvcc') else 'OFF'}"
        words = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index"]
        words += ["--dry-run"] * self.rehearse + ["-e", "."]
        start = time.monotonic()
        status = self.watch(part, words, until, lambda line: None, **env)
        failed = {"error": "pip did not build it; see the log"} if status != 0 else {}
        self.say(part, "pip", seconds=round(time.monotonic() - start, 1), status=status, **env, **failed)
        self.built(until)

    def built(self, until: float) -> bool:
        self.work("facts", until + 10)
        return any(row.get("has code for this GPU") for row in self.rows)

    def sanitize(self, part: str, until: float) -> None:
        """Watches our kernels alone, of which Triton's have short names; the filter is of mangled names."""
        option = re.search(r"--kernel-(?:name|regex)(?= )", output("compute-sanitizer", "--help"))
        tool = ["compute-sanitizer", "--tool", part, "--print-limit", "20"]
        tool += [option[0], "kns=fastcnn", option[0], "kns=block_kernel"] if option else []
        # In a large cached block no access is out of bounds.
        env = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if part == "memcheck" else {}
        printed = self.work(part, until, tool if which(tool[0]) else [], **env)
        self.say(part, part, errors=sanitizer_errors("\n".join(printed)), **self.verdicts(part))

    def verdicts(self, part: str) -> dict[str, int]:
        """Counts a part's rows; what did not run is wrong, too."""
        rows = [row for row in self.rows if row["part"] == part]
        said = [row.get("verdict", "not run") for row in rows if "verdict" in row or "error" in row]
        right = {verdict: said.count(verdict) for verdict in RIGHT}
        return {**right, "wrong": len(said) - sum(right.values())}

    def ncu(self, part: str, until: float) -> None:
        tool = ["ncu", "--clock-control", "none", "--csv", "--page", "raw", "--print-units", "base"]
        tool += ["--kernel-name-base", "mangled", "--kernel-name", "regex:fastcnn", "--launch-count", "18"]
        tool += ["--metrics", ",".join(METRICS)]
        for name, values in ncu_rows(self.work(part, until, tool if which("ncu") else [])):
            self.say(part, name, **values)

    def test(self, part: str, until: float) -> None:
        """Runs tests/test_cuda.py, or the other tests that name cuda, in parallel where xdist is there."""
        words = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "--tb=short"]
        if part == "tests":
            words.append("tests/test_cuda.py")
        elif self.rehearse:
            words.append("tests/test_space_to_depth.py")
        else:
            compiling = ("triton_conv", "triton_pixels", "triton_planes")  # anew for each shape that is drawn
            files = [f for f in (ROOT / "tests").glob("test_*.py") if "cuda" in f.read_text()]
            words += sorted(str(f) for f in files if f.stem[5:] not in ("cuda", "gpu_harness", *compiling))
            words += ["-n8"] if importlib.util.find_spec("xdist") else []
        tests = Tests()

        def each(line: str) -> None:
            if failed := tests.read(line):
                self.say(part, failed, verdict="failed")

        status = self.watch(part, words, until, each)
        self.say(part, part, status=status, **tests.counts())

    def part(self, part: str, until: float) -> None:
        special = {"machine": self.machine, "build": self.build, "ncu": self.ncu, "tests": self.test}
        special |= {"other tests": self.test}
        special |= dict.fromkeys(("memcheck", "racecheck", "synccheck"), self.sanitize)
        try:
            special.get(part, self.work)(part, until)
        except Exception as error:
            self.say(part, f"{part}, the rest", error=f"{type(error).__name__}: {error}")

    def group(self, parts: dict[str, float]) -> None:
        now = time.monotonic()
        deadlines = {part: min(now + limit, self.deadline) for part, limit in parts.items()}
        self.threads = [threading.Thread(target=self.part, args=i, daemon=True) for i in deadlines.items()]
        for thread in self.threads:
            thread.start()
        for thread in self.threads:
            thread.join(max(0, max(deadlines.values()) + 2 - time.monotonic()))
        self.save()

    def save(self) -> dict[str, Any]:
        """Writes the one file, whole or not at all, and returns what is in it."""
        with self.lock:
            rows = {row["name"]: row for row in self.rows}
            card = rows.get("nvidia-smi", {}).get("told", {})
            result = {
                "command": self.command,
                "rehearsal": self.rehearse,
                "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                "device": card.get("name"),
                "compute capability": card.get("compute_cap"),
                "driver": card.get("driver_version"),
                "versions": told(rows.get("versions", {})),
                "extension": rows.get("extension", {}).get("build_info"),
                "kernels": self.verdicts("kernels"),
                **{check: told(rows[check]) for check in CHECKS if check in rows},
                "rows": self.rows,
            }
            new = self.json.with_suffix(".new")
            new.write_text(json.dumps(result, indent=1) + "\n")
            new.replace(self.json)
        return result

    def finish(self) -> None:
        """Ends what still runs, and waits for its last rows."""
        self.ended = True
        for process in self.processes:
            if process.poll() is None:
                end(process)
        last = time.monotonic() + 2
        for thread in self.threads:
            thread.join(max(0, last - time.monotonic()))
        print(summary(self.save()), flush=True)


def told(row: dict[str, Any]) -> dict[str, Any]:
    """Returns what a row says, without when and of what."""
    return {key: value for key, value in row.items() if key not in ("s", "part", "name", "status")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=PLANS)
    parser.add_argument("--rehearse", action="store_true", help="in small, on a CPU")
    parser.add_argument("--only", nargs="+", metavar="PART", help="some of its parts")
    args = parser.parse_args()
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


if __name__ == "__main__":
    main()
