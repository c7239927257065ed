//! `vrio pool`: devices that are pools.

use std::str::FromStr;
use std::time::Duration;

use anyhow::bail;
use block_server::Size;
use block_server::api::{
    CheckInfo, ChecksInfo, CreatePool, PoolContent, PoolInfo, PoolState, ScheduleInfo, SetSchedule,
    StartCheck,
};
use block_server::client::Client;
use clap::{Args, Subcommand};

use crate::control::Control;
use crate::moment::{Span, utc};
use crate::progress::{Step, follow};
use crate::table::{Side, table};

/// Make, show, check and grow pools: run this on the IOhost
///
/// A pool is a device whose volumes are encrypted, share equal blocks and have
/// snapshots.
#[derive(Debug, Args)]
pub(crate) struct PoolArgs {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    control: Control,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a device that has no volumes a pool
    Create {
        /// Its name in the server's configuration, which says what unlocks it
        device: String,
        /// The journal's size; by the device's size if left out
        #[arg(long, value_name = "SIZE")]
        journal: Option<Size>,
        /// Also where a pool is that does not open; what it holds is lost
        #[arg(long)]
        overwrite: bool,
    },
    /// Show pools: what they hold, what sharing saves, what is free
    Show {
        /// Only this one
        device: Option<String>,
    },
    /// Read everything in a pool and say what is wrong; guests go on
    Check {
        /// Which one; may be left out if there is one
        device: Option<String>,
        /// Read at most so much in a second, for example 50M; by schedule 20M if left out
        #[arg(long, value_name = "SIZE")]
        rate: Option<Size>,
        /// Let the server make one by itself every so often, for example 7d, or off. A pool
        /// that never was checked is checked at once
        #[arg(long, value_name = "TIME", conflicts_with_all = ["background", "status"])]
        schedule: Option<Schedule>,
        /// Do not wait for its end: `--status` tells how far it is
        #[arg(long, conflicts_with = "status")]
        background: bool,
        /// Begin none; tell about the one that runs, or the last one
        #[arg(long)]
        status: bool,
    },
    /// Let a pool have what its device has grown by
    Grow {
        /// Which one; may be left out if there is one
        device: Option<String>,
    },
}

/// The rate of checks by schedule: what guests do not notice.
const USUAL_RATE: Size = Size(20 << 20);

/// How often; `None` for never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Schedule(Option<Span>);

impl FromStr for Schedule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self(None)),
            _ => text.parse().map(|every| Self(Some(every))),
        }
    }
}

impl Schedule {
    fn asked(self, rate: Option<Size>) -> SetSchedule {
        let rate = rate.unwrap_or(USUAL_RATE);
        let info = |Span(every)| ScheduleInfo { every_seconds: every.as_secs(), rate };
        SetSchedule { schedule: self.0.map(info) }
    }
}

/// Asks the server and prints its answer.
pub(crate) fn run(args: PoolArgs) -> anyhow::Result<()> {
    let (client, control) = (args.control.client(), &args.control);
    match args.command {
        Command::Create { device, journal, overwrite } => {
            let pool = CreatePool { device: Some(device), journal, overwrite };
            control.print(&[client.create_pool(&pool)?][..], text)
        }
        Command::Show { device: None } => control.print(&client.pools()?[..], text),
        Command::Show { device: Some(device) } => control.print(&[client.pool(&device)?][..], text),
        Command::Grow { device } => {
            let device = the_pool(&client, device)?;
            control.print(&[client.grow_pool(&device)?][..], text)
        }
        Command::Check { device, rate, schedule: Some(schedule), .. } => {
            let device = the_pool(&client, device)?;
            control.print(&[client.schedule_check(&device, &schedule.asked(rate))?][..], text)
        }
        Command::Check { device, rate, background, status, schedule: None } => {
            let device = the_pool(&client, device)?;
            let check = if status {
                client.check(&device)?
            } else {
                let started = client.start_check(&device, &StartCheck { rate })?;
                if background { started } else { watch_check(&client, &device)? }
            };
            report(&device, &check, control)
        }
    }
}

/// The pool that was named, or the only one.
pub(crate) fn the_pool(client: &Client, named: Option<String>) -> anyhow::Result<String> {
    if let Some(named) = named {
        return Ok(named);
    }
    let pools = client.pools()?;
    match &pools[..] {
        [only] => Ok(only.device.clone()),
        [] => bail!("the server has no pool; make one with `vrio pool create DEVICE`"),
        several => {
            let names: Vec<&str> = several.iter().map(|pool| &pool.device[..]).collect();
            bail!("the server has the pools {}; say which one", names.join(", "))
        }
    }
}

