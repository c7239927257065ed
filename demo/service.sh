# Sourced by run: the disk under test, from nothing to a socket that QEMU can open.
# Everything of vRIO's command line and configuration that the demo knows is here.

vrio=${CARGO_TARGET_DIR:-$repository/target}/release/vrio

# Sets disk_socket. Every process goes through `launch`, so that it is stopped.
start_service() { # FOLDER
    write_configuration "$1"
    launch "$1/server.log" "$vrio" server --config "$1/server.toml"
    await_socket "$1/control.sock" "$1/server.log"
    "$vrio" volume create demo --size 2G --control "$1/control.sock" >"$1/volume.log" 2>&1
    launch "$1/front.log" "$vrio" front --config "$1/front.toml"
    disk_socket=$1/demo.sock
    await_socket "$disk_socket" "$1/front.log"
}

write_configuration() { # FOLDER
    cat >"$1/server.toml" <<TOML
control = "$1/control.sock"
state = "$1/server"
listen = "udp://127.0.0.1:7420"

[[device]]
name = "soft"
path = "soft:$1/device.img"
size = "4G"
TOML
    cat >"$1/front.toml" <<TOML
state = "$1/front"
server = "udp://127.0.0.1:7420"

[[disk]]
volume = "demo"
socket = "$1/demo.sock"
queues = 1
TOML
}
