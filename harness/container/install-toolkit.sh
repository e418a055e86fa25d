#!/bin/sh
# Install AWS's training toolkits into the Python that `python3` is here.
# usage: install-toolkit.sh TOOLKIT-REQUIREMENT FRAMEWORK-REQUIREMENT
set -eu

# pip compiles what it installs, as in AWS's images: in a container nothing could keep the byte code, and
# `train` would compile boto3 and all its like at each start, which takes seconds.
pip="python3 -m pip install --no-cache-dir --disable-pip-version-check --root-user-action=ignore"
# PEP 668: a distribution's Python refuses pip without this flag, and an older pip doesn't know it.
if python3 -m pip install --help | grep -q -e --break-system-packages; then
    pip="$pip --break-system-packages"
fi

# The toolkit has one C file (its gethostname, contract: A20). Bring a compiler where there is none.
added=""
header=$(python3 -c 'import os, sysconfig; print(os.path.join(sysconfig.get_path("include"), "Python.h"))')
command -v gcc >/dev/null || added="gcc libc6-dev"
[ -e "$header" ] || added="$added python3-dev"
if [ -n "$added" ]; then
    apt-get update
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $added
fi

# PyTorch was built against the base's numpy: neither may change under it.
python3 -m pip list --format=freeze | grep -i -E '^(numpy|torch|torchvision|pillow)==' > /tmp/keep.txt
$pip --constraint /tmp/keep.txt "$1" "$2"
rm /tmp/keep.txt

# PyTorch before 2.0 walks over an enum in a way that Python 3.11 changed (its zero is left out), and torchrun
# falls over the None that it gets. Only a distribution builds such a pair; this is PyTorch 2.0's own mend.
elastic=$(python3 -c 'import importlib.util as u, os
found = u.find_spec("torch")
print(os.path.join(os.path.dirname(found.origin), "distributed/elastic/multiprocessing/api.py"))')
if [ -e "$elastic" ] && python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    sed -i 's/^\( *\)for s in Std:$/\1for s in Std.__members__.values():/' "$elastic"
fi

if [ -n "$added" ]; then
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get purge -y --auto-remove $added
    apt-get clean
    rm -rf /var/lib/apt/lists/*
fi

# AWS's images have `python`; Debian only has `python3`.
command -v python >/dev/null || ln -s "$(command -v python3)" /usr/local/bin/python
command -v train
