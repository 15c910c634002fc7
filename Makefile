# `make` prints what can be made; each target first installs what it needs.
VENV := .venv
VENV_TF1 := .venv-tf1
VENV_HOROVOD := .venv-horovod
VENV_INTEROP := .venv-interop
VENV_IMGCLSMOB := .venv-imgclsmob
VENV_GPU := .venv-gpu

# As many tests at once as there are cores, at most four: each worker takes about 1.5 GB of memory.
PYTEST := -m pytest -n logical --maxprocesses 4 --dist loadgroup

IMAGE := ghostnet-tf1
IMAGE_TF2 := ghostnet-tf2
LOAD := models/ghostnet_checkpoint

.DEFAULT_GOAL := help
.PHONY: help eval fetch data reproduce lint test test-all test-tf1 test-interop test-imgclsmob test-horovod engine image image-tf2 \
	test-docker test-docker-tf2 gpu-venv test-gpu train-digits clean

help:
	@echo "make eval          evaluate the included network on 360 digits (installs $(VENV), 2.5 GB)"
	@echo "make fetch         download and verify the published checkpoint"
	@echo "make data          make an ILSVRC12 tree: ARGS='--val TAR --devkit TAR.GZ --out TREE'"
	@echo "make reproduce     compare with the published result: DATA=TREE"
	@echo "make train-digits  train the included network (20 minutes on two cores)"
	@echo "make lint          check the sources with ruff"
	@echo "make test          run the fast tests (some minutes)"
	@echo "make test-all      run all tests"
	@echo "make test-tf1      run all tests with TensorFlow 1.13.1 (needs CPython 3.6; $(VENV_TF1), 1 GB)"
	@echo "make test-interop  run those with other libraries and runtimes ($(VENV_INTEROP), 8 GB)"
	@echo "make test-imgclsmob  run those with Gluon, Chainer and tf2cv (needs CPython 3.7; $(VENV_IMGCLSMOB), 1.5 GB)"
	@echo "make test-horovod  run those of several machines (needs CPython 3.7; $(VENV_HOROVOD), 2 GB)"
	@echo "make test-docker   build the publication's image and test it (needs a Docker engine)"
	@echo "make test-docker-tf2  build today's images, for CPUs and GPUs, and test them (needs a Docker engine)"
	@echo "make gpu-venv      install $(VENV_GPU), with the CUDA libraries (8 GB)"
	@echo "make test-gpu      compare a GPU with the CPU, and measure it, in $(VENV_GPU)"
	@echo "make clean         remove the environments and the prepared digits"
	@echo "ARGS='...' are further flags, of main.py, of the script or of pytest."

eval: $(VENV)/installed
	$(VENV)/bin/python data/digits/prepare.py
	$(VENV)/bin/python main.py --eval $(ARGS)

fetch: $(VENV)/installed
	$(VENV)/bin/python models/fetch.py $(ARGS)

data: $(VENV)/installed
	$(VENV)/bin/python data/ilsvrc12/prepare.py $(ARGS)

# Makes models/digits_checkpoint: train_log/ghostnet_checkpoint.
train-digits: $(VENV)/installed
	$(VENV)/bin/python data/digits/prepare.py
	$(VENV)/bin/python main.py --train --data_dir data/digits --batch 32 --epochs 34 --seed 0 --log_dir train_log $(ARGS)

lint: $(VENV)/installed
	$(VENV)/bin/python -m ruff check .

test: $(VENV)/installed
	$(VENV)/bin/python $(PYTEST) -m "not slow" tests $(ARGS)

test-all: $(VENV)/installed
	$(VENV)/bin/python $(PYTEST) tests $(ARGS)

test-tf1: $(VENV_TF1)/installed
	$(VENV_TF1)/bin/python $(PYTEST) tests $(ARGS)

test-horovod: $(VENV_HOROVOD)/installed
	$(VENV_HOROVOD)/bin/python -m pytest tests/training/test_horovod.py $(ARGS)

