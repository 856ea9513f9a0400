#!/usr/bin/env bash
# Builds the Docker image and the SIF, runs both levels in each as strictly as a shared cluster does (root file
# system read-only, no network, a user without a passwd entry, no capabilities, input read-only), and compares
# every output with a plain install's: the same bytes. Needs bidsapp-recon and bids-validator-deno on PATH.
#
#   CONTAINER_CACHE  where layers and tools are kept  (default: ~/.cache/bidsapp-recon-containers); several GB
#   TORCH_INDEX      where torch comes from           (default: pip's own settings, else the Dockerfile's)
#   N_CPUS           for the runs                     (default: 1; threads of two wait busily where others compute)
#   CONTAINER_LIMIT  minutes for all of it            (default: 30); what takes longer fails
#
# What can't run on this machine (shown by an image and a SIF of three lines) is not tested: a banner gives the
# reason, and the exit code is 77 where nothing else failed. What can run has to pass.
set -euo pipefail
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
limit=${CONTAINER_LIMIT:-30}
if [[ ${1-} != limited ]]; then
  timeout --kill-after 60 "$((limit * 60))" "${BASH_SOURCE[0]}" limited &
  trap 'kill $! 2>/dev/null' INT TERM
  code=0
  wait $! || code=$?
  exit "$code"
fi
cache=${CONTAINER_CACHE:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/bidsapp-recon-containers}
work=$cache/test
image=bidsapp-recon:ci
n_cpus=${N_CPUS:-1}
sif=$cache/sif/bidsapp-recon.sif
uid=$(id -u)
if [[ $uid == 0 ]]; then uid=12345; fi
export APPTAINER_TMPDIR=$cache/tmp APPTAINER_CACHEDIR=$cache/tmp/cache APPTAINERENV_PIP_CONFIG_FILE=/mnt/pip.conf

why=''
doing=''
summary=()
untested=''
# shellcheck source-path=SCRIPTDIR
. "$repo/container/engine.sh"
. "$repo/container/apptainer.sh"

