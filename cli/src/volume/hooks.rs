//! What stands around a volume's requests, as people say and read it.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;
use block_server::Size;
use block_server::api::{HooksInfo, KindInfo, SetHooks, SetRecord, ThrottleInfo};

use crate::moment::Span;

/// `throttle.iops=500` and the like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Setting {
    /// Requests a second; 0 for any number.
    Iops(u64),
    /// Bytes a second; 0 for any number.
    Bytes(Size),
    /// For how long unused rates add up.
    Burst(Duration),
    /// No limits.
    Unlimited,
    Record(Option<PathBuf>),
}

impl FromStr for Setting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text
            .split_once('=')
            .ok_or_else(|| format!("'{text}' is no KEY=VALUE; for example throttle.iops=500"))?;
        let off = value == "off";
        match key {
            "throttle" if off => Ok(Self::Unlimited),
            "throttle" => {
                Err("`throttle` can only be off; or set throttle.iops or throttle.bytes".into())
            }
            "throttle.iops" if off => Ok(Self::Iops(0)),
            "throttle.iops" => match value.parse() {
                Ok(iops) if iops > 0 => Ok(Self::Iops(iops)),
                _ => Err(format!("'{value}' is not a number of requests a second, nor off")),
            },
            "throttle.bytes" if off => Ok(Self::Bytes(Size(0))),
            "throttle.bytes" => match value.parse() {
                Ok(bytes) if bytes > Size(0) => Ok(Self::Bytes(bytes)),
                _ => {
                    Err(format!("'{value}' is not a number of bytes a second such as 10M, nor off"))
                }
            },
            "throttle.burst" if off => Ok(Self::Burst(Duration::ZERO)),
            "throttle.burst" => value.parse().map(|Span(burst)| Self::Burst(burst)),
            "record" if off => Ok(Self::Record(None)),
            "record" if !value.is_empty() => Ok(Self::Record(Some(value.into()))),
            "record" => Err("`record` is a file that does not exist yet, or off".into()),
            _ => Err(format!(
                "there is no setting '{key}'; there are throttle.iops, throttle.bytes, throttle.burst \
                 and record"
            )),
        }
    }
}

/// What the server is asked for. A file is one of this folder.
pub(super) fn asked(settings: &[Setting]) -> anyhow::Result<SetHooks> {
    let mut asked = SetHooks::default();
    for setting in settings {
        match setting {
            Setting::Iops(iops) => asked.iops = Some(*iops),
            Setting::Bytes(bytes) => asked.bytes = Some(*bytes),
            Setting::Burst(burst) => asked.burst_millis = Some(burst.as_millis() as u64),
            Setting::Unlimited => (asked.iops, asked.bytes) = (Some(0), Some(Size(0))),
            Setting::Record(None) => asked.record = Some(SetRecord::Off),
            Setting::Record(Some(file)) => {
                let file = std::path::absolute(file);
                let file = file.context("cannot tell which folder this is; name the whole path")?;
                asked.record = Some(SetRecord::File(file));
            }
        }
    }
    Ok(asked)
}

/// Lines for `vrio volume show`.
pub(super) fn describe(hooks: &HooksInfo) -> String {
    let HooksInfo { throttle, record, in_flight, kinds } = hooks;
    let mut text = match throttle {
        None => "throttle    off\n".to_owned(),
        Some(throttle) => describe_throttle(throttle),
    };
    if let Some(record) = record {
        let state =
            if record.failed { "stopped, its file fails: see the server's log" } else { "on" };
        let (requests, dropped) = (record.requests, record.dropped);
        text += &format!("record      {state}; {requests} requests, {dropped} dropped\n");
    }
    text += &format!("in flight   {in_flight}\n");
    for kind in kinds {
        let KindInfo { kind, requests, bytes, errors, latency, .. } = kind;
        let [p50, p99, p99_9, max] = [latency.p50, latency.p99, latency.p99_9, latency.max]
            .map(crate::bench::report::duration);
        text += &format!("{kind:<11} {requests} requests, {}", Size(*bytes));
        if *errors > 0 {
            text += &format!(", {errors} failed");
        }
        text += &format!("; p50 {p50}, p99 {p99}, p99.9 {p99_9}, max {max}\n");
    }
    text
}

fn describe_throttle(throttle: &ThrottleInfo) -> String {
    let ThrottleInfo { iops, bytes, burst_millis, waiting, delayed, waited_millis } = throttle;
    let iops = iops.map(|iops| format!("{iops} requests"));
    let bytes = bytes.map(|bytes| format!("{bytes} bytes"));
    let rates: Vec<String> = iops.into_iter().chain(bytes).collect();
    format!(
        "throttle    {} a second, burst {}; {waiting} requests wait, {delayed} have waited {:.1} s\n",
        rates.join(" and "),
        Span(Duration::from_millis(*burst_millis)),
        *waited_millis as f64 / 1000.0
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_as_people_write_them() {
        for (text, setting) in [
            ("throttle.iops=500", Setting::Iops(500)),
            ("throttle.iops=off", Setting::Iops(0)),
            ("throttle.bytes=10M", Setting::Bytes(Size(10 << 20))),
            ("throttle.burst=250ms", Setting::Burst(Duration::from_millis(250))),
            ("throttle.burst=2s", Setting::Burst(Duration::from_secs(2))),
            ("throttle=off", Setting::Unlimited),
            ("record=/tmp/a=b", Setting::Record(Some("/tmp/a=b".into()))),
            ("record=off", Setting::Record(None)),
        ] {
            assert_eq!(text.parse(), Ok(setting), "{text}");
        }
        for (text, words) in [
            ("throttle.iops", "KEY=VALUE"),
            ("throttle.iops=0", "nor off"),
            ("throttle.iops=-1", "nor off"),
            ("throttle.bytes=fast", "10M"),
            ("throttle.burst=2", "100ms"),
            ("throttle=10", "throttle.iops"),
            ("record=", "does not exist yet"),
            ("speed=3", "no setting 'speed'"),
        ] {
            let sentence = text.parse::<Setting>().expect_err(text);
            assert!(sentence.contains(words), "{sentence}");
        }
    }

    #[test]
    fn the_last_word_counts_and_a_file_is_named_by_its_whole_path() {
        let said = ["throttle=off", "throttle.iops=7", "record=a.trace"];
        let settings: Vec<Setting> = said.iter().map(|text| text.parse().expect(text)).collect();
        let asked = asked(&settings).expect("a folder");
        assert_eq!((asked.iops, asked.bytes), (Some(7), Some(Size(0))));
        let Some(SetRecord::File(file)) = asked.record else { panic!("a file") };
        assert!(file.is_absolute() && file.ends_with("a.trace"));
    }
}
