# Sourced by guest-image: what the guest finds when it wakes up.

guest_programs=(
    usr/bin/fio
    sbin/mke2fs sbin/e2fsck
    sbin/mkfs.xfs sbin/xfs_repair
    sbin/blkdiscard usr/bin/addpart
)

# ext4 and CRC32C are built into the cloud kernel.
guest_modules=(virtio_pci virtio_blk xfs)

# For a guest that drives devices itself; loaded when vrio.modules=devices says so.
guest_device_modules=(vfio-pci vfio_iommu_type1 uio_pci_generic virtio_net)

library_path=lib/x86_64-linux-gnu

plant_tree() { # UNPACKED TREE
    local unpacked=$1 tree=$2 program applet
    rm -rf "$tree"
    mkdir -p "$tree"/{bin,sbin,dev,proc,sys,tmp,mnt,lib64,modules,"$library_path"}
    cp "$unpacked/bin/busybox" "$tree/bin/"
    for applet in $("$unpacked/bin/busybox" --list); do
        [ "$applet" = busybox ] || ln -s busybox "$tree/bin/$applet"
    done
    cp "$unpacked/lib64/ld-linux-x86-64.so.2" "$tree/lib64/"
    # /sbin comes first in the guest's PATH, before busybox's applets.
    for program in "${guest_programs[@]}"; do
        cp "$unpacked/$program" "$tree/sbin/"
    done
    ln -s mke2fs "$tree/sbin/mkfs.ext4"
    make_stand_ins "$unpacked" "$tree"
    for program in "${guest_programs[@]}"; do
        plant_libraries "$unpacked" "$tree" "$tree/sbin/${program##*/}"
    done
    plant_modules "$unpacked" "$tree"
}

plant_libraries() { # UNPACKED TREE ELF
    local library found
    for library in $(needed_libraries "$3"); do
        [ ! -e "$2/$library_path/$library" ] && [ ! -e "$2/lib64/$library" ] || continue
        found=$(find_library "$1" "$library")
        [ -n "$found" ] || die "${3##*/} needs $library, which is in none of the guest's packages"
        cp -L "$found" "$2/$library_path/$library"
        plant_libraries "$1" "$2" "$found"
    done
}

needed_libraries() { # ELF
    readelf -dW "$1" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'
}

find_library() { # UNPACKED NAME
    find "$1/lib" "$1/usr/lib" -name "$2" 2>/dev/null | head -n 1
}

# fio resolves every symbol at its start, also those of storage systems that
# no job here uses. One small library that has them all, each a function
# that fails, answers under the name of every library that is left out.
make_stand_ins() { # UNPACKED TREE
    local fio=$1/usr/bin/fio work=$1/stand-in library absent="" provided=""
    for library in $(needed_libraries "$fio"); do
        local found
        found=$(find_library "$1" "$library")
        if [ -n "$found" ]; then
            provided+=$(nm -D --defined-only "$found" | awk '{ print $3 }' | tr '\n' ' ')
        else
            absent+="$library "
        fi
    done
    mkdir -p "$work"
    stand_in_symbols "$fio" "$absent" "$provided" >"$work/symbols"
    awk '{ print "int " $1 "(void) { return -1; }" }' "$work/symbols" >"$work/stand-in.c"
    awk 'NF == 2 { names[$2] = names[$2] " " $1 ";" }
         END { for (version in names) print version " { global:" names[version] " };" }' \
        "$work/symbols" >"$work/stand-in.map"
    cc -shared -fPIC -nostdlib -w -s -o "$work/stand-in.so" "$work/stand-in.c" \
        -Wl,--version-script="$work/stand-in.map" || die "cc could not build the stand-in library for fio"
    for library in $absent; do
        cp "$work/stand-in.so" "$2/$library_path/$library"
    done
}

# Prints "SYMBOL" or "SYMBOL VERSION" for what fio wants from absent libraries.
stand_in_symbols() { # FIO ABSENT PROVIDED
    local versions
    versions=$(readelf -VW "$1" | awk -v absent=" $2" '
        / File: / { wanted = index(absent, " " $5 " ") }
        / Name: / && wanted { print $3 }' | tr '\n' ' ')
    nm -D --undefined-only "$1" | awk -v versions="$versions" -v provided="$3" '
        BEGIN {
            count = split(versions, list, " "); for (i = 1; i <= count; i++) version[list[i]]
            count = split(provided, list, " "); for (i = 1; i <= count; i++) has[list[i]]
        }
        $1 == "U" {
            parts = split($2, symbol, "@")
            if (parts == 1 && !(symbol[1] in has)) print symbol[1]
            if (parts == 2 && symbol[2] in version) print symbol[1], symbol[2]
        }'
}

plant_modules() { # UNPACKED TREE
    local module
    : >"$2/modules/order"
    : >"$2/modules/order.devices"
    for module in "${guest_modules[@]}"; do
        plant_module "$1" "$2" "$module" order
    done
    for module in "${guest_device_modules[@]}"; do
        plant_module "$1" "$2" "$module" order.devices
    done
}

# A module names what it depends on: planting that first gives the loading order.
plant_module() { # UNPACKED TREE NAME ORDER
    local file dependency
    ! cat "$2/modules"/order* | grep -qx "$3" || return 0
    file=$(find "$1/lib/modules" -name "$3.ko" -o -name "$3.ko.xz" | head -n 1)
    [ -n "$file" ] || die "the kernel package holds no module $3"
    case "$file" in
    *.xz) need_tools xz:xz-utils && xz -dc "$file" >"$2/modules/$3.ko" ;;
    *) cp "$file" "$2/modules/$3.ko" ;;
    esac
    for dependency in $(grep -aEzo '^depends=.*' "$2/modules/$3.ko" | tr -d '\0' | sed 's/^depends=//; s/,/ /g'); do
        plant_module "$1" "$2" "$dependency" "$4"
    done
    strip --strip-debug "$2/modules/$3.ko"
    echo "$3" >>"$2/modules/$4"
}

pack_initramfs() { # TREE CPIO
    rm -rf "$1"/{init,scripts,fio-configs}
    cp -r "$demo/guest/." "$1/"
    cp -r "$repository/fio-configs" "$1/"
    chmod 755 "$1/init"
    (cd "$1" && find . | sort | bin/busybox cpio -o -H newc 2>/dev/null) >"$2.new" ||
        die "could not pack $2"
    mv "$2.new" "$2"
}
