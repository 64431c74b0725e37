# make race       the digits race, from a fresh clone to its report
# make test       the tests (make test-slow: those that take minutes)
# make lint       ruff, pyright, and the check of the prose
# make docs       the site, into build/site; it builds and opens without the network
# make gallery    a page of all committed studies, into build/gallery; it opens without the network
# make bench      our step against the released arithmetic, our metrics against the usual ones, side by side
# make bench-gpu  the measurements that need a GPU, in one call under 8 minutes
# make counts     needs, defaults and FLOPs of the methods, shipped with the package
# make lock       constraints.txt, the exact versions of this installation
#
# LOCKED=1 installs the versions of constraints.txt, for example: make test LOCKED=1
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Everything, or only what a race needs.
INSTALLED := $(VENV)/.installed$(if $(LOCKED),-locked)
FOR_RACE := $(VENV)/.installed-for-race$(if $(LOCKED),-locked)
export HF_HUB_OFFLINE ?= 1
# The theme's advertisement for its successor.
docs: export NO_MKDOCS_2_WARNING ?= 1
# Two test processes share the cores: one thread each, or they compete for them.
test test-slow: export OMP_NUM_THREADS ?= 1

.PHONY: race test test-slow lint docs gallery bench bench-gpu counts lock clean
.DELETE_ON_ERROR:

# Install the package with the extras $(1).
define install
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(LOCKED),--constraint constraints.txt) \
		--editable '.$(1)'
	rm -f $(VENV)/.installed*
	touch $@
endef

EXTRAS := [test,docs,video,audio,tune,latents,text,slurm,ray,logs,optimizers,metaworld,pusht]
$(INSTALLED): pyproject.toml $(if $(LOCKED),constraints.txt)
	$(call install,$(EXTRAS))

$(FOR_RACE): pyproject.toml $(if $(LOCKED),constraints.txt)
	$(call install)

race: $(if $(wildcard $(INSTALLED)),$(INSTALLED),$(FOR_RACE))
	$(BIN)/flowrace sweep digits

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python scripts/prose.py

docs: $(INSTALLED)
	$(BIN)/python -m mkdocs build --strict --quiet

gallery: $(INSTALLED)
	$(BIN)/python scripts/gallery.py build/gallery

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.step --rounds 7
	$(BIN)/python -m benchmarks.metrics
	$(BIN)/python -m benchmarks.sweep --out benchmarks/results/sweep.json

bench-gpu: $(INSTALLED)
	$(BIN)/python -m benchmarks.gpu --minutes 8

counts: $(INSTALLED)
	$(BIN)/python -m harness.cli.method_facts

lock: $(INSTALLED)
	$(BIN)/python scripts/lock.py > constraints.txt

clean:
	rm -rf $(VENV) build dist *.egg-info
