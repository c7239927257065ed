//! `vrio replay`: a recorded volume's requests, made again.
//!
//! The trace goes through `load` (which requests, and do they fit the device),
//! the bench's own loop makes them, and `report` holds the latencies against
//! the recorded ones.

mod load;
mod report;

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};

use crate::bench::driver::{Device, Rings, Wishes};
use crate::bench::pace::{Check, Gauge, Limits, Pace, Region, Wait};
use crate::bench::progress;
use crate::bench::run::{Loop, Source};
use crate::bench::schedule::Schedule;
use crate::bench::tally::Tally;
use load::{Loaded, SECTOR};
use report::Report;

/// Make the requests of a recorded volume again, against a vhost-user block device
///
/// `vrio volume set VOLUME record=FILE` records. Latencies are reported beside
/// the recorded ones; these were taken in the server, and this client also sees
/// the way there.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ReplayArgs {
    /// What was recorded
    #[arg(value_name = "TRACE")]
    trace: PathBuf,

    /// The device's vhost-user socket: of `vrio front`, `vrio local`, or any other
    #[arg(value_name = "SOCKET")]
    socket: PathBuf,

    /// How fast: 1.0 as recorded, 2.0 twice as fast, max without waiting
    #[arg(long, default_value = "1.0")]
    speed: Speed,

    /// Also make the requests that change data, with noise: destroys what the
    /// device holds there
    #[arg(long)]
    write_data: bool,

    /// Most requests in flight
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..=341))]
    depth: u16,

    /// Stop after so many requests of the trace
    #[arg(long, value_name = "N")]
    requests: Option<u64>,

    /// Use what is whole of a trace that was cut off
    #[arg(long)]
    partial: bool,

    /// What to do until the device answers
    #[arg(long, value_enum, default_value_t = Wait::Sleep)]
    wait: Wait,

    /// Give up when the device answers nothing for so long; 0 waits for ever
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    timeout: u64,

    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// How fast a trace runs; `None` as fast as the device goes.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Speed(Option<f64>);

impl FromStr for Speed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "max" {
            return Ok(Self(None));
        }
        // A range in which no time can overflow.
        match text.parse() {
            Ok(speed) if (0.001..=1e6).contains(&speed) => Ok(Self(Some(speed))),
            _ => Err(format!("'{text}' is neither `max` nor a number from 0.001 to 1000000")),
        }
    }
}

/// Runs a trace and prints its report.
///
/// # Errors
/// A sentence, when the trace cannot be used, the device is too different, or a
/// request failed.
pub(crate) fn run(args: &ReplayArgs) -> anyhow::Result<()> {
    let wishes = Wishes { event_idx: true, write_through: false };
    let mut loaded = load::load(args)?;
    let device = Device::connect(&args.socket, wishes)?;
    loaded.fit(args, device.facts())?;
    let pulse = device.pulse();
    let segment = loaded.largest.min(device.facts().largest_segment as usize);
    let sleeps = args.wait == Wait::Sleep;
    let rings = device.start(1, args.depth.into(), loaded.largest, segment, sleeps)?;

    let gauge = Gauge::default();
    let pace = Pace {
        wait: args.wait,
        limits: Limits::default(),
        rate: None,
        flush_every: None,
        patience: (args.timeout > 0).then(|| Duration::from_secs(args.timeout)),
    };
    let shown = Limits { ios: Some(loaded.requests.len() as u64), ..Limits::default() };
    let requests = std::mem::take(&mut loaded.requests);
    let (elapsed, replayed) = thread::scope(|scope| {
        let (running, ended) = mpsc::channel::<()>();
        let (loaded, gauge, pace) = (&loaded, &gauge, &pace);
        let schedule = Schedule::new(requests, args.speed.0);
        let worker = scope.spawn(move || {
            let outcome = make(loaded, schedule, args.depth.into(), rings, pace, gauge);
            drop(running);
            outcome
        });
        progress::watch(gauge, shown, &pulse, &ended);
        worker.join().unwrap_or_else(|_| Err(anyhow!("the measuring thread broke down")))
    })?;

    let report = Report::new(args, &loaded, elapsed, &replayed);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report).context("cannot print JSON")?);
    } else {
        print!("{}", report.text());
    }
    match replayed.failures {
        0 => Ok(()),
        failures => bail!("{failures} requests failed that had worked when they were recorded"),
    }
}

fn make(
    loaded: &Loaded,
    schedule: Schedule,
    depth: usize,
    rings: Rings,
    pace: &Pace,
    gauge: &Gauge,
) -> anyhow::Result<(Duration, Tally)> {
    let region = Region { offset: 0, grain: SECTOR, seed: 1, check: Check::Off };
    let mut work = Loop::new(rings, 1, depth, region, 0, gauge);
    work.fill_buffers(loaded.largest);
    let mut tally = Tally::new();
    let elapsed = work.run(Source::Schedule(schedule), pace, &mut tally)?;
    Ok((elapsed, tally))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_speed_is_a_factor_or_max() {
        assert_eq!("max".parse(), Ok(Speed(None)));
        assert_eq!("0.5".parse(), Ok(Speed(Some(0.5))));
        for text in ["", "0", "-1", "nan", "inf", "1e9", "fast"] {
            assert!(text.parse::<Speed>().is_err(), "{text}");
        }
    }
}
