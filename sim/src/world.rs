//! A run: VMhosts, a network and an IOhost in one thread, in virtual time.

use std::time::Duration;

use anyhow::Result;
use block_core::Time;
use link::VolumeName;
use link::wire::memory::Port;

use crate::dice::Dice;
use crate::fabric::{Fabric, FrameFaults};
use crate::guest::Guest;
use crate::intruder::{self, Intruder};
use crate::iohost::{Furniture, IoHost};
use crate::oracle::Wrong;
use crate::scenario::{DiskKind, Fault, Scenario};
use crate::story::{Listener, Story};
use crate::vmhost::VmHost;

/// How long anything may take when nothing goes wrong any more.
const PATIENCE: Duration = Duration::from_secs(30);

/// Most steps of a run: more is a world that spins.
const MOST_STEPS: u64 = 2_000_000;

/// When somebody notices that a VMhost is dead, and its guests start anew.
const AFTER_DEATH: Duration = Duration::from_millis(5);

/// How often a worker is turned whose device answers nothing.
const LOOK: Duration = Duration::from_millis(1);

/// How long a turn takes.
const TURN: (Duration, Duration) = (Duration::from_micros(2), Duration::from_micros(40));

/// What a run came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Requests that guests made and that ended.
    pub requests: u64,
    /// Steps that the world took.
    pub steps: u64,
    /// Frames that were sealed, each under a counter of its own.
    pub sealed: usize,
    /// Virtual time that passed.
    pub lasted: Duration,
}

/// Somebody who is turned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    Worker(usize),
    Front(usize),
    Intruder,
}

/// Something that ends later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Later {
    StartServer,
    StartFront(usize),
    Move(usize),
    Join(Port),
    Mtu,
}

/// A world.
pub struct World {
    now: Time,
    scenario: Scenario,
    fabric: Fabric,
    iohost: IoHost,
    hosts: Vec<VmHost>,
    nodes: Vec<(Node, Option<Time>)>,
    plan: Vec<(Time, Fault)>,
    later: Vec<(Time, Later)>,
    stalls: Vec<Time>,
    intruder: Option<Intruder>,
    /// No session has ended: no change may have run twice.
    unbroken: bool,
    dice: Dice,
    story: Story,
    summary: Summary,
}

impl World {
    /// The world of a scenario, furnished and calm.
    ///
    /// # Errors
    /// A sentence about what does not work.
    pub fn new(
        scenario: Scenario,
        mut dice: Dice,
        furniture: &Furniture,
        listener: Option<Listener>,
    ) -> Result<Self> {
        let mut fabric = Fabric::new(scenario.mtu, dice.split());
        let (kinds, room) = (&scenario.workers, scenario.room);
        let mut iohost = IoHost::new(kinds, room, scenario.trust, furniture, dice.split());
        iohost.start(Time::ZERO, &fabric)?;
        let mut volumes = Vec::new();
        let mut hosts = Vec::new();
        for (number, disks) in scenario.hosts.iter().enumerate() {
            let mut guests = Vec::new();
            for (disk, kind) in disks.iter().enumerate() {
                let name = VolumeName::new(&format!("vm{number}-{disk}"))?;
                volumes.push((name.clone(), kind.worker, kind.blocks));
                guests.push((Guest::new(name, disk, kind.habits), IoHost::port(kind.asked)));
            }
            hosts.push(VmHost::new(number, guests, scenario.trust, dice.split()));
        }
        let now = iohost.furnish(Time::ZERO, &volumes)?;
        for host in &mut hosts {
            host.start(now, &fabric)?;
        }
        fabric.collect(now);
        let workers = (0..iohost.workers()).map(Node::Worker);
        let fronts = (0..hosts.len()).map(Node::Front);
        let nodes = workers.chain(fronts).chain([Node::Intruder]);
        let mut story = Story::new(listener);
        story.tell(now, || format!("{scenario:#?}"));
        Ok(Self {
            now,
            plan: scenario.plan.iter().rev().map(|(at, fault)| (now + *at, *fault)).collect(),
            stalls: vec![Time::ZERO; kinds.len()],
            nodes: nodes.map(|node| (node, Some(now))).collect(),
            later: Vec::new(),
            intruder: None,
            unbroken: true,
            summary: Summary::default(),
            scenario,
            fabric,
            iohost,
            hosts,
            dice,
            story,
        })
    }

