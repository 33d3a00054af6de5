# `make quickstart` and `make test` do everything on a fresh machine; both are idempotent.
# Another Python: `make PYTHON=python3.12 test`. pip's own settings (PIP_INDEX_URL, ...) are honoured, e.g. to take a CPU build of torch.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2

BIN := $(VENV)/bin
RUN := $(BIN)/python
# pip compiles the 18,000 files on one core; COMPILE does it on all of them, but for those that hardly anyone imports.
# A file for another Python is no error.
PIP := $(RUN) -m pip install --disable-pip-version-check --quiet --no-compile -c constraints.txt
COMPILE := $(RUN) -W ignore -m compileall -qq -j 0 -x "/tests/|/transformers/models/" $(VENV)/lib || true

SOURCES := fairseq_ext graph vision_language tests $(wildcard docs/hooks examples benchmarks)

# One line that says what is wrong with this machine, or nothing. Python 2 can run it too.
NEEDS := fairseq-ext needs Python 3.11 or 3.12 on Linux x86_64
CHECK := import platform, sys; \
  found = "Python %s (%s) on %s %s" % (platform.python_version(), sys.executable, platform.system(), platform.machine()); \
  good = sys.version_info[:2] in ((3, 11), (3, 12)) and (platform.system(), platform.machine()) == ("Linux", "x86_64"); \
  sys.stdout.write("" if good else "$(NEEDS), found " + found + ": try `make PYTHON=python3.12 ...`")
PROBLEM = $(shell $(PYTHON) -c '$(CHECK)' 2>/dev/null || echo '$(NEEDS), but `$(PYTHON)` does not run: try `make PYTHON=python3.12 ...`')

.DEFAULT_GOAL := help
.PHONY: help quickstart test coverage lint style docs recipes results benchmarks gpu clean

help:
	@echo "make quickstart   install, then train and translate on the embedded corpus (examples/quickstart)"
	@echo "make test         install with the test extra, then lint, type check and run every test"
	@echo "make coverage     run every test, and show the lines of each file that none of them reaches"
	@echo "make lint         linter, formatter check and type checker only"
	@echo "make docs         build the site into site/ (open site/index.html)"
	@echo "make recipes      write fairseq_ext/conf from the table of recipes"
	@echo "make results      write docs/RESULTS.md from the stored measurements (make results CHECK=1: fail if it differs)"
	@echo "make benchmarks   measure speed and memory, print every ratio"
	@echo "make gpu          nine minutes on a GPU: its tests, ratios, Multi30k, MNIST (make gpu DRY_RUN=1: on the CPU, tiny)"
	@echo "make clean        remove the environment and every cache"

quickstart: $(VENV)/.installed
	$(RUN) -m examples.quickstart

# The type checker beside the tests, as it keeps one core busy for half a minute; what it finds is shown after them.
test: style
	$(RUN) -m mypy >$(VENV)/mypy.log 2>&1 & types=$$!; \
	$(RUN) -m pytest -n $(JOBS) --dist worksteal --durations 10; tests=$$?; \
	wait $$types || { cat $(VENV)/mypy.log; exit 1; }; exit $$tests

coverage: $(VENV)/.installed-test
	$(RUN) -m pytest -n $(JOBS) --dist worksteal --cov --cov-report term-missing:skip-covered

lint: style
	$(RUN) -m mypy

style: $(VENV)/.installed-test
	$(RUN) -m ruff check $(SOURCES)
	$(RUN) -m ruff format --check $(SOURCES)

# The variable: the theme's advertisement of its successor.
docs: $(VENV)/.installed-test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

recipes: $(VENV)/.installed
	$(RUN) -m fairseq_ext.recipes

results: $(VENV)/.installed-test
	$(RUN) -m examples.results report $(if $(CHECK),--check)

benchmarks: $(VENV)/.installed-test
	$(RUN) -m benchmarks

# On a machine without .venv, with the Python that has CUDA's torch.
gpu:
	$(if $(wildcard $(RUN)),$(RUN),$(PYTHON)) -m benchmarks.gpu $(if $(DRY_RUN),--dry-run)

clean:
	rm -rf $(VENV) build dist site *.egg-info .coverage* .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

# What runs, and what the tests need as well. The order matters: ve-fairseq asks for any torch, so the tested one is installed before it.
$(VENV)/.installed: EXTRAS := fairseq,quickstart
$(VENV)/.installed-test: EXTRAS := test
$(VENV)/.installed $(VENV)/.installed-test: pyproject.toml constraints.txt
	$(if $(strip $(PROBLEM)),$(error $(PROBLEM)))
	@echo "Setting up $(VENV): a few minutes the first time"
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	@$(PIP) torch==2.13.0
	@$(PIP) -e '.[$(EXTRAS)]'
	@$(COMPILE)
	@touch $(VENV)/.installed $@
