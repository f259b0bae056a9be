#!/bin/sh
# Writes constraints.txt anew: called by `make constraints`, with the Python to use as its argument.
# Installs the newest versions that pyproject.toml allows into a fresh environment, and writes down what came.
# Change the version of torch here when pyproject.toml allows another.
set -eu

python=${1:?"call me with the Python to use: deploy/constraints.sh python3.11"}
torch=2.13.0

cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

"$python" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    "torch==$torch" '.[edge,quick-look,server,ray-train,tracing,flows,dev]'

# The header stays as it is. "torch==2.13.0+cpu" names one build of one index; without its label it names all of them.
{
    sed -n '/^#/!q;p' constraints.txt
    "$folder/venv/bin/python" -m pip freeze --disable-pip-version-check |
        grep -v '^fieldpost[ =]' |
        sed 's/+[A-Za-z0-9.]*$//'
} >"$folder/constraints.txt"
mv "$folder/constraints.txt" constraints.txt
echo "constraints.txt: $(grep -c == constraints.txt) packages"