    /// Lets everything happen, and looks whether all is as it must be.
    ///
    /// # Errors
    /// What is wrong, as a sentence.
    pub fn run(&mut self) -> Result<Summary, Wrong> {
        self.until("the guests work", None, |world| {
            world.plan.is_empty() && world.later.is_empty() && world.is_done()
        })?;
        self.until("the guests are done", Some(PATIENCE), Self::is_done)?;
        self.fabric.faults = FrameFaults::default();
        self.tell(|| "nothing goes wrong any more".to_owned());
        self.each_guest(Guest::ask_for_everything);
        self.until("the guests read all", Some(PATIENCE), Self::is_done)?;
        self.each_guest(Guest::ask_for_flush);
        self.until("the guests flush", Some(PATIENCE), Self::is_done)?;
        self.each_change_ran_once()?;
        // What is given back it could have, also by a request that it had sent.
        let refused = |world: &Self| world.intruder.as_ref().is_none_or(Intruder::is_refused);
        self.until("the intruder is refused", Some(PATIENCE), refused)?;
        self.intruder = None;
        self.hosts.iter_mut().for_each(VmHost::detach);
        self.wake_all();
        let detached = |world: &Self| world.hosts.iter().all(VmHost::is_detached);
        self.until("the fronts detach", Some(PATIENCE), detached)?;
        if self.scenario.ends_dark {
            self.iohost.lose_power();
        } else {
            self.iohost.kill();
        }
        self.tell(|| "the IOhost starts again".to_owned());
        self.start_server()?;
        for front in 0..self.hosts.len() {
            self.start_front(front)?;
        }
        self.each_guest(Guest::ask_for_everything);
        self.until("the guests read what was flushed", Some(PATIENCE), Self::is_done)?;
        self.summary.sealed = self.fabric.each_seal_is_new()?;
        self.summary.lasted = self.now - Time::ZERO;
        Ok(self.summary)
    }

    /// A change that was repeated has run once, as long as nobody begins anew:
    /// the server has carried out as many as the guests have asked for.
    fn each_change_ran_once(&mut self) -> Result<(), Wrong> {
        if !self.unbroken {
            return Ok(());
        }
        for (host, disks) in self.hosts.iter().zip(&self.scenario.hosts) {
            for (guest, disk) in host.guests.iter().zip(disks) {
                let ran = self.iohost.changes(&mut self.now, disk.worker, &guest.volume);
                let ran = ran.map_err(|error| Wrong(format!("{error:#}")))?;
                if ran != guest.changes {
                    let (volume, asked) = (&guest.volume, guest.changes);
                    return Err(Wrong(format!("{volume}: {ran} changes ran, {asked} were asked")));
                }
            }
        }
        Ok(())
    }

    /// The moment it is.
    #[must_use]
    pub fn now(&self) -> Time {
        self.now
    }

    fn is_done(&self) -> bool {
        self.hosts.iter().all(VmHost::is_done)
    }

    fn each_guest(
        &mut self,
        mut asks: impl FnMut(&mut Guest, &mut crate::guest::Memory, &mut Dice),
    ) {
        self.hosts.iter_mut().for_each(|host| host.each_guest(&mut asks));
        self.wake_all();
    }

    fn wake_all(&mut self) {
        let now = self.now;
        self.nodes.iter_mut().for_each(|(_, due)| *due = Some(now));
    }

    fn tell(&mut self, what: impl FnOnce() -> String) {
        self.story.tell(self.now, what);
    }

