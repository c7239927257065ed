use super::*;
use crate::bench::driver::Status;
use crate::bench::pattern::{Expected, Found, Mismatch};
use crate::bench::tally::Failure;

fn report(outcome: &Outcome, verify: bool) -> Report {
    let asked = Asked {
        socket: "disk.sock".into(),
        rw: "randrw",
        read_percent: 50,
        block_min_bytes: 4096,
        block_max_bytes: 4096,
        depth: 32,
        queues: 2,
        wait: "poll",
        offset_bytes: 0,
        size_bytes: 1 << 30,
        seed: 1,
        offered_per_second: None,
    };
    Report::from_parts(asked, verify, outcome)
}

fn outcome() -> Outcome {
    let mut measured = Tally::new();
    for micros in 1..=1000 {
        measured.answered(Kind::Read, Duration::from_micros(micros), 4096);
    }
    measured.answered(Kind::Flush, Duration::from_millis(3), 0);
    Outcome {
        elapsed: Duration::from_millis(500),
        measured,
        after: Tally::new(),
        known_grains: 0,
        cpu: vec![
            (Watched { name: "vrio bench".into(), pid: 11 }, Some(Duration::from_millis(499))),
            (Watched { name: "front".into(), pid: 12 }, Some(Duration::from_millis(250))),
        ],
    }
}

#[test]
fn rates_percentiles_and_cpu_follow_from_the_counts() {
    let report = report(&outcome(), false);
    assert_eq!((report.ios, report.iops), (1000, 2000.0));
    assert_eq!(report.bytes_per_second, 2000.0 * 4096.0);
    let latency = report.kinds[0].latency_ns;
    for (nanos, micros) in
        [(latency.p50, 500), (latency.p90, 900), (latency.p99, 990), (latency.max, 1000)]
    {
        assert!(nanos.abs_diff(micros * 1000) <= micros, "{nanos} ns for {micros} us");
    }
    assert_eq!(report.cpu[1].seconds_per_million_ios, 250.0);
    assert_eq!(report.cpu[1].cores, 0.5);
    assert_eq!(report.complaint(), None);
}

/// A server that was killed twice shows as two stalls, a slow request as none.
#[test]
fn times_without_an_answer_are_told_when_they_are_long() {
    let mut outcome = outcome();
    outcome.measured.waited(Duration::from_millis(19));
    assert!(report(&outcome, false).stalls.is_none());
    outcome.measured.waited(Duration::from_millis(80));
    outcome.measured.waited(Duration::from_millis(250));
    let report = report(&outcome, false);
    let stalls = report.stalls.as_ref().expect("two");
    assert_eq!(stalls.count, 2);
    assert!(stalls.length_ns.max.abs_diff(250_000_000) < 250_000);
    assert!(report.text().contains("stalls"), "{}", report.text());
}

#[test]
fn text_has_a_unit_on_every_figure() {
    let text = report(&outcome(), false).text();
    for words in
        ["depth 32 on 2 queues", "1000 I/Os", "2.0 k IOPS", "7.8 MiB/s", "250.00 s per million"]
    {
        assert!(text.contains(words), "no '{words}' in:\n{text}");
    }
    for line in text.lines().filter(|line| line.contains("latency")) {
        let figures = line.split_whitespace().filter(|word| word.parse::<f64>().is_ok()).count();
        let units = line.split_whitespace().filter(|word| ["us", "ms", "s"].contains(word)).count();
        assert_eq!((figures, units), (7, 7), "{line}");
    }
    assert!(text.ends_with('\n') && !text.contains("\n\n"));
}

#[test]
fn json_says_what_text_says() {
    let json = serde_json::to_value(report(&outcome(), true)).expect("plain data");
    assert_eq!(json["ios"], 1000);
    assert_eq!(json["kinds"][0]["kind"], "read");
    assert_eq!(json["kinds"][1]["kind"], "flush");
    assert_eq!(json["verify"]["mismatched_sectors"], 0);
}

/// Figures from a starved poller look like a slow device.
#[test]
fn a_starved_poller_and_an_ended_process_are_noted() {
    let mut outcome = outcome();
    outcome.elapsed = Duration::from_secs(1);
    outcome.cpu[1].1 = None;
    let report = report(&outcome, false);
    assert_eq!(report.cpu.len(), 1);
    let text = report.text();
    for words in ["note", "front (pid 12) ended", "had 0.50 of a core"] {
        assert!(text.contains(words), "no '{words}' in:\n{text}");
    }
}

/// A verification that fails and exits with 0 is worse than none.
#[test]
fn failures_and_wrong_data_are_told_and_complained_about() {
    let mut outcome = outcome();
    for offset in 0..20 {
        let failure = Failure { kind: Kind::Write, offset, len: 512, status: Status::IoError };
        outcome.measured.fail(failure);
        outcome.after.mismatch(Mismatch {
            sector: offset,
            expected: Expected::Generation(3),
            found: Found::Zeroes,
        });
    }
    outcome.known_grains = 1;
    let report = report(&outcome, true);
    let complaint = report.complaint().expect("a failed run");
    for words in ["20 requests failed", "20 sectors hold wrong data", "only 0 of 1"] {
        assert!(complaint.contains(words), "{complaint}");
    }
    let text = report.text();
    assert!(text.contains("write of 512 B at byte 0: I/O error"), "{text}");
    assert!(text.contains("sector 0: expected write 3, found zeroes"), "{text}");
    assert_eq!(text.matches("I/O error").count(), 10, "printing is capped");
}
