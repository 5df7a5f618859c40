#!/usr/bin/env bash
# Makes .venv with the pinned versions of constraints.txt and this package; reuses what stands.
# PYTHON names the interpreter to make it with (default: python3).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="${PYTHON:-python3}"

if ! command -v "$python" > /dev/null; then
    echo "setup: error: $python is not found; install Python 3.11 or newer, or name one with PYTHON=/path/to/python3" >&2
    exit 2
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "setup: error: $python is $("$python" --version 2>&1); name Python 3.11 or newer with PYTHON=/path/to/python3" >&2
    exit 2
fi
exec "$python" tools/setup_venv.py