    /// Goes on until something is so. With a limit it must be so by then.
    fn until(
        &mut self,
        what: &str,
        limit: Option<Duration>,
        is_so: impl Fn(&Self) -> bool,
    ) -> Result<(), Wrong> {
        let mut limit = limit.map(|limit| self.now + limit);
        self.tell(|| format!("until {what}"));
        while !is_so(self) {
            self.step()?;
            if limit.is_none() && self.plan.is_empty() && self.later.is_empty() {
                self.fabric.faults = FrameFaults::default();
                limit = Some(self.now + PATIENCE);
            }
            if limit.is_some_and(|limit| self.now > limit) {
                return Err(Wrong(format!("{what}: it never ends; {}", self.waits_for())));
            }
        }
        Ok(())
    }

    fn waits_for(&self) -> String {
        let idle = |host: &VmHost| host.is_done() && (host.has_all() || host.is_detached());
        let waiting = self.hosts.iter().enumerate().filter(|(_, host)| !idle(host));
        let waiting = waiting.map(|(number, host)| format!("front {number}: {}", host.waits_for()));
        waiting.collect::<Vec<_>>().join(" | ")
    }

    fn step(&mut self) -> Result<(), Wrong> {
        self.advance();
        self.summary.steps += 1;
        if self.summary.steps > MOST_STEPS {
            return Err(Wrong(format!("the world spins; {}", self.waits_for())));
        }
        let now = self.now;
        while let Some((_, fault)) = self.plan.pop_if(|(at, _)| *at <= now) {
            self.happen(fault)?;
        }
        let due: Vec<Later> =
            self.later.extract_if(.., |(at, _)| *at <= now).map(|(_, what)| what).collect();
        for what in due {
            self.catch_up(what)?;
        }
        let (nodes, hosts) = (&mut self.nodes, &self.hosts);
        self.fabric.deliver(now, |port| {
            let named = |node: Node| match node {
                Node::Worker(worker) => IoHost::port(worker) == port,
                Node::Front(front) => hosts[front].hears(port),
                Node::Intruder => port == intruder::PORT,
            };
            if let Some((_, due)) = nodes.iter_mut().find(|(node, _)| named(*node)) {
                *due = Some(now);
            }
        });
        let mut ready: Vec<usize> = (0..self.nodes.len())
            .filter(|&node| self.nodes[node].1.is_some_and(|due| due <= now))
            .collect();
        self.dice.shuffle(&mut ready);
        for node in ready {
            self.nodes[node].1 = self.turn(self.nodes[node].0)?;
            self.fabric.collect(now);
        }
        Ok(())
    }

    /// Turns a node; when it is to be turned again though nothing comes.
    fn turn(&mut self, node: Node) -> Result<Option<Time>, Wrong> {
        let now = self.now;
        let soon = now + self.dice.span(TURN.0..=TURN.1);
        let (again, deadline) = match node {
            Node::Worker(worker) => {
                let Some(moved) = self.iohost.turn(now, worker) else { return Ok(None) };
                if self.iohost.take_down(worker) {
                    self.device_down(worker);
                }
                let (busy, deadline) = self.iohost.wants(worker);
                let stalled = self.stalls[worker];
                if !moved && busy && now < stalled {
                    // It looks now and then whether the device is late.
                    let look = stalled.min(now + LOOK);
                    return Ok(Some(deadline.map_or(look, |deadline| deadline.min(look))));
                }
                (moved || busy, deadline)
            }
            Node::Intruder => {
                let Some(intruder) = &mut self.intruder else { return Ok(None) };
                (intruder.turn(now)?, intruder.deadline())
            }
            Node::Front(front) => {
                let turned = self.hosts[front].turn(now)?;
                self.summary.requests += turned.ended.len() as u64;
                if let Some(pause) = turned.left {
                    self.story.tell(now, || format!("front {front} has given all back"));
                    self.later.push((now + pause, Later::StartFront(front)));
                }
                for (token, asked, outcome) in &turned.ended {
                    self.story.tell(now, || {
                        let range = asked.range.map(|range| (range.start(), range.count()));
                        let (op, token) = (asked.op, token.0);
                        format!(
                            "front {front}: {token} {op:?} {range:?} of disk {}: {outcome:?}",
                            asked.disk
                        )
                    });
                }
                (turned.moved, self.hosts[front].deadline())
            }
        };
        let deadline = deadline.map(|deadline| deadline.max(now + TURN.0));
        Ok(if again { Some(soon) } else { deadline })
    }

