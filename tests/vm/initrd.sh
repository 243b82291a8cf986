#!/bin/busybox sh
# The initrd's only program: a read-only root under a tmpfs, the tree on the second disk, and on to tests/vm/guest/init.sh.
b=/bin/busybox
stop() { echo "initrd: $*"; $b poweroff -f; }
$b mount -t proc proc /proc; $b mount -t sysfs sysfs /sys; $b mount -t devtmpfs dev /dev
for module in /mod/*; do $b insmod "$module" || echo "initrd: $module does not load"; done
tries=0
while [ ! -b /dev/vdb ] && [ $tries -lt 100 ]; do $b sleep 0.1; tries=$((tries + 1)); done
$b mount -t ext4 -o ro /dev/vda /lower || stop "no root image"
$b mount -t tmpfs -o size=80% rw /rw; $b mkdir /rw/upper /rw/work
$b mount -t overlay -o lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work overlay /new || stop "no overlay"
$b mount -t ext4 -o ro /dev/vdb /new/tree || stop "no tree"
for each in /dev /proc /sys; do $b mount --move $each /new$each; done
exec $b switch_root /new /bin/sh /tree/tests/vm/guest/init.sh
