#!/usr/bin/env bash
# Every table that needs a GPU, in ten minutes: samplers, norms, decoder, a part of the preset paper.
#
#     benchmarks/gpu.sh                  # into runs/gpu, on the first GPU
#     benchmarks/gpu.sh OUT              # into another folder
#     benchmarks/gpu.sh OUT small        # the same commands at sizes for a CPU, to try the script
#
# Each part has its own limit of seconds; what it had written by then stays, and the next part
# begins. A run that ends early goes on where it was when the script is called again. device.txt says
# on what machine it ran; parts.txt has the seconds and the exit status of each part. Where nothing can
# be installed, ISOUNC_RUN=env takes the programs that are on the PATH in place of `uv run`.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=$(mkdir -p "${1:-runs/gpu}" && cd "${1:-runs/gpu}" && pwd)
if [ "${2:-}" = small ]; then
    device=cpu extra=() llm=(--random 64 2)
    sampler_sizes=(--problems moons --widths 8 --sizes --chains --ways "hmc auto")
    norm_sizes=(--models mlp --widths 64 --batches 8 --no-memory)
    decoder_sizes=(--batches 1 --seconds 1)
    cells=(--problems linear --widths 8 --num-seeds 1 --sampling.num-draws 500 --sampling.max-draws 500)
    limits=(120 120 120 180)
else
    device=gpu extra=(--extra cuda) llm=(--dtype bfloat16)
    sampler_sizes=(--problems moons --widths 32 256 1024 --sizes --chains 64)
    norm_sizes=(--widths 256 1024 4096 --batches 8 1024)
    decoder_sizes=(--batches 1 8 64)
    # Problems at a time are one program on a GPU; the widest cells say most about it.
    cells=(--problems xor clusters3 linear_regression --widths 64 256 512)
    limits=(170 110 90 190)
fi
run=(uv run "${extra[@]}" --extra llm --group smollm2)
[ -z "${ISOUNC_RUN:-}" ] || run=("$ISOUNC_RUN")
# JAX takes memory as it needs it, since parts run in processes of their own.
export XLA_PYTHON_CLIENT_PREALLOCATE=false

"${run[@]}" python - "$device" >"$out/device.txt" <<'PYTHON' || exit
import sys

import jax

if jax.default_backend() != sys.argv[1]:
    sys.exit(f"the device must be a {sys.argv[1]}, got {jax.default_backend()}: is the driver there?")
print(f"{jax.devices()[0].device_kind}, {jax.device_count()} device(s), JAX {jax.__version__}")
PYTHON
cat "$out/device.txt"

part() { # name, limit in seconds, command
    local name=$1 limit=$2 begun=$SECONDS status
    shift 2
    timeout --signal=TERM --kill-after=20 "$limit" "$@" >"$out/$name.log" 2>&1
    status=$?
    echo "$name $((SECONDS - begun)) s, status $status" | tee -a "$out/parts.txt"
    [ "$status" = 0 ] || tr '\r' '\n' <"$out/$name.log" | tail -n 3
}

: >"$out/parts.txt"
part samplers "${limits[0]}" "${run[@]}" python benchmarks/samplers.py "${sampler_sizes[@]}" --out "$out/samplers"
part norms "${limits[1]}" "${run[@]}" python benchmarks/gradnorm.py "${norm_sizes[@]}" --out "$out/gradnorm"
part decoder "${limits[2]}" "${run[@]}" python benchmarks/llm.py "${llm[@]}" "${decoder_sizes[@]}" --out "$out/llm"
part paper "${limits[3]}" "${run[@]}" isounc scaling --preset paper --device "$device" "${cells[@]}" --out "$out/paper"
! grep -qv "status 0$" "$out/parts.txt"