/// Waits until nothing is being deleted in a pool's background.
pub(crate) fn wait_for_deletions(client: &Client, device: &str) -> anyhow::Result<()> {
    let mut most = 0;
    follow("giving space back", || {
        let Some(content) = client.pool(device)?.content else {
            bail!("pool {device} is not open any more; `vrio pool show` tells why");
        };
        let left = content.deleting_left;
        most = most.max(left);
        Ok(Step {
            done: most - left,
            total: most,
            message: format!("{} free", content.free),
            outcome: (content.deleting == 0).then_some(()),
        })
    })
}

fn watch_check(client: &Client, device: &str) -> anyhow::Result<CheckInfo> {
    follow("checking", || {
        let check = client.check(device)?;
        let (done, total) = (check.done.bytes(), check.total.bytes());
        let message = format!("{}: {} of {}", check.phase, check.done, check.total);
        Ok(Step { done, total, message, outcome: (!check.running).then_some(check) })
    })
}

/// Prints what a check has found; an error when that is anything.
fn report(device: &str, check: &CheckInfo, control: &Control) -> anyhow::Result<()> {
    control.print(check, |check| found(device, check))?;
    verdict(device, check)
}

fn found(device: &str, check: &CheckInfo) -> String {
    let mut text: String = check.findings.iter().map(|finding| format!("{finding}\n")).collect();
    let left = check.wrong.saturating_sub(check.findings.len() as u64);
    if left > 0 {
        text += &format!("and {left} more\n");
    }
    let CheckInfo { phase, done, total, .. } = check;
    match (check.running, check.wrong, &check.failed) {
        (true, _, _) => text += &format!("{phase}: {done} of {total} checked so far\n"),
        (false, 0, None) => text += &format!("{device}: {done} checked, nothing is wrong\n"),
        _ => {}
    }
    text
}

fn verdict(device: &str, check: &CheckInfo) -> anyhow::Result<()> {
    if let Some(why) = &check.failed {
        bail!("{device} was not checked as a whole: {why}");
    }
    match check.wrong {
        0 => Ok(()),
        1 => bail!("{device}: one thing is wrong"),
        wrong => bail!("{device}: {wrong} things are wrong"),
    }
}

fn text(pools: &[PoolInfo]) -> String {
    match pools {
        [] => "no pools; make one with `vrio pool create DEVICE`\n".to_owned(),
        [only] => describe(only),
        several => lines(several),
    }
}

fn lines(pools: &[PoolInfo]) -> String {
    let row = |pool: &PoolInfo| {
        let (free, volumes) = match &pool.content {
            Some(content) => (content.free.to_string(), content.volumes.to_string()),
            None => ("-".to_owned(), "-".to_owned()),
        };
        let state = match (pool.state, &pool.problem) {
            (state, None) => say(state).to_owned(),
            (state, Some(problem)) => format!("{}: {problem}", say(state)),
        };
        [pool.device.clone(), pool.size.to_string(), free, volumes, state]
    };
    let heads = [
        ("POOL", Side::Left),
        ("SIZE", Side::Right),
        ("FREE", Side::Right),
        ("VOLUMES", Side::Right),
        ("STATE", Side::Left),
    ];
    table(heads, &pools.iter().map(row).collect::<Vec<_>>())
}

const fn say(state: PoolState) -> &'static str {
    match state {
        PoolState::Open => "open",
        PoolState::ReadOnly => "read-only",
        PoolState::Locked => "locked",
    }
}

fn describe(pool: &PoolInfo) -> String {
    let mut text = format!("pool         {}\nstate        {}\n", pool.device, say(pool.state));
    if let Some(problem) = &pool.problem {
        text += &format!("problem      {problem}\n");
    }
    text += &format!("size         {}\n{}", pool.size, describe_checks(&pool.checks));
    let Some(content) = &pool.content else { return text };
    let PoolContent { id, volumes, snapshots, free, data, metadata, journal, .. } = content;
    let full = if content.full { ": FULL, writes find no room" } else { "" };
    let shared = Size(content.referenced.bytes().saturating_sub(data.bytes()));
    text += &format!(
        "id           {id}\nfree         {free}{full}\ndata         {data}\nmetadata     {metadata}, \
         and {journal} of journal\nshared       {shared} saved, by {} that is referred to\n\
         volumes      {volumes}, of {}\nsnapshots    {snapshots}\nindex        {} of {} blocks\n",
        content.referenced, content.provisioned, content.index[0], content.index[1]
    );
    if content.deleting > 0 {
        text += &format!(
            "deleting     {} volumes or snapshots, {} blocks left\n",
            content.deleting, content.deleting_left
        );
    }
    let since: Vec<String> =
        content.since.iter().map(|one| format!("{} {}", one.blocks, one.name)).collect();
    text + &format!("since start  {}\n", since.join(", "))
}

