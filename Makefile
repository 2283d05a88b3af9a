# The few verbs of the project. Every target sets up .venv by itself when that is needed, and only then.
#
#   PYTHON=...   the Python to set up with (3.11, 3.12 or 3.13); without it, the newest one that runs
#   ARGS=...     more arguments for study, studies, test, torture, headless, lab and bench: make study ARGS="--scale smoke"
#   ROUNDS=...   how many rounds of torture or headless; 200 take about half an hour on two cores

PYTHONS = python3.13 python3.12 python3.11 python3
READY = .venv/.ready
ROUNDS = 200

# The environment holds what the lock says, whatever the shell that calls make has set.
unexport PYTHONPATH PYTHONHOME PIP_TARGET PIP_PREFIX
export PIP_USER = 0
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help env study studies test torture headless lab check format tables bench notebooks lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s  %s\n", $$1, $$2 }' Makefile

env: $(READY) ## set up .venv

study: $(READY) ## run the capacity-gap study
	@.venv/bin/kdstudy run capacity_gap $(ARGS)

studies: $(READY) ## run every study
	@.venv/bin/kdstudy run --all $(ARGS)

test: $(READY) ## run all tests, as many at once as there are cores
	@.venv/bin/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal $(ARGS)

torture: $(READY) ## kill, damage and starve ROUNDS runs, and look whether anything is lost
	@.venv/bin/python tests/torture.py --rounds $(ROUNDS) $(ARGS)

headless: $(READY) ## execute the primer ROUNDS times without anybody who looks, and count how often that ends
	@.venv/bin/python tests/headless.py --rounds $(ROUNDS) $(ARGS)

lab: $(READY) ## open the notebooks in JupyterLab
	@.venv/bin/jupyter lab notebooks $(ARGS)

check: $(READY) ## check format, lint, types and what is generated
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/python tests/test_golden.py --check
	.venv/bin/python tests/test_shelf.py --check

format: $(READY) ## put the format right, and the lint that can be put right by itself
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

tables: $(READY) ## write what is generated: golden numbers, times of methods, the README's tables
	@.venv/bin/python tests/test_golden.py
	@.venv/bin/python tests/test_shelf.py
	@.venv/bin/python tests/test_pairs.py

bench: $(READY) ## run the benchmarks
	@.venv/bin/kdstudy bench $(ARGS)

notebooks: $(READY) ## execute the notebooks at quick and keep their outputs in them
	@KDSTUDY_SCALE=quick .venv/bin/python -c "from kdstudy import report; [report.refresh(n) for n in report.studies().values()]"

lock: ## resolve pyproject.toml anew into requirements.lock, for every Python and system at once
	@$(find-python); "$$python" -m venv --clear build/lock
	@build/lock/bin/python -m pip install -qq uv
	@build/lock/bin/uv pip compile --quiet --upgrade --universal --fork-strategy fewest --extra dev \
	    --python-version 3.11 --no-annotate --custom-compile-command "make lock" \
	    --output-file requirements.lock pyproject.toml
	@rm -rf build

clean: ## remove .venv, build leftovers and tool caches; data and runs stay
	rm -rf .venv build kdstudy.egg-info .mypy_cache .pytest_cache .ruff_cache

# A finished .venv is brought up to date; anything else (none, one cut short) is made anew.
# The stamp goes first and comes back last, so a set-up that is interrupted is simply repeated.
$(READY): pyproject.toml requirements.lock
	@if [ -e $@ ]; then echo "kdstudy: bringing .venv up to date"; rm $@; else \
	  $(find-python); \
	  echo "kdstudy: setting up .venv with Python $$version ($$python), once"; \
	  "$$python" -m venv --clear .venv && \
	  echo "kdstudy: installing requirements.lock (some minutes; 6 GB on Linux, where torch brings CUDA)"; \
	fi
	@.venv/bin/python -m pip install -qq -r requirements.lock
	@.venv/bin/python -m pip install -qq --no-deps --no-build-isolation -e .
	@.venv/bin/python -m pip check
	@touch $@
	@echo "kdstudy: .venv is ready"

# A .venv whose Python has gone (removed, or upgraded away) counts as none.
ifneq ($(wildcard $(READY)),)
ifneq ($(shell .venv/bin/python -c 'print("runs")' 2>/dev/null || echo gone),runs)
$(shell rm -f $(READY))
endif
endif

# Sets $python and $version to the first of PYTHON or PYTHONS that really runs, has a suitable version
# and can make environments; stops with one line on what was found otherwise.
define find-python
found=; bare=; \
for python in $(if $(PYTHON),"$(PYTHON)",$(PYTHONS)) ""; do \
  [ "$$python" ] || break; \
  version=$$("$$python" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null); \
  case $$version in \
    3.11.*|3.12.*|3.13.*) "$$python" -c 'import ensurepip, venv' 2>/dev/null && break; bare=$${bare:-$${version%.*}} ;; \
    "") found="$$found$${found:+; }$$python does not run" ;; \
    *) found="$$found$${found:+; }$$python is $$version" ;; \
  esac; \
done; \
if [ -z "$$python" ] && [ "$$bare" ]; then \
  echo "kdstudy: Python $$bare is here without its venv module; on Debian or Ubuntu: sudo apt install python$$bare-venv" >&2; exit 1; \
elif [ -z "$$python" ]; then \
  echo "kdstudy: needs Python 3.11, 3.12 or 3.13 and found none ($$found); name one: make PYTHON=/path/to/python3.12" >&2; exit 1; \
fi
endef
