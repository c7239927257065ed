//! A worker with three devices, of which two get stuck, fail and go away under
//! a load that is verified. Their guests see a pause, the third one's nothing.

mod support;

use std::collections::VecDeque;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use block_core::{BlockError, Op, SectorRange, Time};
use block_server::catalog::Formatting;
use block_server::errand::{Failed, PoolErrand};
use block_server::unlock::Unlock;
use block_server::{Errand, Mailbox, NvmeEngine, Owned, Size, Worker, WorkerStation};
use link::wire::Wire;
use link::wire::memory::{End, Network, Port};
use link::{
    Access, Client, ClientSettings, Part, Path, Server, ServerSettings, Token, VolumeHandle,
    VolumeState,
};
use nvme::soft::{Disorder, Fault, Image};
use nvme::{LbaSize, Patience, SoftController, SoftNamespace, SoftOptions};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use support::{VecGuest, front, limits, name, place};
use tokio::sync::oneshot;
use turn::Station;

const SERVER: Port = Port(1);
const SECTORS: u64 = 1024;
const DEVICES: usize = 3;
/// The second device is a pool.
const POOL: usize = 1;
/// Nothing happens to the third one.
const QUIET: usize = 2;

/// What a turn takes, in the time of the test.
const TURN: Duration = Duration::from_micros(20);

const PATIENCE: Patience = Patience {
    command: Duration::from_millis(20),
    abort: Duration::from_millis(2),
    resets: 4,
    pause: Duration::from_millis(50),
};

struct Rig {
    clock: Arc<AtomicU64>,
    soft: Vec<Arc<SoftController>>,
    mailbox: Arc<Mailbox>,
    network: Network,
    station: WorkerStation<NvmeEngine, End>,
    client: Client<End>,
    guest: VecGuest,
    volumes: Vec<VolumeHandle>,
    now: Time,
    _folder: tempfile::TempDir,
}

impl Rig {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let key = folder.path().join("key");
        std::fs::write(&key, [7; 32]).expect("written");
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).expect("a mode");
        let clock = Arc::new(AtomicU64::new(0));
        let told = Arc::clone(&clock);
        let namespaces = (0..DEVICES)
            .map(|_| SoftNamespace::losing_memory(64 << 20, LbaSize::B4096, Image::default()));
        let options = SoftOptions {
            disorder: Some(Disorder { seed: 5, held: 8, delay: 1 }),
            ..SoftOptions::default()
        };
        // Whoever waits for a controller sees time go by.
        let told: nvme::Clock =
            Arc::new(move || Time::from_nanos(told.fetch_add(100, Ordering::Relaxed)));
        let (mut engine, devices) =
            NvmeEngine::soft(options, namespaces.collect(), told).expect("controllers");
        let mut soft = Vec::new();
        for device in 0..DEVICES {
            engine.set_patience(device, PATIENCE);
            soft.push(Arc::clone(engine.soft_controller(device).expect("a soft one")));
        }
        let owned = devices.into_iter().enumerate().map(|(device, namespace)| Owned {
            unlock: (device == POOL).then(|| Unlock::KeyFile(key.clone())),
            ..Owned::raw(&format!("disk{device}"), namespace, Formatting::IfBlank)
        });
        let place = place(0, &Arc::default());
        let mailbox = Arc::clone(&place.mailbox);
        let worker = Worker::over_nvme(engine, owned.collect(), place, limits()).expect("a worker");
        let network = Network::new();
        let wire = network.end(SERVER);
        let settings = ServerSettings { sessions: 2, slots: 32, window: wire.window(), seed: 7 };
        let station = WorkerStation::new(wire, Server::new(settings), worker);
        let settings = ClientSettings {
            front: front(1),
            incarnation: 1,
            least_timeout: ClientSettings::LEAST_TIMEOUT,
            seed: 3,
            kept_bytes: ClientSettings::LEAST_KEPT_BYTES,
        };
        let client = Client::new(network.end(Port(2)), settings);
        let mut rig = Self {
            clock,
            soft,
            mailbox,
            network,
            station,
            client,
            guest: VecGuest::default(),
            volumes: Vec::new(),
            now: Time::ZERO,
            _folder: folder,
        };
        rig.furnish();
        rig
    }

    fn furnish(&mut self) {
        let create = |answer| PoolErrand::Create {
            device: "disk1".to_owned(),
            journal: Some(Size(64 * 4096)),
            overwrite: false,
            answer,
        };
        self.ask(|answer| Errand::Pool(create(answer))).expect("a pool");
        for device in 0..DEVICES {
            self.ask(|answer| Errand::Create {
                device: format!("disk{device}"),
                name: name(&format!("vm{device}")),
                size: Size(SECTORS * 512),
                read_only: false,
                domain: None,
                answer,
            })
            .expect("a volume");
            let volume = name(&format!("vm{device}"));
            let volume = self.client.attach(self.now, SERVER, volume, Access::Write);
            self.volumes.push(volume.expect("memory"));
        }
        for device in 0..DEVICES {
            for _ in 0..100_000 {
                self.turn();
                if let VolumeState::Attached(_) = self.client.state(self.volumes[device]) {
                    self.client.settle(self.volumes[device]);
                    break;
                }
            }
        }
    }

    fn turn(&mut self) {
        self.now = self.now + TURN;
        self.clock.store(self.now.nanos(), Ordering::Relaxed);
        self.client.turn(self.now, &mut self.guest);
        self.network.deliver_all();
        self.station.turn(self.now);
        self.network.deliver_all();
    }

    fn ask<T>(
        &mut self,
        make: impl FnOnce(oneshot::Sender<Result<T, Failed>>) -> Errand,
    ) -> Result<T, String> {
        let (answer, mut outcome) = oneshot::channel();
        self.mailbox.send(make(answer));
        for _ in 0..1_000_000 {
            self.turn();
            if let Ok(outcome) = outcome.try_recv() {
                return outcome.map_err(|failed| failed.to_string());
            }
        }
        panic!("the errand was not answered");
    }
}

