# make race   the digits race, from a fresh clone to its report
# make test   the tests
# make bench-gpu  what wants a GPU, in one call under 8 minutes
# make bench  our step against the released arithmetic, our metrics against the usual ones, side by side
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE ?= 1
# Two test processes share the cores: one thread each, or they fight.
test test-slow: export OMP_NUM_THREADS ?= 1

.PHONY: race test test-slow bench bench-gpu lint clean
.DELETE_ON_ERROR:

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,video,audio,tune,latents,slurm,ray]'
	touch $@

race: $(VENV)/.installed
	$(BIN)/flowrace sweep digits

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 -m slow

bench-gpu: $(VENV)/.installed
	$(BIN)/python -m benchmarks.gpu --minutes 8

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks.step --rounds 7
	$(BIN)/python -m benchmarks.metrics
	$(BIN)/python -m benchmarks.sweep --out benchmarks/results/sweep.json

lint: $(VENV)/.installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) build dist *.egg-info
