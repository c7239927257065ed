//! From what was asked to what will be done, or a sentence why it will not.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{bail, ensure};

use super::args::{Access, BenchArgs};
use super::bytes::{BlockSizes, Bytes};
use super::cpu::Watched;
use super::driver::{Facts, TrimLimits, Wishes};
use super::ledger::MOST_GRAINS;
use super::pace::{Check, Limits, Pace, Region, Wait};
use super::workload::{Order, Shape};

/// Most memory for data buffers, in bytes.
const MOST_BUFFERS: u64 = 4 << 30;

/// Size of the requests that read written blocks back, in bytes, unless the
/// run's own are larger.
const READ_BACK: u32 = 64 << 10;

/// How long a run takes when nothing ends it earlier.
const USUAL_TIME: Duration = Duration::from_secs(10);

/// A run that makes sense by itself; the device has not been seen yet.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) socket: PathBuf,
    pub(crate) wishes: Wishes,
    pub(crate) rw: Access,
    pub(crate) sizes: BlockSizes,
    pub(crate) depth: usize,
    pub(crate) queues: usize,
    pub(crate) pace: Pace,
    pub(crate) pin: Option<usize>,
    pub(crate) watched: Vec<Watched>,
    pub(crate) json: bool,
    order: Order,
    read_percent: u8,
    discard_percent: u8,
    zero_percent: u8,
    check: Check,
    offset: u64,
    size: Option<u64>,
    seed: u64,
    segment: Option<u64>,
}

/// A plan that fits the device.
#[derive(Clone, Debug)]
pub(crate) struct Fitted {
    pub(crate) region: Region,
    pub(crate) shape: Shape,
    /// Bytes of data in a slot: the largest request of the run.
    pub(crate) slot_len: usize,
    /// Bytes in the largest piece of a request's data.
    pub(crate) segment: usize,
    /// Whether to flush once at the end.
    pub(crate) final_flush: bool,
}

impl Plan {
    pub(crate) fn new(args: BenchArgs) -> anyhow::Result<Self> {
        let read_percent = read_percent(&args)?;
        let changes = read_percent < 100;
        ensure!(
            !changes || args.overwrite,
            "--rw {} destroys the data on the device: add --overwrite if that is meant",
            args.rw.name()
        );
        ensure!(
            changes || args.discard_percent + args.zero_percent == 0,
            "--discard-percent and --zero-percent change data, which --rw {} does not",
            args.rw.name()
        );
        ensure!(
            u16::from(args.discard_percent) + u16::from(args.zero_percent) <= 100,
            "--discard-percent and --zero-percent are together above 100"
        );
        ensure!(
            changes || args.flush_every.is_none(),
            "--flush-every counts writes, and --rw {} makes none",
            args.rw.name()
        );
        if let Some(Bytes(segment)) = args.segment {
            ensure!(
                segment > 0 && segment.is_multiple_of(512),
                "--segment is not a multiple of 512 bytes"
            );
        }
        let check = match (args.verify, changes) {
            (false, _) => Check::Off,
            (true, true) => Check::OwnWrites,
            (true, false) => Check::EarlierRun,
        };
        Ok(Self {
            wishes: Wishes { event_idx: !args.no_event_idx, write_through: args.write_through },
            rw: args.rw,
            sizes: args.bs,
            depth: args.depth.into(),
            queues: args.queues.into(),
            pace: pace(&args)?,
            pin: args.pin,
            json: args.json,
            order: match args.rw {
                Access::Read | Access::Write | Access::Rw => Order::Sequential,
                Access::Randread | Access::Randwrite | Access::Randrw => Order::Random,
            },
            read_percent,
            discard_percent: args.discard_percent,
            zero_percent: args.zero_percent,
            check,
            offset: args.offset.0,
            size: args.size.map(|size| size.0),
            seed: args.seed,
            segment: args.segment.map(|segment| segment.0),
            socket: args.socket,
            watched: args.pids,
        })
    }

    pub(crate) fn is_sleeping(&self) -> bool {
        self.pace.wait == Wait::Sleep
    }