fn describe_checks(checks: &ChecksInfo) -> String {
    let mut text = match &checks.last {
        None => "checked      never\n".to_owned(),
        Some(last) => {
            let CheckInfo { done, wrong, failed, .. } = &last.check;
            let found = match (wrong, failed) {
                (0, None) => "nothing is wrong",
                (0, Some(_)) => "not as a whole; see `vrio pool check --status`",
                (_, _) => "SOMETHING IS WRONG; see `vrio pool check --status`",
            };
            format!("checked      {} UTC, {done}: {found}\n", utc(last.ended))
        }
    };
    if let (Some(ScheduleInfo { every_seconds, rate }), Some(next)) =
        (&checks.schedule, checks.next)
    {
        let every = Span(Duration::from_secs(*every_seconds));
        let next = next.max(crate::moment::now());
        text += &format!("next check   {} UTC, every {every} at {rate} a second\n", utc(next));
    }
    text
}

#[cfg(test)]
mod tests {
    use block_server::api::{FigureInfo, LastCheck};

    use super::*;

    fn pool(state: PoolState, problem: Option<&str>) -> PoolInfo {
        let content = PoolContent {
            id: "9f".to_owned(),
            volumes: 2,
            snapshots: 3,
            free: Size(1 << 30),
            data: Size(2 << 20),
            metadata: Size(1 << 20),
            referenced: Size(5 << 20),
            provisioned: Size(8 << 30),
            full: true,
            journal: Size(8 << 20),
            deleting: 1,
            deleting_left: 77,
            index: [3, 9],
            since: vec![FigureInfo { name: "read".to_owned(), blocks: 12 }],
        };
        PoolInfo {
            device: "disk0".to_owned(),
            state,
            problem: problem.map(str::to_owned),
            size: Size(4 << 30),
            content: (state != PoolState::Locked).then_some(content),
            checks: ChecksInfo::default(),
        }
    }

    #[test]
    fn a_pool_says_what_sharing_saves_and_a_locked_one_says_why() {
        let text = describe(&pool(PoolState::Open, None));
        assert!(text.contains("3M saved") && text.contains("77 blocks left"), "{text}");
        let locked = pool(PoolState::Locked, Some("no key; give it one"));
        assert!(describe(&locked).contains("problem      no key; give it one\nsize         4G\n"));
        let text = lines(&[locked, pool(PoolState::Open, None)]);
        assert!(text.contains("locked: no key"), "{text}");
    }

    /// Nobody looks into a log for what a check at night has found.
    #[test]
    fn a_pool_says_what_its_last_check_found_and_when_the_next_one_is() {
        let asked = |text: &str, rate| text.parse::<Schedule>().map(|every| every.asked(rate));
        let weekly = asked("7d", None).expect("a week").schedule.expect("a schedule");
        assert_eq!((weekly.every_seconds, weekly.rate), (604_800, USUAL_RATE));
        assert_eq!(asked("off", None), Ok(SetSchedule::default()));
        assert!(asked("weekly", None).is_err());
        let never = describe_checks(&ChecksInfo::default());
        assert_eq!(never, "checked      never\n");
        let check = CheckInfo { wrong: 2, done: Size(1 << 30), ..CheckInfo::default() };
        let last = Some(LastCheck { began: 0, ended: 86_400, check });
        let next = Some(4_107_542_400);
        let text = describe_checks(&ChecksInfo { schedule: Some(weekly), next, last });
        assert!(text.contains("1970-01-02 00:00:00 UTC, 1G: SOMETHING IS WRONG"), "{text}");
        assert!(text.contains("2100-03-01 00:00:00 UTC, every 7d at 20M a second"), "{text}");
    }

    #[test]
    fn what_is_wrong_is_an_error_and_told_one_by_one() {
        let clean = CheckInfo {
            running: false,
            phase: String::new(),
            done: Size(1 << 30),
            total: Size(1 << 30),
            findings: Vec::new(),
            wrong: 0,
            failed: None,
        };
        verdict("d", &clean).expect("clean");
        assert_eq!(found("d", &clean), "d: 1G checked, nothing is wrong\n");
        let wrong = CheckInfo { wrong: 7, findings: vec!["x".to_owned()], ..clean.clone() };
        let error = verdict("d", &wrong).expect_err("wrong").to_string();
        assert!(error.contains("7 things"), "{error}");
        assert_eq!(found("d", &wrong), "x\nand 6 more\n");
        let failed = CheckInfo { failed: Some("why".to_owned()), ..clean };
        assert!(verdict("d", &failed).is_err());
    }
}
