#!/usr/bin/env bash
# Builds a local stand-in for the Docker Hub image python:3.13-slim-bookworm, where it cannot be pulled: that of CPython 3.6 in
# ../shared, which is Debian bookworm too, with this machine's pyenv CPython 3.13.
set -euo pipefail
TAG=python:3.13-slim-bookworm
if docker image inspect "$TAG" >/dev/null 2>&1; then exit; fi
home=$(ls -d "$HOME"/.pyenv/versions/3.13.* | tail -n 1)
context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT
cp -a "$home" "$context/python"
rm -rf "$context"/python/lib/python3.13/test
cat > "$context/Dockerfile" <<END
FROM python:3.6-slim-bullseye
COPY python $home
RUN for name in python3.13 python3 python pip3 pip; do ln -sf $home/bin/\$name /usr/local/bin/\$name; done \
    && echo $home/lib > /etc/ld.so.conf.d/python313.conf && ldconfig
END
docker build -q -t "$TAG" "$context"
docker run --rm "$TAG" python -c "import sys, ssl; print(sys.version.split()[0], ssl.OPENSSL_VERSION)"