    /// Holds the plan against the device.
    pub(crate) fn fit(&self, facts: &Facts) -> anyhow::Result<Fitted> {
        self.fit_features(facts)?;
        let size = self.fit_region(facts)?;
        let grain = self.sizes.min;
        let grains = size / u64::from(grain);
        ensure!(
            self.check != Check::OwnWrites || grains <= MOST_GRAINS,
            "--verify would have to remember {grains} blocks and can {MOST_GRAINS}: \
             choose a smaller --size or a larger --bs"
        );

        let segment = self.segment.unwrap_or(u64::MAX).min(facts.largest_segment.into());
        let slot_len = self.sizes.max.max(match self.check {
            Check::OwnWrites => u64::from(READ_BACK).min(segment) as u32 / grain * grain,
            Check::Off | Check::EarlierRun => 0,
        });
        let buffers = (self.queues * self.depth) as u64 * u64::from(slot_len);
        ensure!(
            buffers <= MOST_BUFFERS,
            "{} of buffers are above {}: lower --depth, --queues or --bs",
            Bytes(buffers),
            Bytes(MOST_BUFFERS)
        );
        Ok(Fitted {
            region: Region { offset: self.offset, grain, seed: self.seed, check: self.check },
            shape: Shape {
                order: self.order,
                read_percent: self.read_percent,
                discard_percent: self.discard_percent,
                zero_percent: self.zero_percent,
                grains,
                largest: self.sizes.max / grain,
                seed: self.seed,
            },
            slot_len: slot_len as usize,
            segment: segment.min(slot_len.into()) as usize,
            final_flush: facts.flush && self.changes_data(),
        })
    }

    fn fit_features(&self, facts: &Facts) -> anyhow::Result<()> {
        let socket = self.socket.display();
        ensure!(
            !(facts.read_only && self.changes_data()),
            "{socket} is read-only: only --rw read and randread work on it"
        );
        ensure!(
            self.queues <= facts.most_queues,
            "{socket} has {} queues and --queues asks for {}",
            facts.most_queues,
            self.queues
        );
        ensure!(
            self.pace.flush_every.is_none() || facts.flush,
            "{socket} has no flush (its writes are durable when answered): drop --flush-every"
        );
        for (option, percent, limits) in [
            ("--discard-percent", self.discard_percent, facts.discard),
            ("--zero-percent", self.zero_percent, facts.zero),
        ] {
            if percent > 0 {
                self.fit_trim(option, limits)?;
            }
        }
        Ok(())
    }

    fn fit_trim(&self, option: &str, limits: Option<TrimLimits>) -> anyhow::Result<()> {
        let socket = self.socket.display();
        let Some(TrimLimits { most, alignment }) = limits else {
            bail!("{socket} does not offer what {option} asks for: drop it");
        };
        ensure!(
            u64::from(self.sizes.max) <= most,
            "{socket} takes at most {} in a request of {option}: lower --bs",
            Bytes(most)
        );
        ensure!(
            u64::from(self.sizes.min).is_multiple_of(alignment),
            "{socket} wants {option} in multiples of {}: raise --bs",
            Bytes(alignment)
        );
        Ok(())
    }

    /// The region's size in bytes.
    fn fit_region(&self, facts: &Facts) -> anyhow::Result<u64> {
        let socket = self.socket.display();
        let Facts { capacity, logical_block, .. } = *facts;
        ensure!(
            self.sizes.min.is_multiple_of(logical_block),
            "{socket} has blocks of {logical_block} bytes and --bs {} is no multiple of them",
            Bytes(self.sizes.min.into())
        );
        ensure!(
            self.offset.is_multiple_of(logical_block.into()),
            "{socket} has blocks of {logical_block} bytes and --offset {} is no multiple of them",
            self.offset
        );
        let step = u64::from(self.sizes.min);
        let left = capacity.saturating_sub(self.offset) / step * step;
        let size = self.size.unwrap_or(left);
        let too_small = || {
            format!(
                "{socket} has {} ({capacity} bytes): too small for {} at offset {}",
                Bytes(capacity),
                Bytes(size.max(step)),
                self.offset
            )
        };
        ensure!(size > 0 && size <= left, too_small());
        ensure!(size.is_multiple_of(step), "--size {size} is no multiple of --bs {}", Bytes(step));
        ensure!(
            size >= self.sizes.max.into(),
            "the region of {} is smaller than one request of {}",
            Bytes(size),
            Bytes(self.sizes.max.into())
        );
        Ok(size)
    }

    fn changes_data(&self) -> bool {
        self.read_percent < 100
    }
}

fn read_percent(args: &BenchArgs) -> anyhow::Result<u8> {
    match args.rw {
        rw if rw.is_mixed() => Ok(args.read_percent.unwrap_or(50)),
        _ if args.read_percent.is_some() => {
            bail!("--read-percent goes with --rw rw and randrw only")
        }
        Access::Read | Access::Randread => Ok(100),
        _ => Ok(0),
    }
}

