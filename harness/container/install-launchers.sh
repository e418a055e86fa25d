#!/bin/sh
# What MPI launchers need beside AWS's toolkit (contract: H20): sshd, Open MPI, mpi4py, and password-less ssh
# between the hosts of a job. As in AWS's images the key lies in the image; nobody but the hosts of a job
# reaches their sshd, which listens in the job's own network.
set -eu

pip="python3 -m pip install --no-cache-dir --disable-pip-version-check --root-user-action=ignore"
if python3 -m pip install --help | grep -q -e --break-system-packages; then
    pip="$pip --break-system-packages"
fi
ca=""
[ -s /usr/local/share/harness/ca.crt ] && ca="-o Acquire::https::CaInfo=/usr/local/share/harness/ca.crt"
# shellcheck disable=SC2086
apt-get $ca update
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive apt-get $ca install -y --no-install-recommends \
    openssh-server openssh-client openmpi-bin
apt-get clean
rm -rf /var/lib/apt/lists/*
$pip "mpi4py>=4.1"

mkdir -p /run/sshd /root/.ssh
ssh-keygen -A
ssh-keygen -q -t rsa -N '' -f /root/.ssh/id_rsa
cp /root/.ssh/id_rsa.pub /root/.ssh/authorized_keys
printf 'Host *\n  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n' > /root/.ssh/config
chmod 700 /root/.ssh
chmod 600 /root/.ssh/*
# Otherwise a login without an audit session is refused, as in any container.
sed -i 's@session\s*required\s*pam_loginuid.so@session optional pam_loginuid.so@' /etc/pam.d/sshd

install -m 755 /usr/local/share/harness/smddprun /usr/local/bin/smddprun
mpirun --version
