# The adapter alone, in a small image, run by an ordinary user.
#
#   docker build --tag prometheus-postgresql-adapter .
#
# With a binary built outside, which links the C library of BASE_IMAGE or of an older Debian; needs no RUST_IMAGE:
#
#   make build && docker build --target prebuilt --tag prometheus-postgresql-adapter .

ARG RUST_IMAGE=rust:1-bookworm
ARG BASE_IMAGE=debian:bookworm-slim

FROM ${BASE_IMAGE} AS runtime
# A number, so that Kubernetes' runAsNonRoot can tell.
USER 65532:65532
EXPOSE 9201
# Bash speaks enough HTTP for a probe, which saves a client. Set another port by TS_PROM_WEB_LISTEN_ADDRESS rather than
# by the flag, so that the probe knows it too. It asks whether the adapter runs, not whether its database does.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s CMD ["bash", "-c", "\
    port=${TS_PROM_WEB_LISTEN_ADDRESS##*:}; exec 3<>/dev/tcp/127.0.0.1/${port:-9201} || exit 1; \
    printf 'GET /-/healthy HTTP/1.0\\r\\n\\r\\n' >&3 && read -r -t 4 _ status _ <&3 && [ \"$status\" = 200 ]"]
ENTRYPOINT ["prometheus-postgresql-adapter"]

# Before the stage that compiles: the classic builder works through all stages above its target.
FROM runtime AS prebuilt
COPY target/release/prometheus-postgresql-adapter /usr/local/bin/

FROM ${RUST_IMAGE} AS build
WORKDIR /build
COPY . .
# .git is not in the context: docker build --build-arg GIT_REVISION=$(git describe --always)
ARG GIT_REVISION=unknown
RUN GIT_REVISION=${GIT_REVISION} cargo build --locked --release --bin prometheus-postgresql-adapter

FROM runtime
# Authorities for -pg-ssl-mode=verify-full against a server with a public certificate.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /build/target/release/prometheus-postgresql-adapter /usr/local/bin/
