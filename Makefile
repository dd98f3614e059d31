# `make demo` and `make test` need no other step: both set up .venv first, and only once.

PYTHON_BIN := .venv/bin/python
ARGS ?=
# Those that depend on the versions of torch and of the OpenMMLab libraries.
CLASSIC_TESTS := $(addprefix tests/,ops layers backbones checkpoints test_complexity.py test_imports.py test_setup.py \
    test_existing_project.py test_configs.py test_tools.py)

.DEFAULT_GOAL := help
.PHONY: help install demo test test-classic gpu sanitize lint docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

# exec, so that what ends make ends the script and what it has started.
install: ## set up .venv with the whole stack (PYTHON=... chooses the Python)
	@PYTHON='$(PYTHON)' exec bash requirements/install.sh

demo: install ## train, evaluate and draw Mask R-CNN with an ACmix backbone on generated images
	@$(PYTHON_BIN) tools/demo.py $(ARGS)

# By file, because tests of a file share models. Each process takes up to 2 GB.
test: install ## run the test suite (ARGS="-k swin" passes options to pytest)
	@$(PYTHON_BIN) -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile $(ARGS)

test-classic: ## run the tests with torch 2.1 and the last releases of upstream, in .venv-classic
	@PYTHON='$(PYTHON)' ACMIX_BUILD_KERNELS=1 exec bash requirements/install.sh classic
	@cd .venv-classic/checkout && ../bin/python -m pytest $(CLASSIC_TESTS) $(ARGS)

gpu: install ## check and measure everything on an NVIDIA GPU (ARGS=--cpu-dry-run runs it without one)
	@$(PYTHON_BIN) -m benchmarks.check_gpu $(ARGS)

sanitize: install ## run the C++ kernels under GCC's sanitizers (ARGS="address undefined thread")
	@bash benchmarks/sanitize.sh $(ARGS)

lint: install ## check style, format and types
	@$(PYTHON_BIN) -m ruff check .
	@$(PYTHON_BIN) -m ruff format --check .
	@$(PYTHON_BIN) -m mypy
	@$(dir $(PYTHON_BIN))clang-format --dry-run -Werror $$(find acmix_mm/ops/csrc -name '*.cpp' -o -name '*.h')

docs: install ## build the documentation in build/site, with warnings as errors
	@$(PYTHON_BIN) -m pip --disable-pip-version-check install -q -r requirements/docs.txt -c requirements/pins.txt
	@NO_MKDOCS_2_WARNING=1 $(PYTHON_BIN) -m mkdocs build --strict $(ARGS)

clean: ## remove .venv and the caches; the compiled mmcv stays in the user's cache
	rm -rf .venv .venv-classic .pytest_cache .mypy_cache .ruff_cache .coverage build dist *.egg-info acmix_mm/.mim acmix_mm/ops/*.so