/// A guest's load on each volume, and what each sector must hold.
struct Load {
    random: StdRng,
    models: Vec<Vec<u8>>,
    under_way: VecDeque<(usize, Part)>,
    flushes: u64,
    ended: [u64; DEVICES],
    last: [Time; DEVICES],
    /// The longest time in which nothing ended on a volume.
    pause: [Duration; DEVICES],
}

impl Load {
    fn new(now: Time) -> Self {
        Self {
            random: StdRng::seed_from_u64(11),
            models: vec![vec![0; SECTORS as usize]; DEVICES],
            under_way: VecDeque::new(),
            flushes: 0,
            ended: [0; DEVICES],
            last: [now; DEVICES],
            pause: [Duration::ZERO; DEVICES],
        }
    }

    /// A turn: maybe asks for something, and looks at what has ended.
    fn turn(&mut self, rig: &mut Rig, asks: bool) {
        let disk = self.random.random_range(0..DEVICES);
        let here = self.under_way.iter().filter(|(other, _)| *other == disk).count();
        if asks && here < 8 {
            self.ask(rig, disk);
        }
        rig.turn();
        for (token, outcome) in std::mem::take(&mut rig.guest.ended) {
            let at = self.under_way.iter().position(|(_, part)| part.token.0 == token as u64);
            let (disk, part) = self.under_way.remove(at.expect("it was under way")).expect("there");
            assert_eq!(outcome, Ok(()), "{:?} of disk {disk}", part.op);
            self.check(rig, disk, part);
            self.pause[disk] = self.pause[disk].max(rig.now - self.last[disk]);
            self.last[disk] = rig.now;
            self.ended[disk] += 1;
        }
    }

