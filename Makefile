# make demo    register a real brain to a template and write transform, report and picture to demo-output/
# make test    run every test that can run here
# make test-core   only those of the core, as on the oldest Python
# make check   style, types and the order of the imports, as every change is checked
# make format  put the code into the style that make check asks for
# make docs    build the documentation into build/site
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# Tests use one thread, so as many files as there are processors are tested at once; four, as each takes about 1 GB.
PYTEST := $(VENV)/bin/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile

.PHONY: demo test test-core check format docs clean

demo: $(VENV)/.demo
	$(VENV)/bin/spatial-diffusion demo

test: $(VENV)/.test
	QT_QPA_PLATFORM=offscreen $(PYTEST)

# The tests that need neither Slicer's wheels nor the training package: those of the oldest Python, too.
CORE_TESTS := $(filter-out Testing/test_slicer% Testing/test_training% Testing/test_benchmark% Testing/test_docs.py, \
	$(shell grep -L -E 'SpatialDiffusionTraining|training_fixtures|Benchmark' Testing/test_*.py))

test-core: $(VENV)/.test-core
	$(PYTEST) $(CORE_TESTS)

check: $(VENV)/.check
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest Testing/test_architecture.py

format: $(VENV)/.check
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

docs: $(VENV)/.docs
	$(VENV)/bin/mkdocs build --strict

# torch goes first and alone: with it in place, no other package can pull in another build of it.
$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if v >= (3, 9) else "Python %d.%d is too old: \
	this needs Python 3.9 or newer; say which one, as in: make demo PYTHON=python3.11" % v)'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) torch
	@touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PIP) -e .
	@touch $@

$(VENV)/.test: $(VENV)/.demo
	$(PIP) -e '.[training,test,slicer-test]'
	@touch $@

$(VENV)/.test-core: $(VENV)/.demo
	$(PIP) -e '.[test]'
	@touch $@

$(VENV)/.check: $(VENV)/.demo
	$(PIP) -e '.[check,test]'
	@touch $@

$(VENV)/.docs: $(VENV)/.demo
	$(PIP) -e '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) demo-output build dist *.egg-info
