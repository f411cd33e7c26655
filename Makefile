# `make demo` trains a small segmenter and draws what it does; `make test` runs the fast suite.
PYTHON ?= python3
PIP := .venv/bin/python -m pip --disable-pip-version-check
WORKERS ?= 2
RUN := TF_CPP_MIN_LOG_LEVEL=2 .venv/bin/python

# On your own data (make demo DATA=path/to/data) the pictures are real: larger crops, more steps.
DEMO_OPTIONS := $(if $(DATA),--data $(DATA) --crop-size 256 256 --batch-size 4 --steps 400 --evaluate-every 200,\
	--crop-size 128 128 --batch-size 8 --steps 400 --evaluate-every 100)

.PHONY: demo test test-slow lint clean

demo: .venv/installed
	$(RUN) examples/finetune_segmentation.py $(DEMO_OPTIONS) --output runs/demo

test: .venv/installed-test
	$(RUN) -m pytest --numprocesses $(WORKERS) --dist loadfile

test-slow: .venv/installed-test
	$(RUN) -m pytest -m slow --numprocesses $(WORKERS) --dist loadfile

lint: .venv/installed-test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

clean:
	rm -rf .venv runs

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml | .venv/bin/python
	$(PIP) install --quiet --editable .
	touch $@

.venv/installed-test: pyproject.toml | .venv/bin/python
	$(PIP) install --quiet --editable '.[test]'
	touch $@ .venv/installed
