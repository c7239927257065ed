# Sourced by guest-image: which QEMU boots the guest.

# Writes FOLDER/qemu, which starts qemu-system-x86_64 with whatever it needs.
find_qemu() { # FOLDER
    if ! command -v qemu-system-x86_64 >/dev/null && qemu_can_be_installed; then
        install_packages qemu-system-x86
    fi
    if command -v qemu-system-x86_64 >/dev/null; then
        write_launcher "$1/qemu" "exec $(command -v qemu-system-x86_64) \"\$@\""
    else
        unpack_qemu "$1/qemu-files"
        write_launcher "$1/qemu" "$(beside_launcher)"
    fi
    "$1/qemu" --version >/dev/null || die "QEMU does not start: run '$1/qemu --version' to see why"
}

# Debian 12's qemu-system-x86 and a qemu-utils from backports exclude each
# other, and whoever installed the latter wants to keep it.
qemu_can_be_installed() {
    local plan
    [ "$(id -u)" = 0 ] || return 1
    plan=$(plan_qemu_install)
    if [ -z "$plan" ]; then
        refresh_lists
        plan=$(plan_qemu_install)
    fi
    grep -q '^Inst qemu-system-x86 ' <<<"$plan" && ! grep -q '^Remv ' <<<"$plan"
}

plan_qemu_install() {
    apt-get -s install --no-install-recommends qemu-system-x86 2>/dev/null | grep -E '^(Inst|Remv) ' || true
}

unpack_qemu() { # FOLDER
    local packages
    # "Inst NAME (VERSION ...": not yet here. "Inst NAME [OLD] (NEW ...": here, and good enough.
    packages=$(plan_qemu_install | awk '$1 == "Inst" && $3 ~ /^\(/ { print $2 "=" substr($3, 2) }')
    if [ -z "$packages" ]; then
        refresh_lists
        packages=$(plan_qemu_install | awk '$1 == "Inst" && $3 ~ /^\(/ { print $2 "=" substr($3, 2) }')
    fi
    [ -n "$packages" ] || die "apt knows no package qemu-system-x86; install qemu-system-x86_64 and try again"
    echo "guest-image: unpacking QEMU beside the system, where it disturbs nothing" >&2
    # shellcheck disable=SC2086 # a list of words
    unpack_packages "$1" $packages
}

beside_launcher() {
    cat <<'LAUNCHER'
files=$(cd "$(dirname "$0")" && pwd)/qemu-files
export LD_LIBRARY_PATH="$files/usr/lib/x86_64-linux-gnu:$files/lib/x86_64-linux-gnu"
exec "$files/usr/bin/qemu-system-x86_64" -L "$files/usr/share/qemu" -L "$files/usr/share/seabios" \
    -L "$files/usr/lib/ipxe/qemu" "$@"
LAUNCHER
}

write_launcher() { # FILE COMMANDS
    printf '#!/bin/sh\n%s\n' "$2" >"$1.new"
    chmod 755 "$1.new"
    mv "$1.new" "$1"
}
