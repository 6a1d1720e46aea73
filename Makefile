# make demo   register a real brain to a template and write transform, report and picture to demo-output/
# make test   run every test that can run here
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test clean

demo: $(VENV)/.demo
	$(VENV)/bin/spatial-diffusion demo

test: $(VENV)/.test
	QT_QPA_PLATFORM=offscreen $(VENV)/bin/python -m pytest

# torch goes first and alone: with it in place, no other package can pull in another build of it.
$(VENV)/.torch: constraints.txt
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

clean:
	rm -rf $(VENV) demo-output build dist *.egg-info
