#!/usr/bin/env bash
# To be sourced by container/test.sh: builds and runs images, with Docker or, where no daemon answers, with
# buildah and podman from Debian's packages. Gives engine_ready, image_build, image_run, image_size.
#
# shellcheck disable=SC2154  # set beforehand: repo; cache, a folder kept between runs; uid, who runs the app
# shellcheck disable=SC2034  # for the caller: why

base=docker.io/library/debian:bookworm-slim
torch_default=$(sed -n 's/^ARG TORCH_INDEX=//p' "$repo/Dockerfile")
# GB that have to be free, without layers of earlier runs and with them.
room_cold=10 room_warm=4
engine=''

# Find an engine or install one, and show that it works here. Returns 77 and sets why where there can't be one.
# What fails after this is the fault of the images' files, not of the machine.
engine_ready() {
  engine_find && engine_room && engine_prepare && engine_probe
}

engine_find() {
  export DOCKER_BUILDKIT=1
  if docker info >/dev/null 2>&1; then
    engine=docker
    return
  fi
  local name missing=''
  for name in buildah podman runc mmdebstrap; do
    if ! command -v "$name" >/dev/null; then missing=$name; fi
  done
  if [[ -n $missing ]]; then
    if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
      why="there is no Docker daemon, and buildah and podman can't be installed (that takes root and apt-get)"
      return 77
    fi
    echo "no Docker daemon: installing buildah and podman"
    if ! { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
      --no-install-recommends buildah podman runc mmdebstrap; } >"$cache/apt.log" 2>&1; then
      tail -5 "$cache/apt.log"
      why="there is no Docker daemon, and apt-get could not install buildah and podman"
      return 77
    fi
  elif [[ $(id -u) != 0 ]]; then
    why="there is no Docker daemon, and podman as it is used here takes root"
    return 77
  fi
  engine=podman
}

# Look whether layers, base and SIF find room: less where layers of the same lock are there already.
engine_room() {
  local folder=$cache free need=$room_cold
  if [[ -d $cache/podman/root/overlay-images ]]; then need=$room_warm; fi
  if [[ $engine == docker ]]; then
    folder=$(docker info --format '{{.DockerRootDir}}')
    if [[ ! -d $folder ]]; then folder=$cache; fi
  fi
  free=$(df --output=avail --block-size=1G "$folder" | tail -1)
  if ((free < need)); then
    why="$folder has $((free)) GB free, and $need GB are needed (CONTAINER_CACHE puts layers elsewhere)"
    return 77
  fi
}

# Make ready what a build needs. podman gets storage and settings of its own: the machine's stay as they are.
engine_prepare() {
  python3 "$repo/container/pip_settings.py" "$cache/pip" || return
  if [[ $engine == docker ]]; then return; fi
  mkdir -p "$cache"/podman/{root,run}
  export CONTAINERS_STORAGE_CONF=$cache/podman/storage.conf CONTAINERS_CONF=$cache/podman/containers.conf
  cat >"$CONTAINERS_STORAGE_CONF" <<END
[storage]
driver = "overlay"
graphroot = "$cache/podman/root"
runroot = "$cache/podman/run"
END
  cat >"$CONTAINERS_CONF" <<END
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
END
  # What a run that was killed left.
  if ! { buildah rm --all && podman rm --all --force; } >"$cache/engine.log" 2>&1; then
    tail -5 "$cache/engine.log"
    why="podman can't keep containers here"
    return 77
  fi
  if ! podman image exists "$base" && ! debian_base >"$cache/base.log" 2>&1; then
    tail -5 "$cache/base.log"
    why="the base image can't be made: mmdebstrap failed"
    return 77
  fi
}

# Build an image that only asks Debian's archive for its lists, and run it as strictly as the app's.
engine_probe() {
  mkdir -p "$cache/probe"
  cat >"$cache/probe/Dockerfile" <<END
FROM $base
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=cache,target=/root/.cache/pip \\
    apt-get update -o APT::Update::Error-Mode=any
ENTRYPOINT ["cat", "/etc/debian_version"]
END
  if ! { image_build bidsapp-recon-probe "$cache/probe" && image_run bidsapp-recon-probe --; } >"$cache/probe.log" 2>&1; then
    tail -5 "$cache/probe.log"
    why="$engine can't build and run an image of three lines here"
    return 77
  fi
  local index=$torch_default
  if [[ -n $(torch_index) ]]; then index=${TORCH_INDEX-}; fi
  if [[ -n $index ]] && ! python3 -c 'import sys, urllib.request as r; r.urlopen(sys.argv[1], timeout=60)' \
    "$index/" 2>"$cache/probe.log"; then
    tail -1 "$cache/probe.log"
    why="torch's package index $index can't be reached"
    return 77
  fi
}

# Make a stand-in for the base image out of Debian's packages: images can't be pulled everywhere.
debian_base() {
  mmdebstrap --quiet --variant=minbase --mode=root --aptopt='Acquire::Check-Valid-Until "false"' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/info/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' bookworm "$cache/base.tar" /etc/apt/sources.list.d/debian.sources \
    && podman import --quiet --change 'CMD ["bash"]' "$cache/base.tar" "$base" \
    && rm "$cache/base.tar"
}

# Where torch comes from: pip's own settings where the machine has any, else the Dockerfile's default.
torch_index() {
  if [[ -n ${TORCH_INDEX+set} || $(wc -l <"$cache/pip/pip.conf") -gt 1 ]]; then
    printf -- '--build-arg\nTORCH_INDEX=%s\n' "${TORCH_INDEX-}"
  fi
}

image_build() { # TAG FOLDER [build arguments...]
  local tag=$1 folder=$2 torch
  shift 2
  mapfile -t torch < <(torch_index)
  case $engine in
    docker) docker build "${torch[@]}" "$@" --secret "id=pip.conf,src=$cache/pip/pip.conf" --tag "$tag" "$folder" ;;
    podman)
      buildah bud --isolation chroot --format docker --pull=never --layers "${torch[@]}" "$@" \
        --secret "id=pip.conf,src=$cache/pip/pip.conf" --volume "$cache/pip:/mnt:ro" \
        --tag "$tag" --file "$folder/Dockerfile" "$folder"
      ;;
  esac
}

# As strict as a shared cluster: root file system read-only, no network, a user without a passwd entry, no
# capabilities. Only /tmp and what is mounted can be written.
image_run() { # TAG [options of docker run...] -- [arguments of the app...]
  local tag=$1 options=(--rm --network none --read-only --tmpfs /tmp --user "$uid:$uid" --cap-drop ALL
    --security-opt no-new-privileges)
  shift
  if [[ $engine == podman ]]; then options+=(--pull=never --read-only-tmpfs=false --passwd=false); fi
  while [[ $1 != -- ]]; do
    options+=("$1")
    shift
  done
  shift
  "$engine" run "${options[@]}" "$tag" "$@"
}

image_size() { # TAG: bytes, uncompressed
  "$engine" image inspect --format '{{.Size}}' "$1"
}
