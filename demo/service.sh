# Sourced by run: the disk under test, from nothing to a socket that QEMU can open.
# Everything of vRIO's command line and configuration that the demo knows is here.

vrio=${CARGO_TARGET_DIR:-$repository/target}/release/vrio

# Sets disk_socket. Every process goes through `launch`, so that it is stopped.
start_service() { # FOLDER
    service=$1
    head -c 32 /dev/urandom >"$service/pool.key"
    chmod 600 "$service/pool.key"
    write_server_configuration
    launch "$service/server.log" "$vrio" server --config "$service/server.toml"
    await_socket "$service/control.sock" "$service/server.log"
    server_key=$("$vrio" server list --control "$service/control.sock" | awk 'NR == 1 { print $NF }')
    ask pool create soft
    ask volume create demo --size 2G
    start_front demo
}

# A front for one volume.
start_front() { # VOLUME
    disk_socket=$service/$1.sock
    write_front_configuration "$1"
    local key=$service/front-$1/key
    [ -e "$key" ] || ask server authorize "$("$vrio" key generate "$key")" --volumes "$1"
    launch "$service/front-$1.log" "$vrio" front --config "$service/front-$1.toml"
    front=${processes[-1]}
    await_socket "$disk_socket" "$service/front-$1.log"
}

# A front that is stopped gives its volume back.
stop_front() {
    stop "$front"
    forget_process "$front"
    rm -f "$disk_socket"
}

ask() { # COMMAND...
    "$vrio" "$@" --control "$service/control.sock" >>"$service/commands.log" 2>&1 || {
        echo "demo: vrio $* failed:" >&2
        tail -n 3 "$service/commands.log" >&2
        exit 1
    }
}

write_server_configuration() {
    cat >"$service/server.toml" <<TOML
control = "$service/control.sock"
state = "$service/server"
listen = "udp://127.0.0.1:7420"

[[device]]
name = "soft"
path = "soft:$service/device.img"
size = "4G"
unlock = "key-file:$service/pool.key"

[device.pool]
read_cache = "256M"
TOML
}

write_front_configuration() { # VOLUME
    cat >"$service/front-$1.toml" <<TOML
state = "$service/front-$1"
server = "udp://127.0.0.1:7420"
server_key = "$server_key"

[[disk]]
volume = "$1"
socket = "$disk_socket"
queues = 1
TOML
}
