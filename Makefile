# Two commands on a fresh machine: `make demo` and `make test`. Everything is installed into .venv.
PYTHON ?= python3
VENV ?= .venv
STUDY ?= committed
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
BUILD_INPUTS := setup.py pyproject.toml constraints.txt $(wildcard csrc/*/* csrc/*/*/*)

.PHONY: demo study test slow bench lint wheel static gpu carry clean

demo: $(VENV)/.installed-demo
	$(BIN)/seq2exp demo --out runs/demo --force

# What makes the mask learn, on simulated genes: an hour on 2 cores, STUDY=long two; interrupted, the same command goes on.
study: $(VENV)/.installed-demo
	$(BIN)/seq2exp study runs/study --preset $(STUDY) --workers 2 --results bench/results

# A worker for each core, and one thread for each worker.
test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow and not gpu" -n auto --maxprocesses 16 --dist loadfile $(PYTEST_ARGS)

slow: $(VENV)/.installed-test
	$(BIN)/pytest -m slow $(PYTEST_ARGS)

# No figure for a kernel that fails its tests.
BENCHED := selective_scan selective_scan_native add_norm embed gather beta_mask beta_mask_native \
  beta_mask_sampling bimamba bimamba_native bimamba_op bimamba_block
bench: $(VENV)/.installed-test
	$(BIN)/pytest -q -m "not slow and not gpu" $(BENCHED:%=tests/kernels/test_%.py)
	$(BIN)/python bench/run.py
	$(BIN)/pytest -q --benchmark-only --benchmark-max-time=0.3 --benchmark-min-rounds=3 bench/test_*.py

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

wheel: $(VENV)/.installed-test
	rm -rf dist build/lib*
	$(BIN)/python -m pip --disable-pip-version-check wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	@ls dist

# Registers, spills, occupancy and instructions of the GPU kernels, from their machine code. Needs nvcc and Triton, no GPU.
static: $(VENV)/.installed-test
	$(BIN)/python bench/static.py

# With the python3 that is there; installs nothing. Without a GPU it rehearses.
gpu:
	$(PYTHON) bench/gpu.py

# What a GPU machine without network needs beyond the tree.
carry: $(VENV)/.installed-test
	-$(BIN)/python bench/peers.py fetch
	$(BIN)/python bench/carry.py

clean:
	rm -rf $(VENV) build dist runs *.egg-info seq2exp/*.so

# torch first: the extension is built against it.
$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch setuptools wheel ninja
	touch $@

$(VENV)/.built: $(VENV)/.torch $(BUILD_INPUTS)
	$(PIP) --no-build-isolation --editable .
	$(BIN)/seq2exp info
	touch $@

$(VENV)/.installed-demo: $(VENV)/.built
	touch $@

# CUDA builds of torch bring their Triton; beside a CPU build it compiles and interprets kernels for the tests.
$(VENV)/.installed-test: $(VENV)/.built
	$(PIP) --no-build-isolation --editable ".[test]"
	$(BIN)/python -c "import triton" 2>/dev/null || $(PIP) --no-deps triton==3.6.0 || echo "no Triton here: its tests are skipped"
	touch $@

$(VENV)/.installed-lint: $(VENV)/.built
	$(PIP) --no-build-isolation --editable ".[test,lint]"
	touch $@
