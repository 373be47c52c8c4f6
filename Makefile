# The two that matter: `make demo` (the main job, from nothing) and `make test` (everything). `make help` lists the rest.
# Both install what they need: Debian packages by apt, Python packages into .venv, root file systems into ~/.cache/sojourn-lab.

PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
VERSION := $(shell sed -n 's/^version: *//p' galaxy.yml)
TARBALL := build/sojourn-deploy-$(VERSION).tar.gz
COLLECTIONS := $(CURDIR)/build/collections
INSTALLED := $(COLLECTIONS)/ansible_collections/sojourn/deploy
LAB := $(BIN)/python tests/lab/lab.py
# What the tarball is made of: a change in it builds it anew.
SHIPPED := $(shell git ls-files --cached --others --exclude-standard -- agent changelogs docs meta playbooks plugins roles \
                   bindep.txt galaxy.yml LICENSE README.md requirements.lock requirements.txt)
AGENTS := $(addprefix agent/dist/sojourn-agent-,windows-amd64.exe windows-arm64.exe linux-amd64 linux-arm64)

export PATH := $(BIN):$(PATH)
export ANSIBLE_COLLECTIONS_PATH := $(COLLECTIONS)
export ANSIBLE_HOME := $(CURDIR)/build/ansible-home
export PYTHONDONTWRITEBYTECODE := 1

.PHONY: help
help: ## what can be made
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

.PHONY: machine
machine:
	@scripts/prepare-machine

# What is built and tested with is what the lock files say, to the byte; `make lock` renews them from the requirements files.
PINNED := $(BIN)/pip install --quiet --require-hashes --requirement

$(VENV)/.installed: tests/requirements.lock tests/requirements-pip.lock | machine
	@echo "==> virtual environment"
	@$(PYTHON) -m venv $(VENV)
	@$(PINNED) tests/requirements-pip.lock
	@$(PINNED) $<
	@touch $@

# What the tests of existing Kerberos tickets need beside it is compiled here.
# Not beside the lab's images: both may install Debian packages.
$(VENV)/.kerberos: tests/requirements-kerberos.lock $(VENV)/.installed | lab-images
	@scripts/prepare-machine kerberos
	@$(PINNED) $<
	@touch $@

# Two ends of one circle: what makes the lock files is locked too.
$(VENV)/.pins: tests/requirements-pins.lock $(VENV)/.installed
	@$(PINNED) $<
	@touch $@

.PHONY: lock
lock: $(VENV)/.pins ## the lock files anew, by the requirements files and what PyPI has today
	@scripts/lock $(BIN)/uv

.PHONY: audit
audit: $(VENV)/.pins ## known vulnerabilities of what is locked, where their databases can be asked; needs the internet, and is no part of `make test`
	@$(BIN)/python scripts/audit "$$(scripts/find-go $(VENV))"

.PHONY: venv
venv: $(VENV)/.installed ## the virtual environment with everything in it

$(AGENTS) &: $(filter agent/%,$(SHIPPED)) galaxy.yml scripts/sbom $(if $(SIGN),signed) | $(VENV)/.installed
	@echo "==> agent"
	@agent/build.sh agent/dist "$$(scripts/find-go $(VENV))"
	@$(if $(SIGN),agent/sign.sh agent/dist $(SIGN))
	@scripts/sbom agent/dist "$$(scripts/find-go $(VENV))" $(VERSION) >agent/dist/sojourn-agent.cdx.json

# Signed anew each time that it is asked for.
.PHONY: signed
signed:

.PHONY: agent
agent: $(AGENTS) ## the four executables and their bill of materials, into agent/dist; SIGN="-pkcs12 FILE -readpass FILE": those for Windows signed

$(TARBALL): $(AGENTS) $(SHIPPED) | $(VENV)/.installed
	@echo "==> collection"
	@mkdir -p build
	@$(BIN)/ansible-galaxy collection build --force --output-path build >/dev/null

.PHONY: collection
collection: $(TARBALL) ## the collection's tarball, into build

# Compiled, as it is for whoever has used it once: every broker and every worker of every test would do it anew, a tenth of its time.
$(INSTALLED)/MANIFEST.json: $(TARBALL)
	@rm -rf $(INSTALLED)
	@$(BIN)/ansible-galaxy collection install --force --offline --collections-path $(COLLECTIONS) $(TARBALL) >/dev/null
	@$(BIN)/python -m compileall -q $(INSTALLED)/plugins
	@touch $@

.PHONY: install
install: $(INSTALLED)/MANIFEST.json ## the collection, installed into build/collections for demo and tests

.PHONY: demo
demo: install lab-images ## the main job: packages onto a Windows and a Linux target over IPv6; shows that nothing is left
	@$(BIN)/python tests/demo.py

.PHONY: test
test: lab-check ## everything
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target checks lab-images $(VENV)/.kerberos install LAB_OPTIONS=--domain
	@$(MAKE) --no-print-directory pytest

