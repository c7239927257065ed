# Sourced by scripts whose guest is an IOhost.
. /scripts/nvme.sh

prepare() {
    ip link set lo up
    ip addr add 10.0.2.15/24 dev eth0
    ip link set eth0 up
    mkdir -p /run/vrio /var/lib/vrio
    echo 96 >/proc/sys/vm/nr_hugepages
}

refused() { # COMMAND...
    if "$@" 2>/tmp/refused; then
        echo "failed to refuse: $*"
        return 1
    fi
    cat /tmp/refused
}

start_server() { # PORT ADDRESS ADDRESS [KEY OF EACH DEVICE]
    cat >/tmp/server.toml <<TOML
listen = "udp://0.0.0.0:$1"
clear = true
[[device]]
name = "one"
path = "pci:$2"
${4:-}
[[device]]
name = "two"
path = "pci:$3"
${4:-}
TOML
    rm -f /run/vrio/server.sock
    vrio server --config /tmp/server.toml >/tmp/server.log 2>&1 &
    echo $! >/tmp/server.pid
    for i in $(seq 100); do [ -S /run/vrio/server.sock ] && break; sleep 0.2; done
    for name in one two; do
        vrio volume show "$name" >/dev/null 2>&1 || vrio volume create "$name" --size 64M --device "$name" ||
            { cat /tmp/server.log; false; }
    done
}

stop_server() {
    show_server || true
    kill "$(cat /tmp/server.pid)"
    for i in $(seq 100); do [ -d "/proc/$(cat /tmp/server.pid)" ] || return 0; sleep 0.2; done
    false
}

show_server() {
    grep -E 'given up|does not come back|WARN|ERROR' /tmp/server.log | sed 's/^/VRIO server /' >/dev/console
}