    /// Goes on to when something happens next.
    fn advance(&mut self) {
        let nodes = self.nodes.iter().filter_map(|(_, due)| *due);
        let later = self.later.iter().map(|(at, _)| *at);
        let plan = self.plan.last().map(|(at, _)| *at);
        let next = nodes.chain(later).chain(plan).chain(self.fabric.next_arrival()).min();
        // Nobody waits for anything: time goes by.
        self.now = next.unwrap_or(self.now + PATIENCE).max(self.now);
    }

    fn happen(&mut self, fault: Fault) -> Result<(), Wrong> {
        self.tell(|| format!("{fault:?}"));
        let now = self.now;
        self.unbroken &= match fault {
            // Somebody who says that the server has forgotten a session may be
            // believed, while nothing is heard of it.
            Fault::Frames(faults) => faults.attack == 0,
            Fault::Stall(..) | Fault::Intrude(_) => true,
            _ => false,
        };
        match fault {
            Fault::KillServer(pause) if self.iohost.is_up() => {
                self.iohost.kill();
                self.forgot(|_| true);
                self.later.push((now + pause, Later::StartServer));
            }
            Fault::LosePower(pause) if self.iohost.is_up() => {
                self.iohost.lose_power();
                self.forgot(|_| true);
                self.later.push((now + pause, Later::StartServer));
            }
            Fault::KillFront(front, pause) if self.hosts[front].is_up() => {
                self.hosts[front].kill_front();
                self.later.push((now + pause, Later::StartFront(front)));
            }
            Fault::FailVmHost(front, pause) if self.hosts[front].is_up() => {
                self.hosts[front].fail();
                self.later.push((now + pause, Later::StartFront(front)));
            }
            // An intruder must not find what nobody has.
            Fault::StopFront(..) | Fault::Move(..) if self.intruder.is_some() => {}
            Fault::StopFront(front, pause) if self.hosts[front].is_up() => {
                self.hosts[front].stop(pause);
                self.wake_all();
            }
            Fault::Haunt(front, pause) if self.hosts[front].is_up() => {
                // One that gives its volumes back before the next start comes
                // would leave them to the intruder.
                self.hosts[front].haunt(now + pause, self.intruder.is_none());
                self.later.push((now + AFTER_DEATH, Later::StartFront(front)));
            }
            Fault::Move(front, pause) if self.hosts[front].has_all() => {
                self.hosts[front].haunt(now + pause, true);
                self.later.push((now + AFTER_DEATH, Later::Move(front)));
            }
            // What is down already cannot fail.
            Fault::KillServer(_)
            | Fault::LosePower(_)
            | Fault::KillFront(..)
            | Fault::StopFront(..)
            | Fault::FailVmHost(..)
            | Fault::Haunt(..)
            | Fault::Move(..) => {}
            Fault::CutOffFront(front, pause) => self.cut_off(self.hosts[front].port(), pause),
            Fault::CutOffWorker(worker, pause) => self.cut_off(IoHost::port(worker), pause),
            Fault::Stall(worker, pause) => {
                self.stalls[worker] = now + pause;
                self.iohost.stall(worker, now + pause);
            }
            Fault::Intrude(front) if self.intruder.is_none() && self.hosts[front].has_all() => {
                let disk = self.scenario.hosts[front][0];
                let (volume, server) = (&self.hosts[front].guests[0].volume, disk.asked);
                let intruder =
                    Intruder::start(now, &self.fabric, volume.clone(), server, self.scenario.trust);
                self.intruder = Some(intruder.map_err(|error| Wrong(error.to_string()))?);
                self.wake_all();
            }
            Fault::Trouble(worker, trouble) if self.iohost.is_up() => {
                self.iohost.trouble(worker, trouble);
            }
            // Without a driver it has no commands, and starts anew.
            Fault::Trouble(..) => {}
            Fault::LoseCaches(worker) => self.iohost.lose_caches(worker),
            // There is nothing yet that it could take.
            Fault::Intrude(_) => {}
            Fault::Frames(faults) => self.fabric.faults = faults,
            Fault::Mtu(mtu, pause) => {
                self.fabric.mtu = mtu.min(self.scenario.mtu);
                self.later.push((now + pause, Later::Mtu));
            }
        }
        Ok(())
    }

