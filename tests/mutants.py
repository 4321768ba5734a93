"""Changes one place of a source at a time, and runs the tests that touch it: ``make mutants``.

Not mutmut, which leaves out decorated functions and tables: most of _ops.py, and of fuse's rules. Not
cosmic-ray, which starts a Python that imports torch for each mutant. Here each is a fork of a process that
has torch; the sources stay as they are.

build/mutants has what is known: the lines that each test touches, and which mutants were killed. So a run
that was stopped goes on, and what survived runs again. mutants.txt has the survivors that do the same as
the original, each with the reason.
"""

import argparse
import collections
import hashlib
import inspect
import json
import os
import random
import signal
import sys
import threading
from importlib.machinery import SourceFileLoader
from pathlib import Path

import mutations
import pytest
import torch  # noqa: F401  once, for all forks

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build/mutants"
FUSION = [f"fusion/{name}" for name in ("chains", "parts", "purity", "guard", "fused")]
FILES = [str(ROOT / f"fastcnn/{name}.py") for name in ("stages", "_ops", "functional", *FUSION)]
NAMES = """chains compiled dispatch fuse* guard migration models nn opdb ops plain prepared public_names
           purity saved scalars stages strides subclasses torch_tools written_outputs zoo*"""
TESTS = [test for name in NAMES.split() for test in sorted(ROOT.glob(f"tests/test_{name}.py"))]
SECONDS = 60  # of tests for a mutant


def forked(run, seconds):
    """Returns what run() returns, in a process of its own; None where that ends otherwise."""
    if pid := os.fork():
        status = os.waitpid(pid, 0)[1]
        return os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
    try:
        signal.alarm(seconds)
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        os._exit(run())
    finally:
        os._exit(99)


class Recorder:
    """Notes how long each test takes, and which lines of FILES it touches."""

    def __init__(self):
        self.files, self.lines, self.tests = set(FILES), collections.defaultdict(set), {}

    def pytest_runtest_logstart(self):
        self.lines.clear()

    def pytest_runtest_logreport(self, report):
        if report.when == "call" and report.passed:
            lines = {file: sorted(lines) for file, lines in self.lines.items()}
            self.tests[report.nodeid] = report.duration, lines

    def trace(self, frame, event, arg):
        file, is_function = frame.f_code.co_filename, frame.f_code.co_flags & inspect.CO_OPTIMIZED
        if file not in self.files or not is_function:  # what an import runs belongs to no test
            return None
        self.lines[file].add(frame.f_lineno)
        return self.trace


def recorded(test):
    """Returns for each test of a file that passes: its seconds, and by file the lines that it touches."""
    kept = BUILD / f"{test.stem}.json"
    text = "".join(Path(file).read_text() for file in (test, *FILES))
    digest = hashlib.sha256(text.encode()).hexdigest()

    def record():
        recorder = Recorder()
        threading.settrace(recorder.trace)
        sys.settrace(recorder.trace)
        pytest.main(["-q", "-p", "no:cacheprovider", str(test)], plugins=[recorder])
        sys.settrace(None)
        kept.write_text(json.dumps({"of": digest, "tests": recorder.tests}))
        return 0

    if not kept.exists() or json.loads(kept.read_text())["of"] != digest:
        print(f"recording {test.name}", flush=True)
        forked(record, 3600)
    return json.loads(kept.read_text())["tests"]


def near(tests, file, lines):
    """Returns the file's own tests, and tests that touch the lines, or the file where only an import does.

    Of these the quickest of each path through the file first, then the next of each, and so on: alike tests
    see alike mistakes.
    """
    name = f"test_{Path(file).stem.lstrip('_')}.py::"
    there = {test: seconds for test, (seconds, touched) in tests.items() if file in touched}
    own = {test for test in there if name in test}  # all: torch.compile follows lines that none touches
    nearer = {test for test in there if not set(lines).isdisjoint(tests[test][1][file])}
    alike, turns = collections.Counter(), {}
    for test in sorted(own | (nearer or there.keys()), key=there.get):
        path = tuple(tests[test][1][file])
        turns[test] = test not in own, alike[path]
        alike[path] += 1
    found, left = [], SECONDS
    for test in sorted(turns, key=turns.get):
        if (left := left - there[test]) < 0 and found:
            break
        found.append(test)
    return found


class Chosen:
    """Runs these tests alone, in this order."""

    def __init__(self, tests):
        self.tests = {test: i for i, test in enumerate(tests)}

    def pytest_collection_modifyitems(self, items):
        items[:] = [item for item in items if item.nodeid in self.tests]
        items.sort(key=lambda item: self.tests[item.nodeid])


def survives(file, source, place, tests):
    """Returns whether the tests pass with a mutant."""
    code, own = compile(mutations.tree(source, place), file, "exec"), SourceFileLoader.get_code
    options = ["-q", "-x", "-p", "no:cacheprovider", *sorted({test.partition("::")[0] for test in tests})]

    def run():
        SourceFileLoader.get_code = lambda self, name: code if self.path == file else own(self, name)
        return pytest.main(options, plugins=[Chosen(tests)])

    return forked(run, 10 * SECONDS) == pytest.ExitCode.OK


def report(names, passes):
    """Tries the mutants that are neither killed nor argued yet, and prints those that survive."""
    (log := BUILD / "killed.txt").touch()
    killed, argued = log.read_text(), (ROOT / "tests/mutants.txt").read_text()
    known = {*killed.splitlines(), *argued.splitlines()}
    for name in names:
        if name in known:
            continue
        if passes(name):
            print(f"survives: {name}", flush=True)
        else:
            with log.open("a") as out:
                print(name, file=out)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", default=FILES, type=os.path.abspath)
    parser.add_argument("--sample", type=int, help="so many mutants of each file, drawn at random")
    args = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    tests = {name: seen for test in TESTS for name, seen in recorded(test).items()}
    for file in args.files:
        source, name = Path(file).read_text(), os.path.relpath(file, ROOT)
        made = {f"{name} {what}": (lines, place) for what, lines, place in mutations.mutants(source)}
        drawn = random.Random(0).sample(list(made), min(args.sample or len(made), len(made)))
        print(f"{name}: {len(drawn)} of {len(made)} mutants", flush=True)

        def passes(what, file=file, source=source, made=made):
            lines, place = made[what]
            return survives(file, source, place, near(tests, file, lines))

        report(drawn, passes)


if __name__ == "__main__":
    main()