# Processes that run tests, each with a lab of its own: see tests/parallel.py. `make pytest TESTS_AT_ONCE=0` runs them one by one.
TESTS_AT_ONCE ?= 4

# Of a thousand tests on booted machines one may fail for what the machine does, not the product: what failed is run once more, by itself. Both
# are in the output, and what fails twice has failed. More than MOST_AGAIN at once are not the machine's doing.
MOST_AGAIN ?= 3

.PHONY: pytest
pytest: install lab-images $(VENV)/.kerberos
	@echo "==> unit tests and lab tests"
	@rm -rf .pytest_cache
	@$(BIN)/python -m pytest --numprocesses $(TESTS_AT_ONCE) tests/unit tests/integration tests/lab || $(MAKE) --no-print-directory again
	@$(LAB) leftovers

.PHONY: again
again:
	@failed=$$($(BIN)/python -c 'import json; print(len(json.load(open(".pytest_cache/v/cache/lastfailed"))))') && test "$$failed" -le $(MOST_AGAIN)
	@echo "==> what failed, once more, by itself"
	@$(BIN)/python -m pytest --last-failed --last-failed-no-failures none tests/unit tests/integration tests/lab

.PHONY: test-unit
test-unit: install ## what a laptop can run: no root, no lab
	@$(BIN)/python -m pytest --numprocesses $(TESTS_AT_ONCE) tests/unit

.PHONY: checks
checks: ruff agent-test fuzz sanity lint importer ## linters, sanity, the agent's tests

.PHONY: ruff
ruff: | $(VENV)/.installed
	@echo "==> ruff"
	@$(BIN)/ruff check --quiet .

.PHONY: agent-test
agent-test: | $(VENV)/.installed ## go vet and the agent's tests
	@echo "==> go vet, go test"
	@cd agent && go=$$(../scripts/find-go ../$(VENV)) && test -z "$$("$$(dirname $$("$$go" env GOROOT)/bin/go)"/gofmt -l .)" && "$$go" vet ./... && GOOS=windows "$$go" vet ./... && "$$go" test ./... && ./reproducible.sh "$$go" >/dev/null

# Package and target of each; what is found is kept among the package's seeds, in testdata/fuzz.
FUZZ := config:FuzzRead soap:FuzzDecode mtom:FuzzReader mtom:FuzzWriterIsRead deploy:FuzzServer
EXECUTIONS ?= 20000

.PHONY: fuzz
fuzz: | $(VENV)/.installed ## the agent's parsers against Go's fuzzer, EXECUTIONS=1000000 for longer than in CI
	@echo "==> go test -fuzz"
	@mkdir -p build && cd agent && go=$$(../scripts/find-go ../$(VENV)) && ( \
		for target in $(FUZZ); do \
			"$$go" test "./internal/$${target%:*}" -run='^$$' -fuzz="^$${target#*:}$$" -fuzztime=$(EXECUTIONS)x -fuzzminimizetime=100x || exit 1; \
		done ) >../build/fuzz.log 2>&1 || { cat ../build/fuzz.log; exit 1; }

.PHONY: sanity
sanity: | $(VENV)/.installed ## ansible-test sanity
	@echo "==> ansible-test sanity"
	@mkdir -p build && $(BIN)/python tests/sanity/run.py >build/sanity.log 2>&1 || { cat build/sanity.log; exit 1; }

.PHONY: lint
lint: $(INSTALLED)/MANIFEST.json ## ansible-lint, profile production
	@echo "==> ansible-lint"
	@cd $(INSTALLED) && $(BIN)/ansible-lint --offline --profile production -q roles playbooks

.PHONY: importer
importer: $(TARBALL) ## galaxy-importer on the tarball
	@echo "==> galaxy-importer"
	@mkdir -p build/importer && cd build/importer && GALAXY_IMPORTER_CONFIG=$(CURDIR)/tests/galaxy-importer.cfg \
		$(BIN)/python -m galaxy_importer.main ../../$(TARBALL) >../importer.log 2>&1 || { cat ../importer.log; exit 1; }

.PHONY: lab-check
lab-check: | $(VENV)/.installed
	@$(LAB) check

.PHONY: lab-images
lab-images: lab-check ## the lab's root file systems and packages, into the cache
	@echo "==> lab"
	@$(LAB) prepare $(LAB_OPTIONS)

.PHONY: bench
bench: install lab-images ## the figures of docs/performance.md; ROWS=raw,command takes some of them, ROUNDS=1 less often
	@SOJOURN_BENCH_ROWS=$(ROWS) SOJOURN_BENCH_ROUNDS=$(or $(ROUNDS),5) $(BIN)/python tests/bench/bench.py

.PHONY: clean
clean: ## what was built here; the lab's cache stays
	@rm -rf build agent/dist $(VENV)
