#!/bin/sh
# Makes /opt/venv with all that the app needs, the app itself left out. Run by Dockerfile and Singularity.def.
#   TORCH_INDEX   package index that torch, and nothing else, is taken from; empty: pip's own
set -eu
umask 022
cd "$(dirname "$0")"
venv=/opt/venv
python3 -m venv "$venv"
pip="$venv/bin/python -m pip"
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_PROGRESS_BAR=off

# torch by itself and first: what comes after finds it there and can't bring another build. Its own needs
# (CUDA's packages for a CUDA build) are left to the second step, which goes to pip's usual index.
torch=$(grep -E '^torch==' requirements.txt)
# shellcheck disable=SC2086  # words are meant to be split
$pip install --no-compile ${TORCH_INDEX:+--no-deps --index-url "$TORCH_INDEX"} --constraint requirements.txt "$torch"
$pip install --no-compile --requirement requirements.txt
$pip check

# What only building and testing these packages needs, an eighth of all. A list, not every folder called tests:
# nilearn, for one, imports from its own.
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
cd "$site"
rm -rf torch/test torch/include torch/share pandas/tests matplotlib/tests nibabel/tests bids/tests
find torch/bin -type f ! -name torch_shm_manager -delete
find scipy sklearn networkx sympy -type d -name tests -prune -exec rm -rf {} +
find . -name '*.a' -delete
# On all processors, and without what was removed. Some packages bring files for newer Pythons: these stay as they are.
"$venv/bin/python" -m compileall -q -j 0 . >/dev/null || true
chmod -R a+rX "$venv"
du -sh "$venv"
