#!/bin/sh
# Installs the peers that `python -m benchmarks.inference` measures: called by `make bench-peers`, with the Python to use.
# They get an environment of their own below benchmark-output/, some 830 MB. Called again, it does nothing.
set -eu

python=${1:?"call me with the Python to use: deploy/bench-peers/install.sh python3.11"}

cd "$(dirname "$0")/../.."
folder=benchmark-output/peers
requirements=deploy/bench-peers/requirements.txt
if cmp -s "$requirements" "$folder/.installed"; then
    exit 0
fi
mkdir -p benchmark-output
test -x "$folder/bin/python" || "$python" -m venv "$folder"
echo "installing mosec, LitServe, Ray Serve, Triton and BentoML into $folder (a minute or two)"
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check -r "$requirements"
cp "$requirements" "$folder/.installed"
