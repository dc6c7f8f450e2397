# `make` alone lists the targets. Each does the set-up it needs, in .venv and nowhere else.
# Written for GNU make 3.81, which is what macOS brings.

# The Python that .venv is made from, 3.11 or newer: `make demo PYTHON=python3.12`.
PYTHON ?= python3
VENV := .venv/bin
# One thread for each of torch's operations: our tensors are small, and the workers share the cores. `make test K=chat`
# runs those of one folder. Long tests that must have the machine for themselves (marked `alone`) run before the others.
K :=
PYTEST := OMP_NUM_THREADS=1 $(VENV)/python -m pytest --durations=10 $(if $(K),tests/$(K))
WORKERS := -n logical --maxprocesses 4 --dist worksteal
# pytest's status 5 says that no test had the mark; `.ci/run` and people want 0 then.
NONE_IS_FINE := || [ $$? -eq 5 ]
# `make gpu WHEELS=folder` takes PYTHON's own torch, and the rest from wheels, without a network: see tools/gpu_wheels.py.
# `make gpu DEVICE=cpu` tries the tests themselves. NVML counts the cards in processes that are forked later.
WHEELS :=
DEVICE := cuda
GPU_PACKAGES := runs/.cache/gpu-packages
GPU_INSTALL = $(if $(WHEELS),rm -rf $(GPU_PACKAGES) && $(PYTHON) -m pip install --quiet --no-index --no-deps \
  --no-compile --target $(GPU_PACKAGES) "$(WHEELS)"/*.whl &&)
GPU_TESTS = DEVICE=$(DEVICE) CUDA_VISIBLE_DEVICES=$(if $(filter cpu,$(DEVICE)),,$${CUDA_VISIBLE_DEVICES-0}) \
  PYTORCH_NVML_BASED_CUDA_CHECK=1 PYTHONUNBUFFERED=1 $(if $(WHEELS),PYTHONPATH=$(GPU_PACKAGES) $(PYTHON),$(VENV)/python) \
  -m pytest -p no:cacheprovider --durations=20 tests/gpu
# JupyterLab refuses root unless told; on loopback with a token that is safe (containers have only root).
ROOT_FLAG := $(if $(filter 0,$(shell id -u)),--allow-root)

.DEFAULT_GOAL := help
.PHONY: help setup setup-tests demo test soak check lint bench gpu proof laptop lab page docs lock clean

# Lists the targets with what each does.
help:
	@echo "smallchat - make TARGET, where TARGET is one of"
	@awk '/^# /{text = substr($$0, 3)} /^[a-z-]+:/{sub(/:.*/, ""); printf "  %-12s %s\n", $$0, text} /^$$/{text = ""}' Makefile

# Makes .venv from requirements.lock; prints the download's size first, and does nothing where nothing changed.
setup:
	@$(PYTHON) tools/setup.py

# The same, and what only the tests need (a small real chat model).
setup-tests:
	@$(PYTHON) tools/setup.py --tests

# Runs the notebooks on the embedded conversations; after the set-up it needs no network; skips what is done.
demo: setup
	@$(VENV)/python -m nbutils run params/demo.yaml

# Runs every test but the long ones; `make test K=chat` those of one folder.
test: setup-tests
	@$(PYTEST) -m "not soak and not gpu" $(WORKERS)

# Runs the long tests: interruption, resumption, a real model, a simulated Kaggle.
soak: setup-tests
	@$(PYTEST) -m "alone and soak" $(NONE_IS_FINE)
	@$(PYTEST) -m "soak and not alone" $(WORKERS) $(if $(K),$(NONE_IS_FINE))

# Runs lint, the long tests and the others: what has to pass before a change lands.
check: lint soak test

# Checks style, types and layers of imports (ruff, mypy, import-linter); changes no file.
lint: setup
	@$(VENV)/ruff check .
	@$(VENV)/ruff format --check .
	@$(VENV)/mypy
	@$(VENV)/lint-imports --no-logo

# Runs every benchmark in tests/benchmarks; each prints one line of JSON.
bench: setup-tests
	@found=0; for file in tests/benchmarks/*.py; do \
	  case "$$file" in */_*|*/conftest.py|*/test_*|"tests/benchmarks/*.py") continue;; esac; \
	  found=1; PYTHONPATH=. $(VENV)/python "$$file" || exit 1; \
	done; [ $$found -eq 1 ] || echo "make bench: there are no benchmarks in tests/benchmarks yet."

# Proves what is claimed of a CUDA device, in eight minutes at most; docs/devices.md says how to go about it.
gpu: $(if $(WHEELS),,setup-tests)
	@timeout -s INT -k 10 480 sh -c '$(GPU_INSTALL) $(GPU_TESTS)'

# Trains, is killed three times before your eyes, and prints the hashes of both models (about 2 minutes).
proof: setup
	@$(VENV)/python tools/proof.py

# A real 135M model learns small talk on this machine's CPU (93 MB download, some minutes).
laptop: setup
	@$(VENV)/python tools/laptop_model.py
	@$(VENV)/python -m nbutils run params/laptop_135m.yaml

# Opens JupyterLab on the notebooks: on this machine only (loopback), with a token.
lab: setup
	@$(VENV)/jupyter lab --ip=127.0.0.1 --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks $(ROOT_FLAG)

# Makes a page on which the demo's model talks in a browser (3.5 MB download, once), and hands it out on this machine.
page: demo
	@$(VENV)/python -m nbutils page params/demo.yaml

# Writes docs/: the executed demo notebooks as Markdown pages with their pictures.
docs: setup
	@$(VENV)/python tools/make_docs.py

# Remakes requirements.lock with today's versions; run the tests before committing it.
lock:
	@$(PYTHON) tools/make_lock.py

# Removes .venv and what tools cached. Runs stay: delete runs/ yourself.
clean:
	rm -rf .venv .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find nbutils tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