    fn ask(&mut self, rig: &mut Rig, disk: usize) {
        let ops = [
            Op::Read,
            Op::Read,
            Op::Write,
            Op::Write,
            Op::WriteThrough,
            Op::WriteZeroes,
            Op::Flush,
        ];
        let op = ops[self.random.random_range(0..ops.len())];
        let count = [1, 8, 8, 40][self.random.random_range(0..4)];
        let start = self.random.random_range(0..SECTORS - u64::from(count));
        let range = SectorRange::new(start, count).filter(|_| op != Op::Flush);
        let apart = |(other_disk, other): &(usize, Part)| {
            let blocks = |range: SectorRange| range.start() / 8..range.end().div_ceil(8);
            let (Some(one), Some(other)) = (range, other.range) else { return true };
            let (one, other) = (blocks(one), blocks(other));
            *other_disk != disk || one.end <= other.start || other.end <= one.start
        };
        if !self.under_way.iter().all(apart) {
            return;
        }
        let token = Token(rig.guest.data.len() as u64);
        let part = Part { token, volume: rig.volumes[disk], op, range };
        let bytes = range.map_or(0, SectorRange::bytes) as usize;
        rig.guest.data.push(vec![stamp(part); bytes]);
        match rig.client.submit(rig.now, part, &mut rig.guest) {
            Ok(()) => self.under_way.push_back((disk, part)),
            Err(link::Refusal::Busy) => drop(rig.guest.data.pop()),
            Err(refusal) => panic!("{refusal:?} on disk {disk}"),
        }
    }

    fn check(&mut self, rig: &mut Rig, disk: usize, part: Part) {
        let data = std::mem::take(&mut rig.guest.data[part.token.0 as usize]);
        let Some(range) = part.range else {
            self.flushes += 1;
            return;
        };
        let sectors = range.start() as usize..range.end() as usize;
        let model = &mut self.models[disk];
        match part.op {
            Op::Read => {
                for (sector, bytes) in sectors.zip(data.chunks_exact(512)) {
                    let (found, expected) = (bytes[0], model[sector]);
                    assert!(bytes.iter().all(|&byte| byte == found), "torn: {disk}/{sector}");
                    assert_eq!(found, expected, "sector {sector} of disk {disk}");
                }
            }
            Op::WriteZeroes => model[sectors].fill(0),
            _ => model[sectors].fill(stamp(part)),
        }
    }
}

fn stamp(part: Part) -> u8 {
    (part.token.0 % 251) as u8 + 1
}

/// Each kind of trouble, on the raw device and on the pool, under load: nothing
/// that was answered is lost, whatever the cache loses, and no request fails.
/// The third device goes on all the time.
#[test]
fn a_device_in_trouble_is_a_pause_for_its_guests_and_nothing_for_others() {
    let mut rig = Rig::new();
    let mut load = Load::new(rig.now);
    for device in 0..QUIET {
        rig.soft[device].inject(Fault::LossyReset { seed: 40 + device as u64 });
    }
    let troubles = [
        (Fault::Stick { count: 3 }, None),
        (Fault::StickFast { count: 2 }, None),
        (Fault::Fatal, None),
        (Fault::Removal, Some(Fault::Return { seed: 9 })),
        (Fault::StickFast { count: 1 }, None),
    ];
    for (round, (fault, end)) in troubles.into_iter().enumerate() {
        for device in 0..QUIET {
            for _ in 0..600 {
                load.turn(&mut rig, true);
            }
            rig.soft[device].inject(fault);
            for turn in 0..8_000 {
                load.turn(&mut rig, true);
                if let (2_500, Some(end)) = (turn, end) {
                    rig.soft[device].inject(end);
                }
            }
            // The front asks for the volume again after a second.
            let before = load.ended;
            for _ in 0..60_000 {
                load.turn(&mut rig, true);
                if load.ended[device] > before[device] + 20 {
                    break;
                }
            }
            assert!(
                load.ended[device] > before[device] + 20,
                "round {round}: {device} stands still"
            );
        }
    }
    while !load.under_way.is_empty() {
        load.turn(&mut rig, false);
    }
    // All of it once more, from the devices as they are after a last reset.
    for device in 0..QUIET {
        rig.soft[device].inject(Fault::StickFast { count: 1 });
    }
    for disk in 0..DEVICES {
        for at in (0..SECTORS).step_by(8) {
            let token = Token(rig.guest.data.len() as u64);
            let range = SectorRange::new(at, 8);
            let part = Part { token, volume: rig.volumes[disk], op: Op::Read, range };
            rig.guest.data.push(vec![0xee; 4096]);
            while rig.client.submit(rig.now, part, &mut rig.guest).is_err() {
                load.turn(&mut rig, false);
            }
            load.under_way.push_back((disk, part));
        }
    }
    while !load.under_way.is_empty() {
        load.turn(&mut rig, false);
    }
    let devices = rig.ask(Errand::Devices).expect("answered");
    let resets: Vec<u64> = devices.iter().map(|device| device.resets).collect();
    assert!(resets[0] >= 5 && resets[POOL] >= 5, "{resets:?}");
    assert_eq!(resets[QUIET], 0);
    assert!(devices.iter().all(|device| device.problem.is_none()), "{devices:?}");
    // A pause ends a second after the device is back; the others' pauses
    // are those of the load.
    assert!(load.pause[0] > Duration::from_secs(1), "{:?}", load.pause);
    assert!(load.pause[POOL] > Duration::from_secs(1), "{:?}", load.pause);
    assert!(load.pause[QUIET] < Duration::from_millis(100), "{:?}", load.pause);
    println!("pauses {:?}, requests {:?}", load.pause, load.ended);
}

