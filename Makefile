# make demo    crawl → corpus → trained model, on this machine     make test    the tests     make lint    ruff, mypy
# make bench   the benchmarks (minutes each)                       make setup   the environment alone
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := $(shell sed -n 's/^\(torch==[^ ]*\).*/\1/p' constraints.txt)
# Where to get torch from, if not from the configured package index: on a Linux machine without a GPU, give
# PyTorch's CPU index here to save 3 GB of CUDA libraries.
TORCH_INDEX_URL ?=

.PHONY: setup demo test lint bench clean

setup: $(VENV)/.ready

# torch first and alone: the other packages then find it satisfied and pull no other build of it
$(VENV)/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL)) "$(TORCH)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,s3,cluster,dev]'
	touch $@

demo: setup
	$(BIN)/corpusmill demo --out runs/demo

# In two processes, each with a Ray of its own; long files first, so that none is left for the end
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
		tests/end_to_end tests/trainers tests/cluster tests/pipeline tests/test_layout.py tests/test_corpusmill.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	for script in benchmarks/bench_*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(VENV) build *.egg-info .ruff_cache .mypy_cache .pytest_cache .hypothesis