say() {
  doing=$*
  printf '\n--- %s\n' "$*"
}
fail() {
  echo "container/test.sh: $*" >&2
  exit 1
}
skip() {
  printf '%s\n' "" "################################################################" \
    "#### NOT TESTED: $1" "#### $why" "################################################################"
  summary+=("$1: NOT TESTED, $why")
  echo "containers, $1: $why" >>"${NOT_TESTED:-/dev/null}"
  untested=$1
}
timed() { # NAME command...: its seconds are in the summary
  local name=$1 start=$SECONDS
  shift
  doing=$name
  "$@" || return
  summary+=("$name: $((SECONDS - start)) s")
}
expect() { # EXIT-CODE WORD command...: it fails so, and its message has the word
  local code=0 said
  said=$("${@:3}" 2>&1) || code=$?
  if [[ $code != "$1" || $said != *$2* ]]; then
    fail "expected exit code $1 and a message with '$2', got $code: $said"
  fi
  echo "refused with exit code $1, as it has to be: ${said##*$'\n'}"
}
finish() { # EXIT-CODE: say how far it got
  local last=$doing
  say "containers, $SECONDS s, load $(cut -d' ' -f1-3 /proc/loadavg)"
  if ((${#summary[@]})); then printf '%s\n' "${summary[@]}"; fi
  if (($1)) && [[ $1 != 77 || -z $untested ]]; then echo "FAILED in: $last"; fi
}
stopped() {
  echo "container/test.sh: stopped, after $limit minutes if nobody did (CONTAINER_LIMIT gives more)"
  exit 124
}
# To the script's own output: a command that is stopped may have had its own redirected.
exec 8>&1
trap 'stopped >&8' TERM
trap 'finish $? >&8' EXIT
out_folder() { # PATH: empty, and the container's user may write to it
  mkdir -p "$1"
  if [[ $(id -u) == 0 ]]; then chown "$uid" "$1"; fi
}
# The BLAS chooses its kernels by the processor unless the environment says otherwise, and they round
# differently: what the environment says has to hold in the containers too.
blas_settings() { compgen -e | grep -E '^OPENBLAS_' | grep -v NUM_THREADS || true; }

plain_run() { # ARGUMENTS after BIDS_DIR and OUTPUT_DIR
  bidsapp-recon "$work/data" "$work/plain" "$@"
}
docker_run() {
  local name options=()
  while read -r name; do options+=(--env "$name"); done < <(blas_settings)
  image_run "$image" "${options[@]}" -v "$work/data:/data:ro" -v "$work/docker:/out" -- /data /out "$@"
}
apptainer_run() {
  local name options=()
  while read -r name; do options+=(--env "$name=${!name}"); done < <(blas_settings)
  with_apptainer "$cache" -- apptainer run "${sif_strict[@]}" "${options[@]}" -B "$work/data:/data:ro" -B "$work/apptainer:/out" \
    "$sif" /data /out "$@"
}
both_levels() { # plain, docker or apptainer
  say "$1: both levels"
  out_folder "$work/$1"
  timed "$1, participant" "$1_run" participant --n-cpus "$n_cpus" --device cpu >"$work/$1.log" 2>&1 || fail "$1: $(cat "$work/$1.log")"
  tail -1 "$work/$1.log"
  timed "$1, group" "$1_run" group
  if ! grep -q "The input is valid BIDS" "$work/$1.log"; then fail "$1: the input was not validated"; fi
  bids-validator-deno "$work/$1" >"$work/$1.bids" || fail "$1: the output is not valid BIDS: $(cat "$work/$1.bids")"
  echo "bids-validator: the output is valid BIDS"
}

# One at a time: layers and results lie in the same folders.
mkdir -p "$cache"
exec 9>"$cache/lock"
if ! flock --nonblock 9; then
  echo "waiting for another run with $cache"
  flock 9
fi
# Layers of earlier locks are of no more use, and each set of them takes gigabytes.
key=$(cat "$repo"/{Dockerfile,container/requirements.txt,container/install.sh} | sha256sum)
if [[ $(cat "$cache/key" 2>/dev/null) != "$key" ]]; then
  # A build that failed leaves its layers mounted.
  awk -v folder="$cache/podman/" 'index($2, folder) == 1 { print $2 }' /proc/mounts \
    | xargs --no-run-if-empty umount --lazy 2>/dev/null || true
  rm -rf "$cache"/{podman,sif}
fi
rm -rf "$work"
mkdir -p "$cache"/{sif,tmp} "$work"
echo "$key" >"$cache/key"
if [[ $(id -u) == 0 ]]; then chown "$uid" "$cache"/{sif,tmp}; fi

say "an engine"
if ! timed "engine" engine_ready; then
  skip "Docker image and SIF"
  exit 77
fi
bidsapp-recon demo "$work/simulated" --simulate-only --n-train 40 --n-test 5
mv "$work/simulated/bids" "$work/data"
both_levels plain

say "Docker image, with $engine"
timed "docker, build" image_build "$image" "$repo"
bytes=$(image_size "$image")
summary+=("docker, image: $((bytes / 1000000)) MB")
if ((bytes >= 2000000000)); then fail "the image has $bytes bytes, more than 2 GB"; fi
both_levels docker
python3 "$repo/container/compare.py" "$work/plain" "$work/docker" docker
say "docker: --cpus, refusals, MODELS"
cpus=$(image_run "$image" --cpus 1 --entrypoint python -- -c \
  'from bidsapp.system.resources import available_cpus; print(available_cpus())')
if [[ $cpus != 1 ]]; then fail "with --cpus 1 the app takes $cpus CPUs"; fi
expect 18 "participant" docker_run participant --participant-label 99 --skip-bids-validation
expect 75 "/models" docker_run participant --recipe brain-diffuser --skip-bids-validation
chmod 555 "$work/docker"
if [[ $(id -u) == 0 ]]; then chown 0 "$work/docker"; fi
expect 73 "read-write" docker_run participant --skip-bids-validation
if said=$(image_build bidsapp-recon-models "$repo" --build-arg "MODELS=embedded no-such-recipe" 2>&1); then
  fail "an image was built with the weights of a recipe that there is not"
elif [[ $said != *"0 files downloaded"*brain-diffuser* ]]; then
  fail "an unknown recipe in MODELS: expected the names of those there are, got: $said"
fi
echo "refused, as it has to be: MODELS=\"embedded no-such-recipe\""

say "apptainer"
if ! timed "apptainer" apptainer_ready; then
  skip "SIF"
else
  timed "apptainer, build" sif_build "$sif" Singularity.def
  summary+=("apptainer, SIF: $(($(stat -c %s "$sif") / 1000000)) MB")
  with_apptainer "$cache" -- apptainer test --containall --no-home "$sif"
  with_apptainer "$cache" -- apptainer run-help "$sif" | grep "apptainer run" >/dev/null
  with_apptainer "$cache" -- apptainer inspect "$sif" | grep "org.opencontainers.image.version"
  both_levels apptainer
  python3 "$repo/container/compare.py" "$work/plain" "$work/apptainer" apptainer
fi
rm -rf "$work"
if [[ -n $untested ]]; then exit 77; fi
