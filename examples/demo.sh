#!/bin/sh
# The main job, rehearsed in a cloud on this computer: nothing leaves it, and nothing costs anything.
# What it leaves behind lies in ./demo: the trained weights, the log, the ssh config.
set -eu

GPUOPS_SANDBOX="$PWD/demo"
export GPUOPS_SANDBOX

bold='' plain=''
if [ -t 1 ]; then
    bold=$(printf '\033[1m') plain=$(printf '\033[0m')
fi

say() {
    printf '\n%s$ %s%s\n' "$bold" "$*" "$plain"
    "$@"
}

gpuops sandbox reset >/dev/null
trap 'gpuops sandbox stop >/dev/null' EXIT
trap 'exit 130' INT TERM

# A machine up, reached, and down again; and up at another address under the same name.
say gpuops --sandbox up fast-ai --type g4dn.xlarge --max-usd 2 -y
if command -v ssh >/dev/null; then
    # The plain program, with the config that gpuops writes: no prompt, and no warning about an unknown host.
    say ssh -F demo/home/ssh/gpuops.config fast-ai 'echo "$(whoami) on a machine with $(python3 --version)"'
else
    echo "(there is no ssh program on this computer: plain ssh is left out)"
fi
say gpuops --sandbox status
say gpuops --sandbox down fast-ai

# The main job, in one command. The sandbox's machine has no GPU; that this is a CPU run has to be said.
say gpuops --sandbox train digits --allow-cpu -y
say gpuops --sandbox runs
say gpuops --sandbox cost

# Its results are home, so the machine may be deleted.
say gpuops --sandbox down fast-ai --terminate -y
say gpuops --sandbox status
