#!/bin/sh
# The life of the Debian packages in a fresh root, by tests/packaging/test_debian.py: /packages/before and /packages/now have the
# packages of two versions. Each step says what it saw; the first that is not as it should be ends the script.
set -eu
exec </dev/null 2>&1

step() {
    echo "== $*"
}
must_fail() {
    ! "$@" || { echo "this should have failed: $*"; exit 1; }
}
apt() {
    apt-get -qq -o Dpkg::Use-Pty=0 -y --no-install-recommends "$@"
}
named_pinfs() { # what is in the root by that name
    find / -xdev -name '*pinfs*' ! -path '/packages/*' ! -path '/var/cache/apt/*' | sort
}
status() { # KEY
    pinfs status /mnt/models --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["mounts"][0][sys.argv[1]])' "$1"
}

step "a root without pinfs"
[ -z "$(named_pinfs)" ]
apt update
apt install logrotate lsof >/dev/null # without it the conffile of pinfs had no reader

step "install"
apt install /packages/before/*.deb >/dev/null
/packages/try pinfs "$BEFORE" compiled
dpkg --verify pinfs python3-pinfs
for path in /usr/sbin/mount.fuse.pinfs /usr/lib/systemd/system/pinfs@.service /usr/share/bash-completion/completions/pinfs \
    /usr/share/man/man1/pinfs-mount.1.gz /usr/share/man/man8/mount.pinfs.8.gz /etc/logrotate.d/pinfs; do
    [ -s $path ] || { echo "$path is missing"; exit 1; }
done

step "mount(8)"
mkdir -p /srv/models /mnt/models /srv/other /mnt/other
echo weights >/srv/models/file
mount -t fuse.pinfs /srv/other /mnt/other -o break_timeout=7
grep -q 'break_timeout = 7' /mnt/other/.pinfs/policy
umount /mnt/other

step "logrotate"
pinfs mount /srv/models /mnt/models --daemon --log-file /var/log/pinfs/models.log
logrotate --force /etc/logrotate.d/pinfs
pinfs pin /mnt/models/file --name held -- sh -c '! truncate -s 0 /mnt/models/file && sleep infinity' &
holder=$!
until grep -qs 'truncate .*is refused' /var/log/pinfs/models.log; do :; done
must_fail grep -q 'is refused' /var/log/pinfs/models.log.1

step "upgrade, with a pin and an open file"
exec 5</mnt/models/file
device=$(stat --format=%d /mnt/models)
apt install /packages/now/*.deb | tee /tmp/upgrade
grep -q "/mnt/models: pinfs $BEFORE .* has handed over to pinfs $NOW " /tmp/upgrade
[ "$(status version)" = "$NOW" ]
[ "$(stat --format=%d /mnt/models)" = "$device" ]
[ "$(cat <&5)" = weights ]
must_fail truncate -s 0 /mnt/models/file
pinfs ls /mnt/models | grep held

step "a removal is refused while bytes are pinned"
must_fail apt remove pinfs
pinfs ls /mnt/models | grep held
exec 5<&-
kill "$(lsof -t -c sleep | head -n 1)" "$holder"
wait "$holder" || true

step "remove"
apt remove pinfs
must_fail grep fuse.pinfs /proc/mounts
[ -e /etc/logrotate.d/pinfs ]

step "purge"
apt purge pinfs python3-pinfs
named_pinfs
[ -z "$(named_pinfs)" ]
step "nothing is left"
