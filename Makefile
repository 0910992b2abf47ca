# Everything here runs from a clean clone; `make` alone says what there is.

CARGO ?= cargo
# Of a release: what `-version`, the log and the metric build_info say.
RELEASE = GIT_REVISION=$$(git describe --always --dirty 2>/dev/null || echo unknown) $(CARGO) build --release

.DEFAULT_GOAL := help
.PHONY: help build test demo demo-clusters demo-docker chaos chaos-short bench fuzz fmt lint doc validate-kubernetes install-deps current-prometheus

help: ## Show these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-19s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## Build the adapter for use: target/release/prometheus-postgresql-adapter
	$(RELEASE) --bin prometheus-postgresql-adapter

test: install-deps current-prometheus ## Run every test, real PostgreSQL and Prometheus included
	$(CARGO) test --workspace --lib --bins --tests --examples
	$(CARGO) test --workspace --doc

demo: install-deps ## Show two take-overs of a real pair, and judge what was stored (under two minutes)
	$(CARGO) build --bin prometheus-postgresql-adapter --example demo
	@$(CARGO) run --quiet --example demo

demo-clusters: install-deps ## The same with leaders by labels: two clusters on two adapters behind a proxy (under two minutes)
	$(CARGO) build --bin prometheus-postgresql-adapter --example demo
	@$(CARGO) run --quiet --example demo -- clusters

chaos: install-deps ## Inject every failure and count samples lost and doubled; CHAOS="--seed 1 --minutes 15 --cases a,b" or "--list"
	$(RELEASE) --bin prometheus-postgresql-adapter
	$(CARGO) build --package chaos
	@$(CARGO) run --quiet --package chaos -- --binary target/release/prometheus-postgresql-adapter $(CHAOS)

chaos-short: install-deps ## The most telling failures only, in under three minutes
	$(CARGO) build --package prometheus-postgresql-adapter --package chaos --bins
	@$(CARGO) run --quiet --package chaos -- --short

demo-docker: ## Show the take-overs of a pair in containers; makes the images where none can be pulled
	@examples/docker-compose/demo.sh

bench: install-deps ## Measure speed and room beside their bars (20 minutes); BENCH="--seconds 30 --only ingest,copy" sets options
	$(RELEASE) --package prometheus-postgresql-adapter --package bench --bins
	@$(CARGO) run --quiet --release --package bench -- $(BENCH)

fuzz: ## Feed damaged bytes to all that decodes bytes, a minute for each target; FUZZ="5 xor read" sets seconds and targets
	@tests/fuzz/run $(FUZZ)

fmt: ## Format the code
	$(CARGO) fmt --all
	$(CARGO) fmt --manifest-path tests/fuzz/Cargo.toml

lint: ## Check format and lints, warnings are errors
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path tests/fuzz/Cargo.toml --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

doc: ## Build the documentation, warnings are errors
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --document-private-items

validate-kubernetes: ## Check the manifests of examples/kubernetes by the schemas of Kubernetes and its Operator
	@.ci/install-deps python3-venv prometheus
	@examples/kubernetes/validate

install-deps: ## Install what tests, demo and chaos run: PostgreSQL, Prometheus, pgbouncer and their like
	@.ci/install-deps

current-prometheus: ## Build the current Prometheus that tests run, once (four minutes), where there is a Go
	@tests/prometheus/build
