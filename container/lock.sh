#!/usr/bin/env bash
# Writes container/requirements.txt anew: the newest versions that fit pyproject.toml, resolved together.
# Needs Python 3.11 (the images' Debian has it) on x86-64 Linux and pip's package index.
#   PYTHON   which Python to use      (default: python3.11)
#   TORCH    which version of torch   (default: the one that is locked)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
lock=container/requirements.txt
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT

"${PYTHON:-python3.11}" -m venv "$venv"
# torch by itself and first, as in container/install.sh: else CUDA's packages would come along and be locked.
torch=torch==${TORCH:-$(sed -n 's/^torch==//p' "$lock")}
"$venv/bin/pip" install --quiet "$torch" ${TORCH_INDEX:+--no-deps --index-url "$TORCH_INDEX"}
"$venv/bin/pip" install --quiet '.[demo,validator]'
"$venv/bin/pip" check
{
  echo "# What both images install, and CI's environment too: made by container/lock.sh, not by hand."
  # The local part of a version (+cpu) says where torch came from; container/install.sh's caller chooses that.
  "$venv/bin/pip" freeze --all | grep -vE '^(pip|bidsapp-recon)\b' | sed -E 's/^(torch==[^+]+)\+.*/\1/'
} >"$lock"
echo "$lock: $(grep -c == "$lock") packages"
