# Sourced by the other scripts: makes and fills .venv. Your pip settings (index, cache, proxies) are honoured.
#
# environment KIND...   KIND is `serve` or `dev`; does nothing when what is there is already right. Sets `build`.

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$repo/.venv

_say() { printf 'setup: %s\n' "$*" >&2; }

_find_python() {
    local candidate
    for candidate in "${SPILLWAY_PYTHON:-}" python3.11 python3.12 python3.13 python3; do
        [ -n "$candidate" ] && command -v "$candidate" >/dev/null || continue
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "setup: needs Python 3.11, 3.12 or 3.13 with venv (Debian, Ubuntu: apt install python3-venv)." \
        "Have it elsewhere? Set SPILLWAY_PYTHON=/path/to/python3" >&2
    return 1
}

# CUDA when NVML answers, CPU otherwise.
_build() {
    "$1" -c 'import ctypes, sys; sys.exit(ctypes.CDLL("libnvidia-ml.so.1").nvmlInit_v2())' 2>/dev/null && echo cuda || echo cpu
}

_pip() {
    "$venv/bin/python" -m pip --disable-pip-version-check install --no-compile \
        --progress-bar "${SPILLWAY_PIP_PROGRESS:-on}" "$@"
}

environment() {
    local python wanted stamp dev=()
    if [ ! -x "$venv/bin/python" ]; then
        python=$(_find_python) || return 1
        _say "making .venv with $python"
        "$python" -m venv "$venv"
    fi
    build=${SPILLWAY_BUILD:-$(_build "$venv/bin/python")}
    stamp=$venv/spillway-$1-$build
    wanted=$(cat "$repo/pyproject.toml" "$repo"/requirements/*.txt | sha256sum)
    [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return
    _say "installing the $build build (a few minutes the first time)"
    [ "$1" = dev ] && dev=(-r "$repo/requirements/dev.txt")
    if [ "$build" = cuda ]; then
        _pip -r "$repo/requirements/cuda.txt"
        _pip --no-deps "${dev[@]}" --editable "$repo"
    else
        "$venv/bin/python" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null || {
            echo "setup: vLLM's CPU build needs libnuma (Debian, Ubuntu: apt install libnuma1)" >&2
            return 1
        }
        _pip -r "$repo/requirements/torch.txt"
        _pip --no-deps -r "$repo/requirements/cpu.txt" "${dev[@]}" --editable "$repo"
    fi
    # pip would do this on one core. What packages ship for other versions of Python does not compile, and need not.
    "$venv/bin/python" -m compileall -qq -j 0 "$venv/lib" || true
    printf '%s' "$wanted" >"$stamp"
}
