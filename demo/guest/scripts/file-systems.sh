# File systems on a disk: made, filled, trimmed, looked at again.
#
# Where a script wants two, they share the disk: ext4 has the first half, xfs the
# second. The kernel is told so at each boot (addpart); the disk holds no table.

split_disk() { # DISK
    local half=$(($(cat "/sys/block/$1/size") / 2))
    addpart "/dev/$1" 1 2048 $((half - 2048))
    addpart "/dev/$1" 2 $half $half
}

partition_of() { # DISK FILE-SYSTEM
    case $2 in
    ext4) echo "/dev/${1}1" ;;
    xfs) echo "/dev/${1}2" ;;
    *) echo "no such file system: $2" >&2; return 1 ;;
    esac
}

# Without -K and nodiscard, both trim the whole device first.
make_file_system() { # FILE-SYSTEM DEVICE
    case $1 in
    ext4) mkfs.ext4 -q -F "$2" ;;
    xfs) mkfs.xfs -q -f "$2" ;;
    esac
}

mount_file_system() { # FILE-SYSTEM DEVICE
    mkdir -p "/mnt/$1"
    mount -t "$1" "$2" "/mnt/$1"
}

# The sums lie beside the files: one boot writes them, another believes them.
write_files() { # FOLDER
    local number
    mkdir "$1/files"
    for number in 1 2 3 4; do
        dd if=/dev/urandom "of=$1/files/large-$number" bs=1M count=4 2>/dev/null
    done
    for number in $(seq 100); do
        head -c $((number * 97)) /dev/urandom >"$1/files/small-$number"
    done
    (cd "$1/files" && sha256sum *) >"$1/sums"
    sync
    fact "files=$(wc -l <"$1/sums")" "kib=$(du -sk "$1/files" | cut -f 1)"
}

# From the disk, not from the guest's memory.
check_files() { # FOLDER
    echo 3 >/proc/sys/vm/drop_caches
    (cd "$1/files" && sha256sum -c "$1/sums")
    fact "files=$(wc -l <"$1/sums")"
}

# Trimming must work, and must leave alone what is in use.
trim_file_system() { # FOLDER
    rm -r "$1"/files/large-[12]
    sed -i '/large-[12]$/d' "$1/sums"
    sync
    fact "trimmed=$(fstrim -v "$1" | sed 's/.*: \([0-9]*\).*/\1/')"
    check_files "$1"
}

check_structure() { # FILE-SYSTEM DEVICE
    case $1 in
    ext4) e2fsck -f -n "$2" ;;
    xfs) xfs_repair -n "$2" ;;
    esac
}

# The first 64 MiB, where both keep what everything else hangs on.
damage() { # DEVICE
    dd if=/dev/urandom "of=$1" bs=1M count=64 conv=fsync 2>/dev/null
    fact "overwritten=64M"
}

is_damaged() { # FILE-SYSTEM DEVICE
    ! check_structure "$1" "$2"
}
