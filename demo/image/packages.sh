# Sourced by guest-image: where packages come from.

# What the guest runs. Debian's fio also links ceph, gluster and RDMA (70 MB);
# initramfs.sh puts stand-ins in their place, so they are not listed.
guest_packages=(
    busybox-static
    fio libaio1 libnuma1 zlib1g
    e2fsprogs libext2fs2 libcom-err2
    xfsprogs libinih1 liburcu8
    util-linux libblkid1 libuuid1
    libc6
)

need_debian() {
    command -v apt-get >/dev/null && command -v dpkg >/dev/null ||
        die "the guest is made from Debian packages, and this machine has no apt-get and dpkg"
    [ "$(dpkg --print-architecture)" = amd64 ] ||
        die "the guest is an amd64 machine, and this one's packages are for $(dpkg --print-architecture)"
}

need_tools() { # COMMAND:PACKAGE...
    local missing=() tool
    for tool in "$@"; do
        command -v "${tool%%:*}" >/dev/null || missing+=("${tool##*:}")
    done
    [ ${#missing[@]} = 0 ] || install_packages "${missing[@]}"
}

install_packages() {
    [ "$(id -u)" = 0 ] ||
        die "packages are missing and only root may install them: run 'apt-get update && apt-get install $*' as root"
    echo "guest-image: installing $*" >&2
    if ! quiet_apt_get install -y --no-install-recommends "$@" 2>/dev/null; then
        refresh_lists
        quiet_apt_get install -y --no-install-recommends "$@" ||
            die "apt-get could not install $*; is there a network?"
    fi
}

unpack_guest_packages() { # FOLDER
    local kernel
    kernel=$(cloud_kernel)
    if [ -z "$kernel" ]; then
        refresh_lists
        kernel=$(cloud_kernel)
    fi
    [ -n "$kernel" ] ||
        die "apt knows no package linux-image-cloud-amd64; is there a network, and does apt know Debian's archive?"
    unpack_packages "$1" "$kernel" "${guest_packages[@]}"
}

# The cloud flavour starts faster and has NVMe and ext4 built in.
cloud_kernel() {
    (apt-cache depends linux-image-cloud-amd64 2>/dev/null || true) | awk '/Depends: linux-image/ { print $2 }'
}

unpack_packages() { # FOLDER PACKAGE...
    local folder=$1 package
    shift
    rm -rf "$folder" "$folder.debs"
    mkdir -p "$folder" "$folder.debs"
    echo "guest-image: downloading ${#} packages" >&2
    if ! download_packages "$folder.debs" "$@" 2>/dev/null; then
        refresh_lists
        download_packages "$folder.debs" "$@" ||
            die "apt-get could not download $*; is there a network?"
    fi
    for package in "$folder.debs"/*.deb; do
        dpkg -x "$package" "$folder" || die "cannot unpack $package"
    done
    rm -rf "$folder.debs"
}

download_packages() { # FOLDER PACKAGE...
    local folder=$1
    shift
    (cd "$folder" && quiet_apt_get download "$@")
}

refresh_lists() {
    # Once per run: what one update did not bring, a second will not.
    [ -z "${lists_are_fresh:-}" ] || return 0
    [ "$(id -u)" = 0 ] ||
        die "apt's package lists are missing or old and only root may renew them: run 'apt-get update' as root"
    echo "guest-image: apt-get update" >&2
    quiet_apt_get update || die "apt-get update failed; is there a network?"
    lists_are_fresh=yes
}

quiet_apt_get() {
    local options=(-qq) log
    # apt's own user may not enter the folder to download to.
    [ "$(id -u)" = 0 ] && options+=(-o APT::Sandbox::User=root)
    log=$(DEBIAN_FRONTEND=noninteractive apt-get "${options[@]}" "$@" 2>&1 </dev/null) || {
        printf '%s\n' "$log" | grep '^[EW]:' >&2
        return 1
    }
}
