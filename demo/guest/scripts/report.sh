# Sourced by init and, through it, known to every script: what the host is told.
#
#   VRIO boot kernel=.. cpus=.. uptime=..s
#   VRIO disk vda bytes=.. logical=.. physical=.. queues=.. readonly=.. discard=.. cache=..
#   VRIO script NAME ARGS..
#   VRIO step NAME ok 1.2s [key=value ..]
#   VRIO skip NAME reason
#   VRIO fail sentence
#   VRIO dmesg clean
#   VRIO done uptime=..s            only when nothing failed

say() {
    echo "VRIO $*"
}

fail() {
    say fail "$*"
    return 1
}

uptime_seconds() {
    cut -d ' ' -f 1 /proc/uptime
}

# Runs COMMAND with -e, and reports it. COMMAND says what it found with `fact`.
step() { # NAME COMMAND...
    local name=$1 start status
    shift
    : >/tmp/facts
    start=$(uptime_seconds)
    # Not in a condition: there the shell would ignore -e.
    (
        set -e
        "$@"
    ) >/tmp/step.log 2>&1
    status=$?
    if [ $status = 0 ]; then
        say step "$name" ok "$(seconds_since "$start")s" $(cat /tmp/facts)
    else
        tail -n 25 /tmp/step.log
        fail "$name: exit status $status after $(seconds_since "$start")s: $(complaint)"
        exit 1
    fi
}

# The line that says what went wrong, or else the last one.
complaint() {
    grep -v '^ *$' /tmp/step.log | awk '
        /error|verify:|[Ff]ailed|FAILED|cannot|differ/ && !found { found = $0 }
        { last = $0 }
        END { print found ? found : last }'
}

fact() {
    echo "$*" >>/tmp/facts
}

seconds_since() {
    awk -v from="$1" '{ printf "%.1f", $1 - from }' /proc/uptime
}

disks() {
    ls /sys/block | sed -n '/^vd/p'
}

report_disks() {
    local disk queue
    for disk in $(disks); do
        queue=/sys/block/$disk/queue
        say disk "$disk" \
            "bytes=$(($(cat /sys/block/$disk/size) * 512))" \
            "logical=$(cat $queue/logical_block_size)" \
            "physical=$(cat $queue/physical_block_size)" \
            "queues=$(ls /sys/block/$disk/mq | wc -l)" \
            "readonly=$(cat /sys/block/$disk/ro)" \
            "discard=$(cat $queue/discard_max_bytes)" \
            "cache=$(tr ' ' '-' <$queue/write_cache)"
    done
}

# An error that the guest survived is an error all the same. Levels 0 to 3 are
# errors; file systems and the block layer also warn about I/O at level 4.
report_dmesg() {
    dmesg -r | awk '
        /^<[0-3]>/ { print; next }
        /^<4>/ && /I\/O error|EXT4-fs|XFS|virtio|vd[a-z]|hung|blocked for more/ { print }
    ' >/tmp/dmesg
    if [ -s /tmp/dmesg ]; then
        while read -r line; do say dmesg "$line"; done </tmp/dmesg
        fail "the kernel's log holds $(wc -l </tmp/dmesg) errors"
    else
        say dmesg clean
    fi
}
