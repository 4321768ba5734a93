"""Everything that needs an NVIDIA GPU, in under ten minutes: tests, sanitizers, benchmarks.

    python bench/gpu.py [--only PART ...] [--out FILE]

Each part is a process of its own with a time limit. FILE, bench/results/gpu.json unless told, is written
anew after each, and what a part had measured before it failed is kept. The exit status is 1 if one failed.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

START = time.monotonic()
ROOT = Path(__file__).resolve().parents[1]

MACHINE_LIMIT = 25
LIMITS = {  # seconds; with the machine's, 595 in all
    "tests": 200,
    "memcheck": 35,
    "racecheck": 40,
    "initcheck": 30,
    "synccheck": 25,
    "rates": 15,
    "epilogues": 90,
    "blocks": 60,
    "models": 50,
    "lenet": 25,
}
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
TESTED = ("tests", *TOOLS)
LAST_START = 0.7  # of a part's limit, after which it starts on no other row
ROWS = {
    "rates": "gpu_cases",
    "epilogues": "gpu_cases",
    "blocks": "gpu_blocks",
    "models": "gpu_models",
    "lenet": "gpu_models",
}
TAIL = 4000  # characters


def write(path: Path, data: object) -> None:
    """At once, so that nobody ever reads half of it."""
    beside = path.with_name(path.name + ".new")
    beside.write_text(json.dumps(data, indent=1) + "\n")
    beside.replace(path)


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def measure(part: str, out: Path) -> int:
    """All rows of a part, each written at once; 1 if something in them went wrong."""
    import fastcnn

    rows: dict[str, dict[str, Any]] = {}
    measured = importlib.import_module("gpu_timing").measured
    with fastcnn.use_backend("cuda"):
        for name, row in getattr(importlib.import_module(ROWS[part]), part)():
            late = time.monotonic() - START > LAST_START * LIMITS[part]
            new = {"skipped": "no time left"} if late else measured(row)
            rows[name] = rows.get(name, {}) | new
            write(out, rows)
    wrong = {name: row["errors"] for name, row in rows.items() if row.get("errors")}
    for name, errors in wrong.items():
        print(f"{name}: {errors}")
    return int(bool(wrong))


def command(part: str, folder: Path) -> list[str]:
    pytest = [sys.executable, "-m", "pytest", "-q", f"--junitxml={folder / 'junit.xml'}"]
    if part == "tests":
        return pytest
    if part in TOOLS:
        sanitizer = ["compute-sanitizer", "--tool", part, "--error-exitcode", "1"]
        return [*sanitizer, *pytest, "tests/test_cuda.py", "-k", "each_kernel"]
    return [sys.executable, str(Path(__file__)), "--part", part, "--out", str(folder / "rows.json")]


def environment(part: str) -> dict[str, str]:
    env = dict(os.environ)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")]))
    env["PYTHONFAULTHANDLER"] = "1"
    if part in TOOLS:
        env["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # in a large cached block no access is out of bounds
    return env


def attempt(words: list[str], limit: float, env: dict[str, str], log: Path) -> str:
    """Run a command, and end all that it started: "ok", "failed" or "timed out"."""
    with log.open("w") as output:
        try:
            process = subprocess.Popen(
                words, cwd=ROOT, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        except FileNotFoundError:
            output.write(f"{words[0]} is not on the PATH")
            return "failed"
        try:
            return "failed" if process.wait(limit) else "ok"
        except subprocess.TimeoutExpired:
            return "timed out"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def results(folder: Path) -> dict[str, Any]:
    """Rows, or counts of tests; nothing where a part ended before it had written them."""
    rows = folder / "rows.json"
    if rows.exists():
        return json.loads(rows.read_text())
    try:
        suite = next(ElementTree.parse(folder / "junit.xml").iter("testsuite"))
    except (FileNotFoundError, ElementTree.ParseError):
        return {}
    total, failed, errors, skipped = (
        int(suite.get(n, 0)) for n in ("tests", "failures", "errors", "skipped")
    )
    return {"passed": total - failed - errors - skipped, "failed": failed + errors, "skipped": skipped}


def run(part: str, limit: float) -> dict[str, Any]:
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log = folder / "log"
        status = attempt(command(part, folder), limit, environment(part), log)
        found = results(folder)
        if status == "ok" and part in TESTED and not found.get("passed"):
            status = "failed"  # all were skipped
        done = {
            "status": status,
            "seconds": round(time.monotonic() - start, 1),
            "date": now(),
            "results": found,
        }
        return done if status == "ok" else done | {"tail": log.read_text(errors="replace")[-TAIL:].strip()}


def line(name: str, row: dict[str, Any]) -> str:
    """A row in words: milliseconds, and how many times the first one's they are."""
    if "ms" not in row:
        return f"  {name}: {row}"
    times = {who: f" (×{t['median']:.2f})" for who, t in row["times"].items()}
    told = [f"{who} {ms['median']:.4g}{times.get(who, '')}" for who, ms in row["ms"].items()]
    if "share of copy" in row:
        told.append(f"{row['GB/s']:.0f} GB/s, {row['share of copy']:.0%} of a copy's")
    told += [f"{who}: {why}" for who, why in row["errors"].items()]
    if "skipped" in row:
        told.append(f"the compilers: {row['skipped']}")
    return f"  {name}: " + "; ".join(told)


def summary(part: str, done: dict[str, Any]) -> str:
    found = done["results"]
    if part in ROWS:
        wrong, left = (sum(bool(row.get(key)) for row in found.values()) for key in ("errors", "skipped"))
        note = f"{len(found)} rows, {wrong} with errors, {left} without time for all"
    else:
        note = ", ".join(f"{count} {what}" for what, count in found.items())
    return f"{part:<12}{done['status']:<11}{done['seconds']:>6.1f} s  {note}"


def report(parts: dict[str, dict[str, Any]]) -> None:
    for part, done in parts.items():
        if part in ROWS:
            print(f"\n{part}, milliseconds")
            for name, row in done["results"].items():
                print(line(name, row))
        if "tail" in done:
            print(f"\n{part} {done['status']}:\n{done['tail']}")
    print()
    for part, done in parts.items():
        print(summary(part, done))


def earlier(out: Path, here: dict[str, Any]) -> dict[str, Any]:
    """The parts in a file from the same machine and versions."""
    data = json.loads(out.read_text()) if out.exists() else {}
    return data["parts"] if data.items() >= here.items() else {}


def run_all(chosen: list[str], out: Path) -> int:
    first = run("machine", MACHINE_LIMIT)
    if first["status"] != "ok":
        print((first["tail"].splitlines() or [first["status"]])[-1], file=sys.stderr)
        return 1
    here, parts = first["results"], {}
    if chosen != list(LIMITS):
        parts = earlier(out, here)
    for part in chosen:
        print(f"{part}, at most {LIMITS[part]} s", flush=True)
        parts[part] = run(part, LIMITS[part])
        write(out, {**here, "date": now(), "parts": parts})
    report({part: parts[part] for part in chosen})
    return int(any(parts[part]["status"] != "ok" for part in chosen))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=LIMITS, default=list(LIMITS), metavar="PART")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "gpu.json")
    parser.add_argument("--part", help="measure this in the process itself; used by the command")
    args = parser.parse_args()
    if args.part == "machine":
        write(args.out, importlib.import_module("gpu_cases").machine())
        return 0
    if args.part:
        return measure(args.part, args.out)
    return run_all(args.only, args.out)


if __name__ == "__main__":
    sys.exit(main())
