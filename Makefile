# make sweep: everything from nothing to the comparison table. Python 3.11 to 3.13.
# make quick: a minute of the tests nearest to a change. make test: all but the slow ones. make test-all: these, too.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := dev,docs,joblib,slurm,ray,dashboard,postgres,export,lightning
PORT ?= 5000
WORKERS = $(shell echo $$(($$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN) + 1))) # some tests wait
PYTEST = $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder --numprocesses $(WORKERS)

.PHONY: install sweep quick test test-all soak check docs ui lock clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 14) else "segsweep needs Python 3.11 to 3.13, this is %d.%d: make PYTHON=python3.12 ..." % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.tools: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$(EXTRAS)]"
	@touch $@

sweep: install
	$(BIN)/python -m segsweep -m model=unet,r2unet optim=sgd,adam

quick: $(VENV)/.tools
	SEGSWEEP_UNTIL=$$(($$(date +%s) + 45)) $(PYTEST) -m 'not slow' $$($(BIN)/python tests/quick.py)

test: $(VENV)/.tools
	$(PYTEST) -m 'not slow'

test-all: $(VENV)/.tools
	$(PYTEST)

soak: $(VENV)/.tools
	SEGSWEEP_SOAK=20 $(BIN)/python -m pytest tests/test_interruption.py tests/test_durability.py tests/test_fuzz.py tests/test_properties.py -k 'killed or full_disk or loop_device or fuzz_what or properties'

check: $(VENV)/.tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.tools
	$(BIN)/python -m sphinx -q -n -W --keep-going -c docs -d docs/_build/doctrees . docs/_build/html
	@echo 'docs/_build/html/index.html'

ui: install
	$(BIN)/segsweep ui --port $(PORT)

lock: $(VENV)/.tools
	$(BIN)/python -m pip list --format freeze --exclude-editable | grep -v -e '^pip=' -e '^setuptools=' -e '^segsweep=' | sed 's/+cpu$$//' > constraints.txt

clean:
	rm -rf $(VENV)
