# Two targets from one base: `server` (with vLLM as its child) and `trainer`.
#   docker build --target server .                       GPU
#   docker build --target server --build-arg STACK=cpu . CPU
FROM node:22-bookworm-slim AS pages
WORKDIR /app/clients/web
COPY clients/web/package.json clients/web/package-lock.json ./
RUN npm ci --no-audit --no-fund
COPY clients/web/ ./
COPY clients/typescript/src/openapi.ts ../typescript/src/openapi.ts
RUN npm run build

FROM python:3.11-slim-bookworm AS base
ARG STACK=gpu
# A C compiler: Triton and torch.compile build kernels at run time. libnuma: vLLM's CPU worker binds memory with it.
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc g++ libc6-dev libnuma1 \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY requirements/ requirements/
COPY clients/python/ clients/python/
COPY server/ server/
COPY trainer/ trainer/
COPY --from=pages /app/server/plaudit_server/pages/ server/plaudit_server/pages/
RUN PLAUDIT_STACK=${STACK} requirements/install.sh
RUN useradd --uid 10001 --create-home plaudit && mkdir /data && chown plaudit /data
USER plaudit
ENV PATH=/app/.venv/bin:$PATH PLAUDIT_DATA=/data PYTHONUNBUFFERED=1
VOLUME /data

FROM base AS server
ENV PLAUDIT_HOST=0.0.0.0 PLAUDIT_PORT=8000
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=300s --retries=5 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
CMD ["python", "-m", "plaudit_server", "serve"]

FROM base AS trainer
CMD ["python", "-m", "plaudit_trainer"]