    /// A worker's device is being reset.
    fn device_down(&mut self, worker: usize) {
        self.tell(|| format!("worker {worker}'s device is reset"));
        // Fronts send again what they keep, also what did run.
        self.unbroken = false;
        self.forgot(|disk| disk.worker == worker);
    }

    /// The server says from now on that what was not flushed of some disks may be
    /// missing. Fronts that serve have kept it and send it again.
    fn forgot(&mut self, whose: impl Fn(&DiskKind) -> bool) {
        for (host, disks) in self.hosts.iter_mut().zip(&self.scenario.hosts) {
            for (guest, _) in host.guests.iter_mut().zip(disks).filter(|(_, disk)| whose(disk)) {
                guest.server_forgot();
            }
        }
    }

    fn cut_off(&mut self, port: Port, pause: Duration) {
        self.fabric.cut_off(port);
        self.later.push((self.now + pause, Later::Join(port)));
    }

    fn catch_up(&mut self, what: Later) -> Result<(), Wrong> {
        self.tell(|| format!("{what:?}"));
        match what {
            Later::StartServer => self.start_server(),
            Later::StartFront(front) => self.start_front(front),
            Later::Move(front) => self.take_away(front),
            Later::Mtu => {
                self.fabric.mtu = self.scenario.mtu;
                Ok(())
            }
            Later::Join(port) => {
                self.fabric.join(port);
                Ok(())
            }
        }
    }

    /// Detaches the volumes of a front by force and starts another one for them,
    /// when their devices answer. What cannot be taken away is left to a later
    /// start of the same front.
    fn take_away(&mut self, front: usize) -> Result<(), Wrong> {
        let workers = self.scenario.hosts[front].iter().map(|disk| disk.worker);
        let silent = workers.map(|worker| self.stalls[worker]).max();
        if let Some(until) = silent.filter(|until| *until > self.now) {
            self.later.push((until, Later::Move(front)));
            return Ok(());
        }
        let volumes = self.hosts[front].guests.iter().map(|guest| guest.volume.clone());
        let disks = self.scenario.hosts[front].iter().map(|disk| disk.worker);
        let volumes: Vec<(usize, VolumeName)> = disks.zip(volumes).collect();
        let mut all = self.iohost.is_up();
        for (worker, volume) in &volumes {
            all = all && self.iohost.take_away(&mut self.now, *worker, volume).is_ok();
        }
        if all {
            self.hosts[front].be_another();
        }
        self.start_front(front)
    }

    fn start_server(&mut self) -> Result<(), Wrong> {
        self.stalls.fill(Time::ZERO);
        let started = self.iohost.start(self.now, &self.fabric);
        started.map_err(|error| Wrong(format!("the server does not start: {error:#}")))?;
        self.wake_all();
        Ok(())
    }

    fn start_front(&mut self, front: usize) -> Result<(), Wrong> {
        let started = self.hosts[front].start(self.now, &self.fabric);
        started.map_err(|error| Wrong(format!("a front does not start: {error}")))?;
        self.wake_all();
        Ok(())
    }
}
