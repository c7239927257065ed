# What a newcomer needs: `make demo` and `make test`. Both install what they
# miss (as root, Debian packages) and work on a fresh Debian 12 with Rust.

GUEST := target/guest
CARGO ?= cargo
# nextest reports better; plain cargo test does as well.
RUN_TESTS := $(shell $(CARGO) nextest --version >/dev/null 2>&1 && echo nextest run --no-fail-fast || echo test --no-fail-fast)

.PHONY: help demo iohost test lint doc guest bench compare compare-wires compare-idle

help:
	@echo "make demo     a guest in QEMU works a disk that is served over the link"
	@echo "make iohost   the server in a guest, on NVMe devices behind an IOMMU; one is pulled out"
	@echo "make test     all tests, with a guest among them"
	@echo "make lint     rustfmt, clippy and rustdoc, without warnings"
	@echo "make bench    instructions, system calls and copies of a request on its way, and of each"
	@echo "              stage by itself; cargo bench -p benches: how long each stage takes"
	@echo "make compare  IOPS and latency beside QEMU's own servers and the bare skeleton of the path;"
	@echo "              make compare-wires: seals, pools, wires, real frames; make compare-idle:"
	@echo "              sleeping beside spinning. COMPARE=--quick tries it in less than a minute"

demo:
	demo/run

iohost:
	demo/iohost

test: guest
	$(CARGO) $(RUN_TESTS) --workspace

# The guest's kernel, initramfs and QEMU, made of Debian packages.
guest:
	demo/guest-image $(GUEST)

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps

bench:
	$(CARGO) run --release --quiet -p benches --bin path
	@echo
	$(CARGO) run --release --quiet -p benches --bin stages

# Minutes each; COMPARE is what else `compare` is told.
compare compare-wires compare-idle:
	$(CARGO) build --release -p vrio -p benches --bins
	$(CARGO) run --release --quiet -p benches --bin compare -- \
		$(patsubst compare-%,%,$(filter compare-%,$@)) $(COMPARE)
