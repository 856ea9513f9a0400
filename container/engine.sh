#!/usr/bin/env bash
# To be sourced by container/test.sh: builds and runs images, with Docker or, where no daemon answers, with
# buildah and podman from Debian's packages. Gives engine_find, engine_prepare, image_build, image_run, image_size.
#
# shellcheck disable=SC2154  # set beforehand: repo; cache, a folder kept between runs; uid, who runs the app
# shellcheck disable=SC2034  # for the caller: why

base=docker.io/library/debian:bookworm-slim
engine=''

# Find an engine or install one. Returns 77 and sets why where there can't be one here.
engine_find() {
  if docker info >/dev/null 2>&1; then
    engine=docker
    return
  fi
  if ! command -v buildah podman runc mmdebstrap >/dev/null; then
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
  fi
  engine=podman
}

# Make ready what a build needs. podman gets storage and settings of its own: the machine's stay as they are.
engine_prepare() {
  python3 "$repo/container/pip_settings.py" "$cache/pip"
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
  buildah rm --all >/dev/null  # what a failed build left
  if ! podman image exists "$base"; then debian_base; fi
}

# Make a stand-in for the base image out of Debian's packages: images can't be pulled everywhere.
debian_base() {
  echo "making $base from Debian's packages"
  mmdebstrap --quiet --variant=minbase --mode=root --aptopt='Acquire::Check-Valid-Until "false"' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/info/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' bookworm "$cache/base.tar" /etc/apt/sources.list.d/debian.sources
  podman import --quiet --change 'CMD ["bash"]' "$cache/base.tar" "$base" >/dev/null
  rm "$cache/base.tar"
}

# Where torch comes from: pip's own settings where the machine has any, else the Dockerfile's default.
torch_index() {
  if [[ -n ${TORCH_INDEX+set} || $(wc -l <"$cache/pip/pip.conf") -gt 1 ]]; then
    printf -- '--build-arg\nTORCH_INDEX=%s\n' "${TORCH_INDEX-}"
  fi
}

image_build() { # TAG [build arguments...]
  local tag=$1 torch
  shift
  mapfile -t torch < <(torch_index)
  case $engine in
    docker) docker build "${torch[@]}" "$@" --secret "id=pip.conf,src=$cache/pip/pip.conf" --tag "$tag" "$repo" ;;
    podman)
      buildah bud --isolation chroot --format docker --pull=never --layers "${torch[@]}" "$@" \
        --secret "id=pip.conf,src=$cache/pip/pip.conf" --volume "$cache/pip:/mnt:ro" \
        --tag "$tag" --file "$repo/Dockerfile" "$repo"
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
