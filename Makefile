# make demo   train, evaluate and predict on procedural scenes, from nothing to a picture
# make test   the tests; make test-fast leaves out those that take long, and needs three minutes on two cores
# make lint   ruff
# make docs   docs/api.md, from the docstrings, and the tables of recipes in docs/reproducibility.md
#
# Each target sets up its own .venv first, once; after that nothing needs the network. Choices:
#   PYTHON=python3.12       the interpreter that makes the environment (3.11 or later)
#   TORCH_INDEX=URL         where torch comes from. On Linux, PyPI's torch brings several GB of CUDA libraries;
#                           TORCH_INDEX=https://download.pytorch.org/whl/cpu is the small build for the CPU
#   PIP_ARGS="..."          passed on to every `pip install`
#   PYTEST_ARGS="..."       passed on to pytest, for instance PYTEST_ARGS="-x tests/evaluation"
#   DEMO_ARGS="..."         passed on to the demo

PYTHON ?= python3
TORCH_INDEX ?=
PIP_ARGS ?=
PYTEST_ARGS ?= -n auto --maxprocesses 4 --dist worksteal
DEMO_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OFFLINE := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1

.PHONY: venv demo test test-fast docs lint clean

venv: $(STAMP)

# torch goes first, by itself, so that TORCH_INDEX is asked for nothing else and the second step finds torch there.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "Python 3.11 or later is needed, and '$(PYTHON)' is not that:" \
	         "$$($(PYTHON) --version 2>&1). Name another: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { \
	    echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu it needs the package python3-venv." >&2; exit 1; }
	$(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP_ARGS) \
	    $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --constraint constraints.txt torch
	$(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP_ARGS) \
	    --constraint constraints.txt --editable '.[geo,viz,dev]'
	# transformers' own common tests are in its source distribution only; without it the tests that run them are skipped
	-$(BIN)/python tests/fixtures/transformers_sdist.py
	@touch $@

demo: $(STAMP)
	$(OFFLINE) $(BIN)/python scripts/demo.py --output_dir demo_output $(DEMO_ARGS)

# One thread per test process: the processes share the cores already.
test: $(STAMP)
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

test-fast: $(STAMP)
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS) -m "not long"

docs: $(STAMP)
	$(BIN)/python docs/make_api.py
	$(BIN)/python docs/make_recipes.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) build dist *.egg-info demo_output .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
