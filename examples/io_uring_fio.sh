#!/bin/sh
# Real long-term page pins: fio registers buffers with io_uring that lie *inside* a mapped file of the mount, so the kernel
# pins the file's pages for as long as fio runs. `pinfs pin` (like flock(1)) holds the matching pin on the file meanwhile;
# without it, a truncate would silently detach the pages that the ring goes on writing to.
#
#   io_uring_fio.sh /mnt/BUFFERS [SECONDS]
#
# Needs fio, a mount with passthrough (root) over tmpfs, and enough RLIMIT_MEMLOCK.
set -eu

if [ $# -lt 1 ] || [ $# -gt 2 ]; then
	echo "usage: io_uring_fio.sh FILE [SECONDS]" >&2
	exit 2
fi
file=$1
seconds=${2:-5}
size=$((4 << 20))  # iodepth times bs, and some room for what fio puts before it

[ -e "$file" ] || truncate -s "$size" "$file"
exec pinfs pin "$file" -- fio --name=registered --filename=/dev/zero --size=1g --rw=read --bs=4k --iodepth=32 \
	--ioengine=io_uring --fixedbufs=1 --iomem=mmapshared:"$file" \
	--time_based --runtime="$seconds" --output-format=terse --terse-version=3
