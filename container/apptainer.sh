#!/usr/bin/env bash
# To be sourced by container/test.sh after engine.sh: Apptainer as an ordinary user. Where it is not installed
# it is put, with the newer Debian that has it, into a folder of its own. Gives apptainer_ready, sif_build, with_apptainer.
#
# shellcheck disable=SC2154  # set beforehand: repo; cache, a folder kept between runs; base and engine by engine.sh
# shellcheck disable=SC2034  # for the caller: why

apptainer_root=''

# Find Apptainer or install it, and show that it works here. Returns 77 and sets why where there can't be one.
# What fails after this is the fault of the definition file or of the app, not of the machine.
apptainer_ready() {
  apptainer_find && apptainer_probe
}

apptainer_find() {
  if command -v apptainer >/dev/null; then return; fi
  apptainer_root=$cache/apptainer
  if [[ -x $apptainer_root/usr/bin/apptainer ]]; then return; fi
  if [[ $(id -u) != 0 || ! -f /etc/apt/sources.list.d/debian.sources ]] || ! command -v mmdebstrap >/dev/null; then
    why="apptainer is not installed, and can't be (that takes root, Debian and mmdebstrap)"
    return 77
  fi
  echo "installing apptainer into $apptainer_root"
  local suite sources=()
  mkdir -p "$cache/sources"
  # Debian has apptainer in sid only; all that it needs comes from trixie.
  for suite in trixie sid; do
    awk 'BEGIN { RS = ""; ORS = "\n\n" } NR == 1' /etc/apt/sources.list.d/debian.sources \
      | sed -E "s/^Suites:.*/Suites: $suite/" >"$cache/sources/$suite.sources"
    sources+=("$cache/sources/$suite.sources")
  done
  if ! mmdebstrap --quiet --variant=minbase --mode=root --aptopt='Acquire::Check-Valid-Until "false"' \
    --aptopt='APT::Default-Release "trixie"' --include=apptainer,squashfuse trixie "$apptainer_root" \
    "${sources[@]}" >"$cache/apptainer.log" 2>&1; then
    tail -5 "$cache/apptainer.log"
    rm -rf "$apptainer_root"
    why="apptainer is not installed, and mmdebstrap could not install it"
    return 77
  fi
  if ! { mkdir -p "$apptainer_root"/.old && touch "$apptainer_root/etc/resolv.conf" \
    && mknod -m 666 "$apptainer_root/.fuse" c 10 229 \
    && chroot "$apptainer_root" useradd --create-home --uid 12345 tester; }; then
    rm -rf "$apptainer_root"
    why="the folder that apptainer was put into can't be made ready (that takes device files and chroot)"
    return 77
  fi
}

# Build a SIF that only asks Debian's archive for its lists, and run it as strictly as the app's.
apptainer_probe() {
  mkdir -p "$cache/probe"
  cat >"$cache/probe/probe.def" <<'END'
Bootstrap: {{ BOOTSTRAP }}
From: {{ BASE }}
%arguments
    BOOTSTRAP=docker
    BASE=debian:bookworm-slim
%post
    apt-get update -o APT::Update::Error-Mode=any
END
  if ! { sif_build "$cache/sif/probe.sif" "$cache/probe/probe.def" && with_apptainer "$cache" -- apptainer exec \
    "${sif_strict[@]}" "$cache/sif/probe.sif" cat /etc/debian_version; } >"$cache/probe.log" 2>&1; then
    tail -5 "$cache/probe.log"
    why="apptainer can't build and run a SIF of three lines here (user namespaces may be off)"
    return 77
  fi
}

# What the runs have in common: as strict as a shared cluster, and without a network.
sif_strict=(--containall --no-home --cleanenv --net --network none)

sif_build() { # SIF DEFINITION [build arguments...]
  local sif=$1 definition=$2 options=(--force --bind "$cache/pip:/mnt") torch
  shift 2
  if grep -q TORCH_INDEX "$definition"; then
    mapfile -t torch < <(torch_index)
    options+=("${torch[@]}")
  fi
  if [[ $(id -u) != 0 || -n $apptainer_root ]]; then options+=(--fakeroot); fi
  if [[ $engine == podman ]]; then
    if [[ ! -f $cache/sif/base.tar ]]; then
      podman save --quiet --format oci-archive --output "$cache/sif/base.tar" "$base" || return
      chmod 644 "$cache/sif/base.tar"
    fi
    options+=(--build-arg BOOTSTRAP=oci-archive --build-arg "BASE=$cache/sif/base.tar")
  fi
  with_apptainer "$cache" -- apptainer build "${options[@]}" "$@" \
    --mksquashfs-args "-comp zstd -Xcompression-level 1" "$sif" "$definition"
}

# Run a command where Apptainer is, in the repository, as uid 12345 where this is root. It sees the
# repository and the folders given, each at its own path.
with_apptainer() { # FOLDER... -- command...
  local folders=("$repo")
  while [[ $1 != -- ]]; do
    folders+=("$1")
    shift
  done
  shift
  if [[ -z $apptainer_root ]]; then
    (cd "$repo" && "$@")
    return
  fi
  # shellcheck disable=SC2016  # the inner shell expands it
  unshare --mount --propagation private bash -euc '
    root=$1 count=$2
    shift 2
    cd_to=$1
    mount --bind "$root" "$root"
    for folder in proc sys dev; do mount --rbind "/$folder" "$root/$folder"; done
    if [ -e "$root/dev/fuse" ]; then mount --bind "$root/.fuse" "$root/dev/fuse"; fi
    mount --bind /etc/resolv.conf "$root/etc/resolv.conf"
    for ((i = 0; i < count; i++)); do
      mkdir -p "$root$1"
      mount --bind "$1" "$root$1"
      shift
    done
    cd "$root"
    pivot_root . .old
    umount -l /.old
    cd "$cd_to"
    exec setpriv --reuid 12345 --regid 12345 --clear-groups env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin \
      HOME=/home/tester APPTAINER_TMPDIR="$APPTAINER_TMPDIR" APPTAINER_CACHEDIR="$APPTAINER_CACHEDIR" \
      APPTAINERENV_PIP_CONFIG_FILE=/mnt/pip.conf "$@"' \
    _ "$apptainer_root" "${#folders[@]}" "${folders[@]}" "$@"
}
