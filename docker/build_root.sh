#!/usr/bin/env bash
# Run the steps of a Dockerfile in a clean Debian root, on a machine without docker. This shows that the image needs
# nothing but what its Dockerfile installs. It needs root's rights, `debootstrap` and 5 GB (CPU) or 14 GB (GPU).
#
#   docker/build_root.sh docker/cpu.Dockerfile /var/tmp/cpu-root
#   BIND="/opt/wheels /etc/pip.conf" docker/build_root.sh ...    # show more of this machine to the steps, e.g. wheels
#   COMMAND="python launch.py check configs/demo.yaml" docker/build_root.sh ...    # instead of the image's CMD
#
# FROM becomes the packages of Debian bookworm for its Python 3.11. It is not the image that docker would pull.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

dockerfile=$1
root=$2
[ "$(id -u)" = 0 ] || { echo "build_root: run it as root, which chroot and mount need" >&2; exit 2; }
command -v debootstrap >/dev/null || { echo "build_root: apt-get install debootstrap" >&2; exit 2; }
[ ! -e "$root" ] || { echo "build_root: $root exists; name a new directory, or remove it" >&2; exit 2; }

work=/
declare -a environment=(HOME=/root LANG=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin)
mounted=()
unmount() {
    local index
    for ((index = ${#mounted[@]} - 1; index >= 0; index--)); do umount --lazy "${mounted[index]}"; done
}
trap unmount EXIT

show() { # show TYPE-OR-PATH TARGET: mount a file system, or a path of this machine
    case $1 in
    proc | tmpfs) mount -t "$1" "$1" "$2" ;;
    *) mount --bind "$1" "$2" ;;
    esac
    mounted+=("$2")
}

inside() { chroot "$root" /usr/bin/env -i "${environment[@]}" /bin/sh -c "cd $work && $1"; }

start_root() {
    debootstrap --variant=minbase --include=ca-certificates,python3,python3-dev,python3-venv,python-is-python3 \
        bookworm "$root" "${MIRROR:-http://deb.debian.org/debian}" >"$root.log" 2>&1 ||
        { tail "$root.log" >&2; exit 1; }
    show proc "$root/proc"
    show /dev "$root/dev"
    show tmpfs "$root/dev/shm"
    cp /etc/resolv.conf /etc/hosts "$root/etc/"
    local path
    for path in ${BIND:-}; do
        if [ -d "$path" ]; then mkdir -p "$root$path"; else mkdir -p "$(dirname "$root$path")" && touch "$root$path"; fi
        show "$path" "$root$path"
    done
}

while IFS= read -r line; do
    set -- $line
    echo "==> $line"
    case ${1:-#} in
    \#*) ;;
    FROM) start_root ;;
    RUN) inside "${line#RUN }" ;;
    WORKDIR) work=$2 && mkdir -p "$root$work" ;;
    COPY) git ls-files -z | xargs -0 cp --parents -t "$root$work" ;; # what a fresh clone holds
    ENV) shift && environment+=("${@//\$PATH//usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}") ;;
    CMD) inside "${COMMAND:-$(echo "${line#CMD }" | tr -d '[],"')}" ;;
    *) echo "build_root: $1 is not known here" >&2 && exit 2 ;;
    esac
done <"$dockerfile"