# With the other libraries and runtimes; both stacks' graphs are compared with theirs. Pages are opened in Debian's Chromium.
test-interop: $(VENV_INTEROP)/installed $(VENV_TF1)/installed
	$(VENV_INTEROP)/bin/python $(PYTEST) tests/tools/test_import_weights.py $(wildcard tests/tools/test_export*.py) tests/tools/test_bench.py \
		tests/tools/test_compare.py tests/tools/test_darknet.py tests/tools/test_own_pictures.py tests/evaluation/test_report_browser.py \
		tests/evaluation/test_engines.py tests/test_shared.py $(ARGS)

# Files are read and written on today's stack; their libraries, in an environment of an older Python, open them.
test-imgclsmob: $(VENV_IMGCLSMOB)/installed $(VENV)/installed
	GHOSTNET_IMGCLSMOB_PYTHON=$(VENV_IMGCLSMOB)/bin/python $(VENV)/bin/python -m pytest tests/tools/test_foreign_files.py $(ARGS)

gpu-venv: $(VENV_GPU)/installed

test-gpu: $(VENV_GPU)/installed
	$(VENV_GPU)/bin/python -m pytest -rsP tests/training/test_gpu.py $(ARGS)

engine:
	@docker info >/dev/null 2>&1 || { echo "make: no Docker engine answers 'docker info': start one" >&2; exit 2; }

image: engine
	docker build -f docker/Dockerfile -t $(IMAGE) .

# The second has the layers of the first.
image-tf2: engine
	docker build -f docker/Dockerfile.tf2 -t $(IMAGE_TF2) .
	docker build -f docker/Dockerfile.tf2 -t $(IMAGE_TF2)-gpu --build-arg GPU=1 .

# Runs the era's image as its users do, the tests among them.
test-docker: image $(VENV)/installed
	GHOSTNET_IMAGE=$(IMAGE) $(VENV)/bin/python -m pytest tests/test_docker.py $(ARGS)

test-docker-tf2: image-tf2 $(VENV)/installed
	GHOSTNET_IMAGE_TF2=$(IMAGE_TF2) GHOSTNET_IMAGE_TF2_GPU=$(IMAGE_TF2)-gpu $(VENV)/bin/python -m pytest tests/test_docker.py $(ARGS)

reproduce: $(VENV)/installed
	@[ -n "$(DATA)" ] || { echo "make: name the ILSVRC12 tree: make reproduce DATA=..." >&2; exit 2; }
	$(VENV)/bin/python -m tools.reproduce --data_dir "$(DATA)" --load "$(LOAD)" $(ARGS)

# An environment is made again when its requirements change. tools/environments.sh refuses links, and folders of others.
# A pyenv shim answers `command -v` even where its Python is not chosen, so each candidate is run.
$(VENV)/installed: requirements.txt
	@for python in $(PYTHON) python3 python3.13 python3.12 python3.11 python3.10; do \
		$$python -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && break; python=; \
	done; \
	[ -n "$$python" ] || { echo "make: no CPython 3.10 to 3.13 found: install one, or name it with PYTHON=..." >&2; exit 2; }; \
	sh tools/environments.sh new $$python $(VENV) && \
	echo "Installing requirements.txt into $(VENV) with $$($$python --version) (about 2.5 GB, a few minutes)" && \
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt && \
	touch $@

$(VENV_INTEROP)/installed: $(VENV)/installed requirements-interop.txt requirements-opencv4.txt
	@sh tools/environments.sh new $(VENV)/bin/python $(VENV_INTEROP) && \
	echo "Installing requirements-interop.txt too into $(VENV_INTEROP) (about 8 GB, a few minutes)" && \
	$(VENV_INTEROP)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-interop.txt && \
	$(VENV_INTEROP)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(VENV_INTEROP)/opencv4 \
		-r requirements-opencv4.txt && \
	touch $@

