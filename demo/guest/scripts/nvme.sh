# Sourced by scripts that give NVMe controllers to processes.

controllers() {
    local device
    for device in /sys/bus/pci/devices/*; do
        [ "$(cat "$device/class")" != 0x010802 ] || basename "$device"
    done
}

give_to() { # DRIVER ADDRESS
    local device=/sys/bus/pci/devices/$2
    echo "$1" >"$device/driver_override"
    [ ! -e "$device/driver" ] || echo "$2" >"$device/driver/unbind"
    echo "$2" >/sys/bus/pci/drivers_probe
    [ "$(basename "$(readlink "$device/driver")")" = "$1" ]
}
