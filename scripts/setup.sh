#!/bin/sh
# Build .venv from requirements/dev.lock, with every package checked against its hash. Run from the project's root.
# When the environment was built from this very lock before, nothing is done.
set -eu

lock=requirements/dev.lock
stamp=.venv/dev.lock
python=.venv/bin/python

fail() {
    echo "make setup: $1" >&2
    exit 2
}

# A version manager's shim may exist and not run, and Debian's Python may lack venv: so run each candidate.
usable() {
    "$1" -c 'import sys, ensurepip, sqlite3, ssl, venv; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' >/dev/null 2>&1
}

if cmp -s "$lock" "$stamp" && usable "$python"; then
    exit 0
fi

if [ -n "${PYTHON:-}" ]; then
    usable "$PYTHON" || fail "PYTHON=$PYTHON is not a Python 3.10 to 3.13 with the venv module"
    base=$PYTHON
else
    base=
    for candidate in python3 python3.12 python3.13 python3.11 python3.10; do
        if usable "$candidate"; then
            base=$candidate
            break
        fi
    done
    [ -n "$base" ] || fail "found no Python 3.10 to 3.13 with the venv module (on Debian and Ubuntu: python3-venv); name one with PYTHON=/path/to/python"
fi

echo "Building .venv with $("$base" --version): once, about a minute"
rm -rf .venv
"$base" -m venv .venv || fail "$base could not make a virtual environment"

# The installer comes from the lock as well: its version and hashes are the lock's.
awk '/^[^ #]/ {inside = /^uv==/} inside' "$lock" > .venv/uv.txt
pip="$python -m pip --disable-pip-version-check --quiet"
if $pip install --no-deps --require-hashes -r .venv/uv.txt && .venv/bin/uv --version >/dev/null 2>&1 &&
    .venv/bin/uv --quiet pip sync --python "$python" --require-hashes --compile-bytecode "$lock"; then
    :
else
    echo "uv could not install the packages; trying with pip, which is slower" >&2
    $pip install --require-hashes -r "$lock" || fail "the packages could not be installed: see the lines above"
fi
cp "$lock" "$stamp"
