# postroom in a container: `docker build -t postroom .`, then docs/how-to/deploy.md.
FROM python:3.11-slim AS build
WORKDIR /src
COPY pyproject.toml LICENSE CHANGELOG.md ./
COPY src src
RUN python -m venv /opt/postroom \
 && /opt/postroom/bin/pip install --no-cache-dir '.[alerts,otel,psycopg]'

FROM python:3.11-slim
COPY --from=build /opt/postroom /opt/postroom
RUN useradd --system --create-home --home-dir /var/lib/postroom postroom
USER postroom
WORKDIR /var/lib/postroom
ENV PATH=/opt/postroom/bin:$PATH POSTROOM_HOST=0.0.0.0 POSTROOM_LOG=json
EXPOSE 8400
# Draining takes as long as the longest attempt; the orchestrator decides how long it waits.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --start-period=30s \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ.get(\"POSTROOM_PORT\", 8400)}/healthz', timeout=5)"]
ENTRYPOINT ["postroom"]
CMD ["up"]
