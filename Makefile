# What contributors run; `.ci/run` is what is run on a clean checkout.
.PHONY: help quick test lint golden docs package kills

help:
	@echo "make quick   the tests of tests/unit"
	@echo "make test    all tests, lint, and types"
	@echo "make lint    ruff and mypy"
	@echo "make golden  losses, drawings, help, and reference, beside those of BASE (default: main)"
	@echo "make docs    the generated reference and the site"
	@echo "make package the sdist and the wheel, checked, in dist/ (pip install -r requirements-package.txt)"
	@echo "make kills   a run killed 100 times, and five commands 20 times each"

quick:
	pytest tests/unit

test: lint
	pytest

lint:
	ruff check
	ruff format --check
	mypy

BASE ?= main
golden:
	rm -rf build/golden
	git worktree add --detach build/golden/base $(BASE)
	cp tests/golden.py build/golden/base/tests/golden.py
	python build/golden/base/tests/golden.py keep build/golden/before
	git worktree remove --force build/golden/base
	python tests/golden.py keep build/golden/after
	python tests/golden.py compare build/golden/before build/golden/after

docs:
	python docs/generate.py
	mkdocs build --strict

package:
	.ci/package dist

kills:
	python tests/faults/kills.py --kills 100
	for command in train-autoencoder prepare precompute export caption; do \
		python tests/faults/kills.py --kills 20 --command $$command || exit 1; \
	done
