#!/bin/sh
# Programs that know nothing of pins, beside a pinned file, in a fresh root; by tests/packaging/test_integrations.py.
set -eu
exec </dev/null 2>&1

step() {
    echo "== $*"
}
must_fail() {
    ! "$@" || { echo "this should have failed: $*"; exit 1; }
}
apt-get -qq update
apt-get -qq -o Dpkg::Use-Pty=0 -y --no-install-recommends install /packages/now/*.deb e2fsprogs >/dev/null

# On ext4, where files are sealed while they are pinned.
truncate -s 64M /tmp/disk && mkfs.ext4 -q /tmp/disk && mkdir -p /srv/models /mnt/models && mount -o loop /tmp/disk /srv/models
head -c 1000000 /dev/urandom >/srv/models/big.bin
echo small >/srv/models/other
pinfs mount /srv/models /mnt/models --daemon
pinfs pin /mnt/models/big.bin -- sleep infinity &
until lsattr /srv/models/big.bin | grep -q '^[^ ]*a'; do :; done
export RESTIC_PASSWORD=x BORG_PASSPHRASE=x BORG_RELOCATED_REPO_ACCESS_IS_OK=yes

step "restic reads the source and the mount"
restic --quiet --repo /tmp/restic init
restic --quiet --repo /tmp/restic backup /srv/models /mnt/models --exclude .pinfs --exclude lost+found
restic --quiet --repo /tmp/restic restore latest --target /tmp/restored
for path in /srv/models/big.bin /mnt/models/big.bin /srv/models/other; do
    cmp $path /tmp/restored$path
done

step "borg reads the source"
borg init --encryption=none /tmp/borg
borg create /tmp/borg::one /srv/models --exclude '*/lost+found'
mkdir /tmp/unpacked && cd /tmp/unpacked && borg extract /tmp/borg::one && cd /
cmp /srv/models/big.bin /tmp/unpacked/srv/models/big.bin
chattr -R -a /tmp/unpacked 2>/dev/null || true # borg keeps the seal as a flag of the file

step "neither restores over a pinned file"
must_fail sh -c 'cd / && borg extract /tmp/borg::one srv/models/big.bin'
cmp /srv/models/big.bin /tmp/restored/srv/models/big.bin

step "logrotate meets a pinned log"
echo "line" >/mnt/models/app.log
pinfs pin /mnt/models/app.log -- sleep infinity &
until pinfs ls /mnt/models | grep -q app.log; do :; done
printf '/mnt/models/app.log {\n copytruncate\n rotate 2\n su root root\n}\n' >/tmp/rotate.conf
must_fail logrotate --force --state /tmp/state /tmp/rotate.conf
grep -qx line /mnt/models/app.log
printf '/mnt/models/app.log {\n create\n rotate 3\n su root root\n}\n' >/tmp/rotate.conf
logrotate --force --state /tmp/state /tmp/rotate.conf
[ ! -s /mnt/models/app.log ]
step "all is well"