/// A device that does not come back fails what is asked of it, and says why;
/// the others and the server live on.
#[test]
fn a_device_that_does_not_come_back_is_given_up_by_name() {
    for device in 0..QUIET {
        let mut rig = Rig::new();
        let submit = |rig: &mut Rig, disk: usize, op| {
            let token = Token(rig.guest.data.len() as u64);
            let range = SectorRange::new(0, 8);
            let part = Part { token, volume: rig.volumes[disk], op, range };
            rig.guest.data.push(vec![1; 4096]);
            let mut outcome = None;
            let mut taken = false;
            for _ in 0..1_000_000 {
                if !taken {
                    match rig.client.submit(rig.now, part, &mut rig.guest) {
                        Ok(()) => taken = true,
                        Err(link::Refusal::Busy) => {}
                        Err(link::Refusal::Failed(error)) => return Err(error),
                    }
                }
                rig.turn();
                outcome = outcome.or(rig.guest.ended.pop());
                if let Some((_, outcome)) = outcome {
                    return outcome;
                }
            }
            panic!("no answer");
        };
        assert_eq!(submit(&mut rig, device, Op::Write), Ok(()));
        assert_eq!(submit(&mut rig, device, Op::Read), Ok(()));
        rig.soft[device].inject(Fault::Removal);
        // Blocks that a cache has are read until the trouble is noticed.
        while submit(&mut rig, device, Op::Write).is_ok() {}
        for _ in 0..3 {
            assert!(submit(&mut rig, device, Op::Read).is_err());
            assert_eq!(submit(&mut rig, QUIET, Op::Write), Ok(()));
        }
        let devices = rig.ask(Errand::Devices).expect("answered");
        let problem = devices[device].problem.clone().expect("it is given up");
        assert!(problem.contains(&format!("device 'disk{device}' is given up")), "{problem}");
        assert!(problem.contains("does not answer"), "{problem}");
        assert!(devices[QUIET].problem.is_none());
        let refused = rig.ask(|answer| Errand::Create {
            device: format!("disk{device}"),
            name: name("more"),
            size: Size(1 << 20),
            read_only: false,
            domain: None,
            answer,
        });
        assert!(refused.expect_err("it is given up").contains("given up"));
        assert!(matches!(
            rig.client.state(rig.volumes[device]),
            VolumeState::Broken(BlockError::Medium)
        ));
        rig.client.detach(rig.volumes[QUIET]);
        while rig.client.state(rig.volumes[QUIET]) != VolumeState::Detached {
            rig.turn();
        }
    }
}
