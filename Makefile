# One command for each thing that one does here; `make` alone lists them.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.set-up
# What has to be on the machine: program or file to look for, and the Debian package that brings it.
NEEDS := cc:gcc /usr/include/stdio.h:libc6-dev ip:iproute2 /usr/lib/cni/macvlan:containernetworking-plugins \
         iptables:iptables /usr/share/doc/libudev1:libudev1 $(PYTHON):python3
CLUSTER_NEEDS := containerd:containerd runc:runc etcd:etcd-server busybox:busybox-static openssl:openssl

.PHONY: help setup demo test test-unit test-kernel test-vm test-cluster check format bench proto constraints clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: $(STAMP) ## system packages that are missing (apt), a virtual environment, the programs in .venv/bin

$(STAMP): Makefile constraints.txt pyproject.toml hatch_build.py multus/shim/multus.c
	@missing=; for need in $(NEEDS); do thing=$${need%:*}; \
	  case $$thing in /*) test -e $$thing;; *) command -v $$thing >/dev/null;; esac || missing="$$missing $${need#*:}"; done; \
	  $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || missing="$$missing python3-venv"; \
	  if test -n "$$missing"; then echo "installing:$$missing"; \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $$missing >/dev/null; fi
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing Python packages into .venv"
	@$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r constraints.txt
	@$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: setup ## the walk-through: real plugins, real namespaces, everything given back
	@$(BIN)/multusctl demo

test: check test-unit test-kernel test-vm test-cluster ## all: what a machine cannot run is skipped, counted, and it is said why

test-unit: setup ## no root needed, no network
	@$(BIN)/pytest tests/unit

test-kernel: setup ## root: real plugins in real network namespaces
	@$(BIN)/pytest tests/kernel

test-vm: setup ## root, Debian: a virtual machine with real SR-IOV hardware; its image is made once, in ~/.cache
	@$(BIN)/python -m tests.vm.lane

test-cluster: setup ## root, Debian: a real Kubernetes of one node; its programs are built once with Go, in ~/.cache
	@missing=; for need in $(CLUSTER_NEEDS); do command -v $${need%:*} >/dev/null || missing="$$missing $${need#*:}"; done; \
	  if test -n "$$missing"; then echo "installing:$$missing"; \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $$missing >/dev/null; fi
	@$(BIN)/python -m tests.cluster.binaries || true # without them the tests are skipped, and say so
	@$(BIN)/pytest tests/cluster

check: setup ## format, lint, types, import rules
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: setup ## let the formatter and the linter mend what they can
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: setup ## root: pod attach latency, alone and beside upstream (built once with Go); results in benchmarks/out
	@command -v openssl >/dev/null || { apt-get update -qq && apt-get install -qq -y openssl >/dev/null; }
	@$(BIN)/python -m benchmarks
	@$(BIN)/python -m benchmarks.compare

proto: setup ## generate devices/kubelet/api anew from devices/kubelet/proto
	@rm -f devices/kubelet/api/*_pb2.py devices/kubelet/api/*_pb2.pyi devices/kubelet/api/*_grpc.py
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -Idevices/kubelet/api=devices/kubelet/proto \
	  --python_out=. --mypy_out=quiet:. --grpclib_python_out=. devices/kubelet/proto/*.proto

constraints: setup ## choose the newest versions anew, with hashes
	@$(BIN)/python -m venv .venv/lock && .venv/lock/bin/pip install -q uv
	@$(BIN)/python -c 'import tomllib; d = tomllib.load(open("pyproject.toml", "rb")); \
	  print(*d["project"]["dependencies"], *d["dependency-groups"]["dev"], sep="\n")' > .venv/lock/in.txt
	@{ head -1 constraints.txt; .venv/lock/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes \
	  --no-annotate --no-header .venv/lock/in.txt; } > .venv/lock/out.txt && mv .venv/lock/out.txt constraints.txt

clean: ## remove what the targets above made
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache benchmarks/out
