# postroom in a container: `docker build -t postroom .`, then docs/how-to/deploy.md.
FROM python:3.11-slim AS build
WORKDIR /src
# The versions that the tests run with; they come from the cache where only postroom's own code has changed.
COPY deploy/requirements.lock deploy/
RUN python -m venv /opt/postroom \
 && /opt/postroom/bin/pip install --no-cache-dir --require-hashes -r deploy/requirements.lock
COPY pyproject.toml LICENSE ./
COPY src src
RUN /opt/postroom/bin/pip install --no-cache-dir --no-deps .

FROM python:3.11-slim
COPY --from=build /opt/postroom /opt/postroom
# A number, so that Kubernetes' runAsNonRoot can tell that it is not root.
RUN useradd --uid 10001 --create-home --home-dir /var/lib/postroom postroom
USER 10001:10001
WORKDIR /var/lib/postroom
ENV PATH=/opt/postroom/bin:$PATH POSTROOM_HOST=0.0.0.0 POSTROOM_LOG=json
EXPOSE 8400
# Draining takes as long as the longest attempt; the orchestrator decides how long it waits.
STOPSIGNAL SIGTERM
# A worker or scheduler alone has no port to ask: it is well as long as it runs.
HEALTHCHECK --interval=10s --start-period=30s \
    CMD grep -qzx -e worker -e scheduler /proc/1/cmdline || python -c \
    "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ.get(\"POSTROOM_PORT\", 8400)}/healthz', timeout=5)"
ENTRYPOINT ["postroom"]
CMD ["up"]
