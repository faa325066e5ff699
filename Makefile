# `make run` and `make test` do their own set-up on a fresh Debian 12 with Rust. `make help` lists the rest.
SHELL := /bin/bash
CARGO ?= cargo
# What vsock has to move each way in the tests, MiB. `make e2e VMM_TEST_VSOCK_MIB=1024` takes a minute more.
export VMM_TEST_VSOCK_MIB ?= 256
export VMM_BIN := $(CURDIR)/target/release/vmm
VMM := target/release/vmm
SUITE ?= pjdfstest-rs
# Root needs no sudo; without either, the packages must be there already.
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)

.PHONY: run test test-planted test-bisect setup build prepare unit e2e bisect lint bench bench-boot bench-memory acceptance compare-virtiofsd clean help

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: setup ## Install what is missing, build, boot a guest and run pjdfstest-rs on virtio-fs
	$(VMM) run $(SUITE)

build: ## Build the vmm binary
	@command -v cc >/dev/null || { echo "Installing a C compiler and linker (Debian package gcc)"; $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y --no-install-recommends gcc libc6-dev; }
	$(CARGO) build --release --locked

# vmm itself knows what it needs on this machine: QEMU, for one, only where KVM is of no use.
setup: build
	@missing="$$($(VMM) doctor --missing-packages)"; \
	if [ -n "$$missing" ]; then \
		echo "Installing $$missing"; \
		$(SUDO) apt-get update -qq && DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	fi

lint: ## Formatting and clippy
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

unit: ## Unit tests: no guest, no network
	$(CARGO) test --workspace --locked --exclude tests
	$(CARGO) test --locked -p tests --bin fs-bench

# Everything that needs a network or tools is made ready first; then all guests run where KVM works: here, or in emulated
# hosts, see tests/e2e.sh. The emulated host itself is tested from outside.
e2e: prepare ## End-to-end tests with real guests; E2E_TESTS="vsock:: run::" chooses some
	$(CARGO) test --locked -p tests --test emulated-host -- --test-threads 1
	$(CARGO) test --locked -p tests --test e2e --no-run
	CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="$(CURDIR)/tests/e2e.sh $(CURDIR)/$(VMM)" \
		$(CARGO) test --locked -p tests --test e2e -- $(E2E_TESTS)

bisect: prepare ## Bisect a short real history of a real kernel; builds four kernels
	tests/bisect/quick.sh $(CURDIR)/$(VMM)

prepare: setup ## Get and build what guests boot from
	$(VMM) image build
	$(VMM) kernel fetch debian:6.1
	$(VMM) suite add pjdfstest-rs

test: lint unit e2e bisect ## Everything CI runs

# A build of its own, so that the one that people use never has them.
test-planted: prepare ## Plant ten bugs in the file server, one at a time; show which tests notice (takes long)
	$(CARGO) test --locked -p devices --features planted-bugs planted
	$(CARGO) build --release --locked -p vmm --features planted-bugs --target-dir target/planted
	$(VMM) host exec -- tests/planted/planted.sh target/planted/release/vmm $(PLANTED)

test-bisect: prepare ## Bisect ten real histories of a real kernel with planted bugs; HISTORIES="1=fails" chooses some. Takes hours
	tests/bisect/full.sh $(CURDIR)/$(VMM) $(HISTORIES)

bench: setup ## Compare what file operations cost with QEMU + virtiofsd, print the table; RUNS= OPS= CPUS= choose
	tests/bench/fs.sh

bench-boot: setup ## Compare start-to-exit time with QEMU + virtiofsd, print the table
	tests/bench/boot.sh

bench-memory: prepare ## Show how much memory vmm has for itself during a run
	$(VMM) host exec -- tests/bench/memory.sh $(CURDIR)/$(VMM) $(SUITE)

acceptance: prepare ## Everything the file server has to pass, hours: see tests/acceptance; ACCEPTANCE="fsx overlay" chooses
	tests/acceptance/all.sh $(ACCEPTANCE)

compare-virtiofsd: setup ## What the tests of a run of xfstests come to with QEMU + virtiofsd; RESULTS=DIR, TESTS="generic/001" chooses
	tests/compare/virtiofsd.sh $(RESULTS) $(TESTS)

clean: ## Remove build products; the image cache stays (see `vmm image rm`)
	$(CARGO) clean
