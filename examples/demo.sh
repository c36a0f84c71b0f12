#!/bin/sh
# The main job, rehearsed in a cloud on this computer: nothing leaves it and nothing costs anything.
set -eu

GPUOPS_SANDBOX=$(mktemp -d "${TMPDIR:-/tmp}/gpuops-demo.XXXXXX")
export GPUOPS_SANDBOX
trap 'gpuops sandbox reset >/dev/null' EXIT INT TERM

say() { printf '\n\033[1m$ %s\033[0m\n' "$*"; "$@"; }

say gpuops --sandbox up fast-ai -y
if command -v ssh >/dev/null; then
    say gpuops --sandbox ssh fast-ai 'echo "$(whoami) on $(hostname): $(python3 --version)"'
else
    echo "(no ssh program on this computer: the line above was opened by gpuops's own client)"
fi
say gpuops --sandbox status
say gpuops --sandbox down fast-ai
say gpuops --sandbox up fast-ai -y
say gpuops --sandbox status
say gpuops --sandbox down fast-ai --terminate -y
say gpuops --sandbox status
