# `make demo` trains a small segmenter and draws what it does, `make demo TASK=detection` a small detector, of
# the kind that HEAD names; TASK may be panoptic, pose or saliency, too; with DATA=path/to/data on pictures of
# your own. `make test` runs the fast suite.
TASK ?= segmentation
HEAD ?= retinanet
PYTHON ?= python3
PIP := .venv/bin/python -m pip --disable-pip-version-check
WORKERS ?= 2
RUN := TF_CPP_MIN_LOG_LEVEL=2 .venv/bin/python
# Without the last option, pytest-xdist waits for ever after a process has crashed.
PYTEST := $(RUN) -m pytest --numprocesses $(WORKERS) --dist loadfile --max-worker-restart 0

.PHONY: demo test test-slow lint docs notebooks dist clean

demo: .venv/installed
	$(RUN) examples/demo.py $(TASK) $(if $(filter detection,$(TASK)),--head $(HEAD)) $(if $(DATA),--data $(DATA))

test: .venv/installed-test
	$(PYTEST)

test-slow: .venv/installed-test
	$(PYTEST) -m slow $(OPTIONS)

lint: .venv/installed-test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

docs: .venv/installed-docs
	.venv/bin/mkdocs build --strict

# docs/notebooks/*.ipynb, from the scripts beside them.
notebooks: .venv/installed-test
	$(RUN) docs/make_notebooks.py

# The wheel and the source distribution, in dist/.
dist: .venv/bin/python
	$(PIP) install --quiet build
	rm -rf build dist
	.venv/bin/python -m build

clean:
	rm -rf .venv runs site build dist

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml | .venv/bin/python
	$(PIP) install --quiet --editable .
	touch $@

.venv/installed-test: pyproject.toml | .venv/bin/python
	$(PIP) install --quiet --editable '.[test]'
	touch $@ .venv/installed

.venv/installed-docs: pyproject.toml | .venv/bin/python
	$(PIP) install --quiet --editable '.[docs]'
	touch $@ .venv/installed
