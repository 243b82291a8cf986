#!/bin/sh
# PID 1 of the VM: a small system without systemd, then pytest; the end is said on the console and in /out/rc.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 PYTHONDONTWRITEBYTECODE=1 NO_COLOR=1
export PYTHONPATH=/tree:/opt/site PYTHONUNBUFFERED=1
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock /run/netns /dev/pts /dev/shm /dev/hugepages
touch /run/multus-vm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs tmp /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t hugetlbfs huge /dev/hugepages
ip link set lo up
hostname vm
echo 1 > /proc/sys/kernel/printk
modprobe -a 9pnet_virtio 9p
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=none out /out || { echo "vm: no /out"; echo o > /proc/sysrq-trigger; sleep 30; }
/lib/systemd/systemd-udevd --daemon 2>/dev/null
# Meanwhile pytest starts: the cards take their time, and the processor has none to do for them.
{
    modprobe -a igb igbvf vfio-pci af_packet
    udevadm trigger --action=add --subsystem-match=net --subsystem-match=virtio-ports --subsystem-match=misc --subsystem-match=pci
    touch /run/cards
} &
ln -s /tree/.shim /usr/bin/multus
(while sleep 5; do echo > /out/beat; done) &
echo "vm: start"
cd /tree || exit 1
python3 -m tests.vm.guest.run -v --color=no $(cat /out/arguments) 2>&1
code=$?
dmesg > /out/dmesg
echo $code > /out/rc
sync
umount /out
echo "vm: end $code"
echo o > /proc/sysrq-trigger
sleep 30
