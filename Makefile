# Builds, runs and tests Penstock. A target that compiles first has engine/setup/libtorch.py make libtorch and cmake ready: minutes the
# first time, nothing after that. Where they come from is decided there, never here; `make env` gives the same environment to plain cargo.

SETUP = python3 engine/setup/libtorch.py
WITH_LIBTORCH = environment=$$($(SETUP)) && eval "$$environment" &&
TARGET = $(or $(CARGO_TARGET_DIR),target)
COMPARE = $(WITH_LIBTORCH) LD_LIBRARY_PATH="$$LIBTORCH/lib" cargo run --release --locked -p penstock-benches --bin compare --

.PHONY: help run build test bench bench-tensors bench-mlserver bench-watched bench-reloads soak bench-engine bench-decision lint env

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' Makefile

run: build ## start the demo: proxy and engine with configs/demo
	@printf '%s\n' '' 'Once it says that digits is ready, try from another terminal, in this folder:' \
	  '  curl -i http://localhost:8000/v2/models/digits/infer -d @configs/demo/requests/digit-7.json' \
	  '  curl -s http://localhost:8000/v2/models/digits' \
	  '  curl -s http://localhost:8002/metrics' \
	  'See it at http://localhost:8002/ in a browser, or with target/release/penstock top.' \
	  'Then edit configs/demo/policies.yaml and ask again.' ''
	@exec "$(TARGET)/release/penstock" serve --config configs/demo/penstock.yaml

build: ## build the two binaries, optimised
	$(WITH_LIBTORCH) cargo build --release --locked -p penstock-proxy -p penstock-engine --bins

test: ## run all tests, then third-party clients, published models (fetches 0.7 GB) and a browser against the built binaries
	$(WITH_LIBTORCH) cargo build --workspace --bins --locked && cargo test --workspace --locked
	python3 benches/models/make.py >/dev/null
	clients=$$($(SETUP) --clients) && "$$clients" -m pytest tests/clients
	$(WITH_LIBTORCH) tests/dashboard/run.sh

bench: build ## compare Penstock with what it replaces
	$(COMPARE)

bench-tensors: build ## the same for images of 600 kB, and for reading one as JSON
	$(COMPARE) --tensors

bench-mlserver: build ## the same beside MLServer (fetches 60 MB, and torch for Python)
	$(COMPARE) --mlserver

bench-watched: build ## what it costs to be watched: traces and the access log on and off in turn, and a scrape of 1,000 models
	$(COMPARE) --watched

bench-reloads: build ## how soon a change of a large policy takes effect, and what requests notice of it
	$(COMPARE) --reloads

soak: build ## half an hour of mixed traffic, reloads and bad clients: what both processes hold in memory
	$(COMPARE) --soak 30

bench-engine: build ## compare the engine with bare loops of libtorch, over real models (fetches 0.7 GB)
	models=$$(python3 benches/models/make.py) && $(WITH_LIBTORCH) cargo build --release --locked -p penstock-benches && \
	  LD_LIBRARY_PATH="$$LIBTORCH/lib" "$(TARGET)/release/engine-bench" "$$models"

bench-decision: ## what a decision of the policy costs: memory of a caller, time, and instructions (the latter with valgrind)
	$(WITH_LIBTORCH) cargo build --release --locked -p penstock-benches --bin decision && \
	  MIMALLOC_PURGE_DELAY=0 "$(TARGET)/release/decision" | grep bytes && "$(TARGET)/release/decision" | grep -v bytes && \
	  benches/decision/instructions.sh "$(TARGET)/release/decision"

lint: ## check the formatting, then clippy with warnings as errors, then the alerts
	cargo fmt --all --check
	$(WITH_LIBTORCH) cargo clippy --workspace --all-targets --locked -- -D warnings
	configs/prometheus/check.sh

env: ## print the environment for plain cargo: eval "$(make -s env)"
	@$(SETUP)
