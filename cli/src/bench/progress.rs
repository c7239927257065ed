//! What a person sees while the loop runs, and the watch over the device.

use std::io::IsTerminal;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::bytes::Bytes;
use super::driver::Pulse;
use super::pace::{Gauge, Limits};

/// How often the bar is drawn: seldom, because drawing takes CPU from the run.
const BEAT: Duration = Duration::from_millis(500);

/// Beats without a request after which the device is asked whether it is there: one
/// that has nothing to do is left alone.
const SILENCE: u32 = 4;

/// Off a terminal a long run says so often that it is alive.
const LINE: Duration = Duration::from_secs(10);

/// Shows the run until `ended` hangs up, and raises the gauge's flag when the
/// device has closed its connection.
pub(crate) fn watch(gauge: &Gauge, limits: Limits, pulse: &Pulse, ended: &Receiver<()>) {
    let begin = Instant::now();
    let bar = bar(limits);
    let (mut last, mut silent) = ((0, 0), 0);
    let mut next_line = begin + LINE;
    while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(BEAT) {
        let now = (gauge.ios.load(Relaxed), gauge.bytes.load(Relaxed));
        silent = if now.0 == last.0 { silent + 1 } else { 0 };
        if silent >= SILENCE && !pulse.is_alive() {
            gauge.device_is_gone.store(true, Relaxed);
        }
        let beat = BEAT.as_secs_f64();
        let speed = format!(
            "{:.1} k IOPS  {}/s",
            (now.0 - last.0) as f64 / beat / 1000.0,
            Bytes(((now.1 - last.1) as f64 / beat) as u64)
        );
        last = now;
        let phase = if gauge.reading_back.load(Relaxed) { "reading back" } else { "running" };
        bar.set_position(position(limits, begin, now));
        bar.set_message(format!("{phase}  {speed}"));
        if bar.is_hidden() && Instant::now() >= next_line {
            next_line += LINE;
            eprintln!("{:>6} s  {phase}  {speed}", begin.elapsed().as_secs());
        }
    }
    bar.finish_and_clear();
}

fn bar(limits: Limits) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = match length(limits) {
        Some(length) => ProgressBar::new(length),
        None => ProgressBar::no_length(),
    };
    let style = ProgressStyle::with_template("{elapsed:>4} {wide_bar} {msg}");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn length(limits: Limits) -> Option<u64> {
    let millis = limits.time.map(|time| time.as_millis() as u64);
    limits.bytes.or(limits.ios).or(millis)
}

fn position(limits: Limits, begin: Instant, (ios, bytes): (u64, u64)) -> u64 {
    match limits {
        Limits { bytes: Some(most), .. } => bytes.min(most),
        Limits { ios: Some(most), .. } => ios.min(most),
        Limits { time: Some(time), .. } => begin.elapsed().min(time).as_millis() as u64,
        _ => 0,
    }
}
