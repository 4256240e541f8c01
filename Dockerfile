# A small image for `tellapart serve` with an ONNX file: no torch, no compiler.
#
#     docker build -t tellapart-serve .
#     docker run --rm -p 8000:8000 -v "$PWD/export:/models:ro" -e TELLAPART_API_KEY=... tellapart-serve /models/model.onnx
#
# The package's metadata asks for torch, which this image leaves out: the package is installed without its dependencies
# and beside it only what serving an ONNX file loads.
FROM python:3.12-slim AS build
WORKDIR /build
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY src src
RUN python -m venv /opt/tellapart \
 && grep -viE '^(torch|torchvision)\b' constraints.txt > pins.txt \
 && /opt/tellapart/bin/pip install --no-cache-dir --no-compile --constraint pins.txt \
      numpy pillow tyro pyyaml platformdirs onnx onnxruntime fastapi uvicorn python-multipart prometheus-client \
 && /opt/tellapart/bin/pip install --no-cache-dir --no-compile --no-deps . \
 && /opt/tellapart/bin/pip uninstall --yes pip \
 && find /opt/tellapart -type d \( -name tests -o -name test -o -name __pycache__ \) -prune -exec rm -rf {} +

FROM python:3.12-slim
RUN useradd --system --uid 10001 tellapart
COPY --from=build /opt/tellapart /opt/tellapart
USER tellapart
ENV PATH=/opt/tellapart/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s CMD \
  ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["tellapart", "serve", "--host", "0.0.0.0", "--port", "8000"]