$(VENV_GPU)/installed: $(VENV)/installed requirements-gpu.txt
	@sh tools/environments.sh new $(VENV)/bin/python $(VENV_GPU) && \
	echo "Installing requirements-gpu.txt into $(VENV_GPU) (about 8 GB, a few minutes)" && \
	$(VENV_GPU)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-gpu.txt && \
	touch $@

$(VENV_TF1)/installed: requirements-tf1.txt
	@for python in $(PYTHON36) python3.6 $(wildcard $(HOME)/.pyenv/versions/3.6.*/bin/python3.6); do \
		$$python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 6))' 2>/dev/null && break; python=; \
	done; \
	[ -n "$$python" ] || { echo "make: no CPython 3.6 found: install one, or name it with PYTHON36=..." >&2; exit 2; }; \
	sh tools/environments.sh new $$python $(VENV_TF1) && \
	echo "Installing requirements-tf1.txt into $(VENV_TF1) with $$($$python --version) (about 1 GB, a few minutes)" && \
	$(VENV_TF1)/bin/python -m pip install --quiet --disable-pip-version-check pip==21.3.1 && \
	$(VENV_TF1)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-tf1.txt && \
	touch $@

# Horovod is compiled against TensorFlow, which must therefore be there first, with CMake from PyPI (about 2 minutes).
$(VENV_HOROVOD)/installed: requirements-horovod.txt
	@for python in $(PYTHON37) python3.7 $(wildcard $(HOME)/.pyenv/versions/3.7.*/bin/python3.7); do \
		$$python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 7))' 2>/dev/null && break; python=; \
	done; \
	[ -n "$$python" ] || { echo "make: no CPython 3.7 found: install one, or name it with PYTHON37=..." >&2; exit 2; }; \
	command -v c++ >/dev/null || { echo "make: Horovod needs a C++ compiler: install g++" >&2; exit 2; }; \
	sh tools/environments.sh new $$python $(VENV_HOROVOD) && \
	echo "Installing requirements-horovod.txt into $(VENV_HOROVOD) with $$($$python --version) (about 2 GB, 5 minutes)" && \
	$(VENV_HOROVOD)/bin/python -m pip install --quiet --disable-pip-version-check pip==24.0 && \
	grep -v '^horovod==' requirements-horovod.txt > $(VENV_HOROVOD)/first.txt && \
	$(VENV_HOROVOD)/bin/python -m pip install --quiet --disable-pip-version-check -r $(VENV_HOROVOD)/first.txt && \
	PATH="$(CURDIR)/$(VENV_HOROVOD)/bin:$$PATH" HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_MXNET=1 \
		HOROVOD_WITH_GLOO=1 HOROVOD_WITHOUT_MPI=1 $(VENV_HOROVOD)/bin/python -m pip install --quiet --disable-pip-version-check \
		--no-build-isolation -r requirements-horovod.txt && \
	touch $@

$(VENV_IMGCLSMOB)/installed: requirements-imgclsmob.txt
	@for python in $(PYTHON37) python3.7 $(wildcard $(HOME)/.pyenv/versions/3.7.*/bin/python3.7); do \
		$$python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 7))' 2>/dev/null && break; python=; \
	done; \
	[ -n "$$python" ] || { echo "make: no CPython 3.7 found: install one, or name it with PYTHON37=..." >&2; exit 2; }; \
	sh tools/environments.sh new $$python $(VENV_IMGCLSMOB) && \
	echo "Installing requirements-imgclsmob.txt into $(VENV_IMGCLSMOB) with $$($$python --version) (about 1.5 GB, a minute)" && \
	$(VENV_IMGCLSMOB)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-imgclsmob.txt && \
	touch $@

clean:
	@sh tools/environments.sh clean $(VENV) $(VENV_TF1) $(VENV_HOROVOD) $(VENV_INTEROP) $(VENV_IMGCLSMOB) $(VENV_GPU)
