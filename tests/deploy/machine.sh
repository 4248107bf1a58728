#!/bin/bash
# A machine of its own, on which systemd is the first process and knows the units of deploy/systemd alone; for
# test_systemd.py. Whatever is written there is in memory: its root lies over this machine's, its /tmp, /var/lib, /run,
# network and processes are its own, and neither modules nor kernel settings can be changed from there.
#
#   unshare --mount --pid --fork --kill-child --cgroup --uts --ipc --net machine.sh WORK SOURCE PYTHON GIVEN
#
# WORK is an empty folder, SOURCE the repository, PYTHON its interpreter. GIVEN is shared with the machine: `prepare` in
# it is run before systemd starts, `play` beside it; what units say goes to `log`, and `played` is play's exit status.
set -euo pipefail
if [[ $$ -ne 1 ]]; then
    echo "This would change the machine that it is run on: start it by unshare, as above." >&2
    exit 2
fi
work=$1 source=$2 python=$3 given=$4
read -r base version packages < <("$python" -c 'import sys, sysconfig
print(sys.base_prefix, "%d.%d" % sys.version_info[:2], sysconfig.get_path("purelib"))')
ray=$("$python" -c 'import sys; print(sys.prefix)')/bin/ray

mount --make-rprivate /
mount -t tmpfs tmpfs "$work"
mkdir "$work"/{upper,work,root}
mount -t overlay overlay -o "lowerdir=/,upperdir=$work/upper,workdir=$work/work" "$work/root"
cd "$work/root"
for folder in run tmp var/tmp var/lib var/cache opt sys dev; do mount -t tmpfs -o mode=755 tmpfs "$folder"; done
chmod 1777 tmp var/tmp
mkdir -p opt/{archfleet/bin,packages,python,source,given,units} sys/fs/cgroup dev/{shm,pts,mqueue} old
mount --bind -o ro "$source" opt/source
mount --bind -o ro "$base" opt/python
mount --bind -o ro "$packages" opt/packages
mount --bind "$given" opt/given
mount -t proc proc proc
mount --bind -o ro proc/sys proc/sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
mount -t mqueue mqueue dev/mqueue
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
for device in null:3 zero:5 full:7 random:8 urandom:9; do mknod -m 666 "dev/${device%:*}" c 1 "${device#*:}"; done
mknod -m 666 dev/tty c 5 0

# The environment of deploy/README.md: that of the tests, where everybody may read it.
ln -s "/opt/python/bin/python$version" opt/archfleet/bin/python
printf 'home = /opt/python/bin\nversion = %s\n' "$version" >opt/archfleet/pyvenv.cfg
sed '1s|.*|#!/opt/archfleet/bin/python|' "$ray" >opt/archfleet/bin/ray
printf '#!/opt/archfleet/bin/python\nfrom coordinator.cli import main\nmain()\n' >opt/archfleet/bin/archfleet
chmod 755 opt/archfleet/bin/{ray,archfleet}
cp opt/source/deploy/systemd/*.service opt/source/deploy/systemd/*.timer opt/units
for target in sysinit basic shutdown network-online time-sync multi-user timers; do
    printf '[Unit]\nDefaultDependencies=no\n' >"opt/units/$target.target"
done
for unit in head coordinator agent@ backup; do
    mkdir "opt/units/archfleet-$unit.service.d"
    cat >"opt/units/archfleet-$unit.service.d/test.conf" <<END
[Service]
Environment=PYTHONPATH=/opt/source:/opt/packages LD_LIBRARY_PATH=/opt/python/lib PYTHONDONTWRITEBYTECODE=1
StandardOutput=append:/opt/given/log
StandardError=append:/opt/given/log
END
done

pivot_root . old
umount -l /old
mount --make-rshared /
cd /
ip link set lo up
export PYTHONPATH=/opt/source:/opt/packages LD_LIBRARY_PATH=/opt/python/lib PYTHONDONTWRITEBYTECODE=1
bash -euo pipefail /opt/given/prepare
(
    until [[ -S /run/systemd/private ]]; do sleep 0.2; done
    status=0
    setsid bash -euo pipefail /opt/given/play || status=$?
    echo "$status" >/opt/given/played
) &
export container=other SYSTEMD_UNIT_PATH=/opt/units
exec setpriv --bounding-set -sys_module,-sys_boot,-sys_time,-sys_rawio,-syslog \
    /lib/systemd/systemd --system --unit=basic.target --log-target=console --show-status=no
