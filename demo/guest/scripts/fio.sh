# Runs the jobs of /fio-configs, and turns fio's figures into facts.

# fio's terse line, version 3: 3 job, 5 error, 8 and 49 IOPS of reads and writes,
# 6 and 47 their KiB. A verifying job reads back what it wrote.
fio_job() { # CONFIG DISK
    DISK=/dev/$2 RATE=500 fio --eta=never --output-format=terse,normal "/fio-configs/$1.fio"
    # fio keeps the status 0 when only a job's sum is wrong: believe its lines too.
    awk -F ';' '
        $1 == 3 && $2 ~ /^fio-/ {
            jobs++
            if ($5 != 0) failed = 1
            printf "%s-read-iops=%d %s-write-iops=%d mib=%d ", $3, $8, $3, $49, ($6 + $47) / 1024
        }
        END { exit failed || !jobs }
    ' /tmp/step.log >>/tmp/facts
}
