#!/bin/sh
# A guest whose RAM is a file of the mount: backends of vhost-user map it, other programs look into it. The pin refuses to cut it.
#
#   guest_ram.sh /mnt/vm.ram 2G [ARGUMENT of qemu-system-x86_64]...
#
# A deny pin, as a guest cannot give its RAM back. With --no-fork the pin is qemu's own: there is no second process whose end
# would release it. Needs a mount over tmpfs with passthrough (root), without which the guest's RAM is a cache of the file.
set -eu

if [ $# -lt 2 ]; then
	echo "usage: guest_ram.sh FILE SIZE [ARGUMENT of qemu-system-x86_64]..." >&2
	exit 2
fi
file=$1
size=$2
shift 2

[ -e "$file" ] || truncate -s "$size" "$file"
exec pinfs pin --no-fork --note "RAM of a guest" "$file" -- qemu-system-x86_64 -m "$size" -machine memory-backend=ram \
	-object memory-backend-file,id=ram,size="$size",mem-path="$file",share=on,align=2M "$@"