fn pace(args: &BenchArgs) -> anyhow::Result<Pace> {
    if let Some(rate) = args.rate {
        ensure!(rate.is_finite() && rate > 0.0, "--rate {rate} is not a number above 0");
    }
    let time = match args.seconds {
        Some(seconds) => match Duration::try_from_secs_f64(seconds) {
            Ok(time) if !time.is_zero() => Some(time),
            _ => bail!("--seconds {seconds} is not a number above 0"),
        },
        None if args.ios.is_none() && args.bytes.is_none() => Some(USUAL_TIME),
        None => None,
    };
    Ok(Pace {
        wait: args.wait,
        limits: Limits { time, ios: args.ios, bytes: args.bytes.map(|bytes| bytes.0) },
        rate: args.rate,
        flush_every: args.flush_every,
        patience: (args.timeout > 0).then(|| Duration::from_secs(args.timeout)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: BenchArgs,
    }

    fn plan(options: &str) -> anyhow::Result<Plan> {
        let words = ["bench", "disk.sock"].into_iter().chain(options.split_whitespace());
        Plan::new(Line::try_parse_from(words)?.args)
    }

    fn disk() -> Facts {
        Facts {
            capacity: 16 << 20,
            logical_block: 512,
            read_only: false,
            flush: true,
            discard: Some(TrimLimits { most: 1 << 20, alignment: 4096 }),
            zero: Some(TrimLimits { most: 64 << 10, alignment: 512 }),
            most_queues: 2,
            largest_segment: u32::MAX,
        }
    }

    fn refusal(options: &str, facts: &Facts) -> String {
        match plan(options).and_then(|plan| plan.fit(facts)) {
            Ok(_) => panic!("'{options}' was accepted"),
            Err(error) => error.to_string(),
        }
    }

    /// A benchmark that destroyed a volume because of a default would be used once.
    #[test]
    fn nothing_changes_data_without_permission() {
        for options in ["--rw write", "--rw randwrite", "--rw rw", "--rw randrw --read-percent 99"]
        {
            assert!(refusal(options, &disk()).contains("--overwrite"), "{options}");
            assert!(plan(&format!("{options} --overwrite")).is_ok(), "{options}");
        }
        let shape = plan("").and_then(|plan| plan.fit(&disk())).expect("the default is fine").shape;
        assert_eq!(shape.read_percent, 100);
    }

    #[test]
    fn what_the_device_cannot_do_is_refused_in_words() {
        let read_only = Facts { read_only: true, ..disk() };
        let large_blocks = Facts { logical_block: 4096, ..disk() };
        let plain = Facts { flush: false, discard: None, zero: None, ..disk() };
        let write = "--rw write --overwrite";
        for (options, facts, words) in [
            (write, &read_only, "read-only"),
            ("--bs 512", &large_blocks, "blocks of 4096 bytes"),
            ("--offset 512", &large_blocks, "--offset 512"),
            ("--queues 3", &disk(), "has 2 queues"),
            ("--size 17M", &disk(), "too small for 17 MiB"),
            ("--offset 16M", &disk(), "too small"),
            ("--offset 15M --size 2M", &disk(), "too small for 2 MiB at offset 15728640"),
            ("--size 5000", &disk(), "no multiple of --bs"),
            ("--size 512k --bs 4k-1M", &disk(), "smaller than one request"),
            (&format!("{write} --flush-every 1"), &plain, "no flush"),
            (&format!("{write} --discard-percent 1"), &plain, "does not offer"),
            (&format!("{write} --zero-percent 1 --bs 128k"), &disk(), "at most 64 KiB"),
            (&format!("{write} --discard-percent 1 --bs 512"), &disk(), "multiples of 4 KiB"),
            ("--zero-percent 1", &disk(), "change data"),
            ("--flush-every 1", &disk(), "makes none"),
            ("--read-percent 1", &disk(), "goes with --rw rw"),
            ("--rate 0", &disk(), "above 0"),
            ("--seconds 0", &disk(), "above 0"),
            ("--segment 100", &disk(), "multiple of 512"),
        ] {
            let sentence = refusal(options, facts);
            assert!(sentence.contains(words), "'{options}' gave: {sentence}");
        }
    }

    #[test]
    fn the_region_ends_at_the_last_whole_block() {
        let odd = Facts { capacity: (1 << 20) + 512, ..disk() };
        let fitted = plan("--offset 4k").and_then(|plan| plan.fit(&odd)).expect("fits");
        assert_eq!(fitted.shape.grains, 255);
    }

    #[test]
    fn a_run_without_an_end_gets_one() {
        let limits = |options| plan(options).expect(options).pace.limits;
        assert_eq!(limits("").time, Some(USUAL_TIME));
        assert_eq!(limits("--ios 5").time, None);
        assert_eq!(limits("--bytes 1M --seconds 2.5").time, Some(Duration::from_millis(2500)));
    }
}
