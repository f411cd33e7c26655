# `make demo` trains a small segmenter and draws what it does, `make demo TASK=detection` a small detector, of
# the kind that HEAD names; TASK may be panoptic, pose or saliency, too. `make test` runs the fast suite.
TASK ?= segmentation
HEAD ?= retinanet
PYTHON ?= python3
PIP := .venv/bin/python -m pip --disable-pip-version-check
WORKERS ?= 2
RUN := TF_CPP_MIN_LOG_LEVEL=2 .venv/bin/python

# On your own data (make demo DATA=path/to/data) the pictures are real: larger, and more steps.
DEMO_segmentation := finetune_segmentation.py --output runs/demo $(if $(DATA),\
	--data $(DATA) --crop-size 256 256 --batch-size 4 --steps 400 --evaluate-every 200,\
	--crop-size 128 128 --batch-size 8 --steps 400 --evaluate-every 100)
DEMO_detection := train_detection.py --output runs/demo-$(HEAD) --head $(HEAD) --channels 64 \
	$(if $(filter retinanet gfl atss,$(HEAD)),--num-convs 1) \
	$(if $(filter faster_rcnn mask_rcnn cascade_mask_rcnn,$(HEAD)),--num-proposals 200 --num-samples 64) \
	$(if $(filter sparse_rcnn,$(HEAD)),--num-proposals 30 --learning-rate 5e-4) $(if $(DATA),\
	--data $(DATA) --image-size 256 --scale-range 0.8 1.25 --batch-size 4 --steps 1000 --evaluate-every 500,\
	--image-size 128 --scale-range 1 1 --batch-size 4 --steps 1000 --evaluate-every 250)
DEMO_pose := train_pose.py --output runs/demo-pose --channels 64 --rotation 30 --scale-range 0.75 1.25 $(if $(DATA),\
	--data $(DATA) --batch-size 8 --steps 400 --evaluate-every 200,\
	--batch-size 16 --steps 600 --evaluate-every 200)

DEMO_panoptic := train_panoptic.py --output runs/demo-panoptic --channels 64 --num-queries 20 \
	--num-encoder-layers 1 --num-decoder-layers 3 --score-threshold 0.5 $(if $(DATA),\
	--data $(DATA) --image-size 256 --num-points 1024 --scale-range 0.8 1.25 --batch-size 4 --steps 1000 --evaluate-every 500,\
	--image-size 128 --num-points 512 --scale-range 1 1 --batch-size 8 --steps 400 --evaluate-every 200)

DEMO_saliency := train_saliency.py --output runs/demo-saliency $(if $(DATA),\
	--data $(DATA) --image-sizes 224 256 --batch-size 4 --steps 400 --evaluate-every 200,\
	--image-sizes 128 --batch-size 8 --steps 500 --evaluate-every 100)

.PHONY: demo test test-slow lint docs dist clean

demo: .venv/installed
	$(if $(DEMO_$(TASK)),,$(error TASK must be segmentation, detection, panoptic, pose or saliency. Received: $(TASK)))
	$(RUN) examples/$(DEMO_$(TASK))

test: .venv/installed-test
	$(RUN) -m pytest --numprocesses $(WORKERS) --dist loadfile

test-slow: .venv/installed-test
	$(RUN) -m pytest -m slow --numprocesses $(WORKERS) --dist loadfile $(OPTIONS)

lint: .venv/installed-test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

docs: .venv/installed-docs
	.venv/bin/mkdocs build --strict

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
