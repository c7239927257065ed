# Sourced by guest-image: the kernel.

# A bzImage carries the kernel's ELF file, compressed, behind its setup code.
# The setup header says where (Documentation/arch/x86/boot.rst): setup_sects at
# 0x1f1, payload_offset at 0x248, payload_length at 0x24c, little-endian.
extract_vmlinux() { # UNPACKED VMLINUX
    local image start length magic decompress
    image=$(echo "$1"/boot/vmlinuz-*)
    [ -f "$image" ] || die "the kernel package holds no boot/vmlinuz-*"
    start=$((($(number_at "$image" 0x1f1 1) + 1) * 512 + $(number_at "$image" 0x248 4)))
    # The last four bytes are the unpacked size, which is not part of the stream.
    length=$(($(number_at "$image" 0x24c 4) - 4))
    magic=$(od -A n -t x1 -j "$start" -N 4 "$image" | tr -d ' ')
    case "$magic" in
    fd377a58) need_tools xz:xz-utils && decompress="xz -dc" ;;
    28b52ffd) need_tools zstd:zstd && decompress="zstd -dc" ;;
    02214c18) need_tools lz4:lz4 && decompress="lz4 -dc" ;;
    *) die "cannot read the kernel in $image: its compression (magic $magic) is none of xz, zstd, lz4" ;;
    esac
    # head, then tail: the other way about, tail would die of a broken pipe.
    head -c $((start + length)) "$image" | tail -c "$length" | $decompress >"$2.new" ||
        die "cannot decompress the kernel in $image with '$decompress'"
    [ "$(od -A n -t x1 -N 4 "$2.new" | tr -d ' ')" = 7f454c46 ] || die "the kernel in $image is no ELF file"
    mv "$2.new" "$2"
}

number_at() { # FILE OFFSET WIDTH
    od -A n -t "u$3" --endian=little -j "$(($2))" -N "$3" "$1" | tr -d ' '
}
