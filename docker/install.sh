#!/bin/sh
# Installs marrow-node into a virtual environment; the images and `make install` both call it.
#
#   docker/install.sh [--editable] FOLDER EXTRAS
#
#   FOLDER      of the virtual environment; made when it is missing
#   EXTRAS      of pyproject.toml, with commas: cpu, gpu or cuda for the runtime; postgres, train, dev
#   --editable  the code stays where it is: for development
#   PYTHON      (environment) the Python that makes the environment: python3, which must be 3.11 or newer
set -eu
editable=
if [ "${1:-}" = --editable ]; then
    editable=--editable
    shift
fi
if [ $# -ne 2 ]; then
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
tree=$(cd "$(dirname "$0")/.." && pwd)
[ -x "$1/bin/python" ] || "${PYTHON:-python3}" -m venv "$1"
# shellcheck disable=SC2086  # nothing, or one option
"$1/bin/python" -m pip install --quiet --disable-pip-version-check $editable "$tree[$2]"
