# One image with both processes: `penstock` starts `penstock-engine` and outlives it.
#
#   docker build --tag penstock .                               libtorch for the CPU, about 0.7 GB
#   docker build --tag penstock:cuda --build-arg TORCH=cuda .   with all of CUDA, about 4 GB; the host brings the driver
#   docker run --rm --publish 8000:8000 --publish 8001:8001 --publish 8002:8002 penstock
#
# It serves the demo until something else is mounted: models at /models, a folder with penstock.yaml and policies.yaml
# at /etc/penstock. Mount the folder, not single files: editors replace files, and a mounted file keeps showing the old one.
# With `--ulimit rtprio=1` the engine's reading thread may run at once, which makes refusals faster on kernels that interrupt nobody;
# without it the engine says so in a line of its log, and all goes on. A file capability would not do: with one, the dynamic linker
# does not look for libtorch beside the binary.
# `docker stop` kills after 10 s, in the middle of requests; give it what penstock.yaml allows: `docker stop --time 45`.

FROM rust:1.95-bookworm AS build

# libtorch comes first and depends on nothing but its set-up script: it is the slowest to fetch and the last to change.
# The set-up finds no cmake here and fetches its own, which is pinned too.
# hadolint ignore=DL3008 # Debian keeps one version of a package at a time: a pinned one would be gone after its next fix.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /build
ENV PENSTOCK_CACHE=/libtorch
ARG TORCH=cpu
COPY engine/setup engine/setup
RUN case "$TORCH" in \
      cpu) python3 engine/setup/libtorch.py ;; \
      cuda) python3 engine/setup/libtorch.py --cuda ;; \
      *) echo "TORCH is '$TORCH': give cpu or cuda" >&2; exit 1 ;; \
    esac > environment

# Cargo wants the manifest of every member of the workspace, but not the sources of those it does not build.
COPY Cargo.toml Cargo.lock ./
COPY tests/Cargo.toml tests/
COPY benches/Cargo.toml benches/
COPY policies policies
COPY engine engine
COPY proxy proxy
# What was compiled stays in the builder's cache, not in a layer: after a change only our own crates are compiled again.
# Those always are, because cargo compares times, and a file that is older than the cache may still be another file.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target,sharing=locked \
    . ./environment \
 && find policies engine proxy -type f -exec touch {} + \
 && cargo build --release --locked -p penstock-proxy -p penstock-engine --bins \
 && install -D --target-directory=/opt/penstock/bin target/release/penstock target/release/penstock-engine


FROM debian:bookworm-slim

# The one library that penstock-engine and libtorch want, and that neither libtorch nor Debian's base brings.
# hadolint ignore=DL3008 # as above
RUN apt-get update \
 && apt-get install --yes --no-install-recommends libstdc++6 \
 && rm -rf /var/lib/apt/lists/*

# Sockets and the like. Writable for everybody, so that `docker run --user` works with any number.
ENV XDG_RUNTIME_DIR=/run/penstock
RUN install -d -m 1777 "$XDG_RUNTIME_DIR"

# penstock-engine looks for libtorch in ../lib. The layer of libtorch stays the same as long as libtorch does.
ARG TORCH=cpu
COPY --from=build /libtorch/libtorch-*-${TORCH}/lib/ /opt/penstock/lib/
COPY LICENSE /opt/penstock/
COPY --chmod=755 configs/demo/models /models
COPY --chmod=644 configs/demo/policies.yaml configs/container/penstock.yaml /etc/penstock/
COPY --from=build /opt/penstock/bin/ /opt/penstock/bin/
ENV PATH=/opt/penstock/bin:$PATH

# A number, because Kubernetes cannot tell of a name whether it is root. Nothing in the image belongs to it.
USER 65532:65532
EXPOSE 8000 8001 8002
STOPSIGNAL SIGTERM

# Healthy means ready: Docker itself only shows it and lets `depends_on` wait for it. Bash can open a connection by itself,
# so the image needs no client.
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=6 CMD ["bash", "-c", "\
exec 3<>/dev/tcp/127.0.0.1/8002 \
&& printf 'GET /v2/health/ready HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n' >&3 \
&& read -r status <&3 \
&& [[ $status == *' 200 '* ]]"]

ENTRYPOINT ["penstock", "serve", "--config", "/etc/penstock/penstock.yaml"]
