#!/bin/sh
# Builds the wheel into dist/ with PYTHON (default python3), then runs the tests on it in a fresh environment for
# every torch version named:  tools/check_wheel.sh 2.10.0 2.13.0
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
rm -rf "$root/dist"
"$python" -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$root/dist" "$root"
wheel=$(ls "$root"/dist/seq2exp-*.whl)
cp -r "$root/tests" "$root/pyproject.toml" "$work"  # away from the sources, so that the installed package is tested
for torch in "$@"; do
    "$python" -m venv "$work/venv"
    "$work/venv/bin/pip" install --quiet "torch==$torch" "$wheel[test]"
    (cd "$work" && ./venv/bin/pytest -q -m 'not slow' --ignore tests/test_build.py)
    echo "check_wheel: $(basename "$wheel") passes the tests on torch $torch"
    rm -rf "$work/venv"
done
