//! A driver that others wrote, against a front over a real socket, with a
//! model that knows what every read must return.

mod world;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::time::Timespec;
use virtio_driver::{
    VhostUser, VirtioBlkConfig, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkReqBuf,
    VirtioFeatureFlags, VirtioTransport,
};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};
use world::{Idle, Manners, RUDE, SWIFT, World};

const SECTORS: u64 = 1 << 14;
const DEPTH: usize = 8;
/// Disk bytes and memory bytes of each request under way.
const STRIPE: usize = 512 << 10;

type Transport = VhostUser<VirtioBlkConfig, VirtioBlkReqBuf>;

fn connect(world: &World, disk: usize, features: VirtioFeatureFlags) -> Transport {
    let blk = VirtioBlkFeatureFlags::all() - VirtioBlkFeatureFlags::RO;
    let features = blk.bits() | (features | VirtioFeatureFlags::VERSION_1).bits();
    VhostUser::new(world.sockets[disk].to_str().expect("UTF-8"), features).expect("connect")
}

fn shared(bytes: usize) -> MmapRegion<()> {
    let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memfd"));
    file.set_len(bytes as u64).expect("grow");
    MmapRegion::from_file(FileOffset::new(file, 0), bytes).expect("map")
}

fn share(transport: &mut Transport, memory: &MmapRegion<()>) {
    let file = memory.file_offset().expect("of a file").file().as_raw_fd();
    transport.map_mem_region(memory.as_ptr().addr(), memory.size(), file, 0).expect("shared");
}

struct Chance(u64);

impl Chance {
    fn below(&mut self, count: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % count as u64) as usize
    }
}

/// What one request under way will have done when it has ended.
#[derive(Clone, Debug)]
enum Doing {
    Nothing,
    Read { at: usize, len: usize },
    Write { at: usize, data: Vec<u8> },
    Zero { at: usize, len: usize },
    Flush,
}

/// One place of a queue: a stripe of the disk, as much memory, and the model.
struct Place {
    disk: usize,
    memory: usize,
    model: Vec<u8>,
    doing: Doing,
}

struct Client<'a> {
    queue: VirtioBlkQueue<'a, usize>,
    notify: Box<dyn virtio_driver::QueueNotifier>,
    called: Arc<virtio_driver::EventFd>,
    places: Vec<Place>,
}

impl Client<'_> {
    /// Asks for something random at a place that has nothing to do.
    fn ask(&mut self, number: usize, memory: &MmapRegion<()>, chance: &mut Chance) {
        let place = &mut self.places[number];
        let most = [8, 64, STRIPE / 512][chance.below(3)];
        let sectors = 1 + chance.below(most);
        let at = chance.below(STRIPE / 512 - sectors + 1) * 512;
        let len = sectors * 512;
        let disk = (place.disk + at) as u64;
        let window = memory.as_volatile_slice();
        let mut data: Vec<u8> =
            std::iter::repeat_with(|| chance.below(256) as u8).take(64).collect();
        data = data.iter().copied().cycle().take(len).collect();
        let pieces = cut(place.memory, len, chance);
        match chance.below(10) {
            0..4 => {
                window.write_slice(&vec![0xee; len], place.memory).expect("fits");
                world::sys::transfer(&mut self.queue, false, disk, memory, &pieces, number)
                    .expect("asked");
                place.doing = Doing::Read { at, len };
            }
            4..8 => {
                window.write_slice(&data, place.memory).expect("fits");
                world::sys::transfer(&mut self.queue, true, disk, memory, &pieces, number)
                    .expect("asked");
                place.doing = Doing::Write { at, data };
            }
            8 => {
                let unmap = chance.below(2) == 1;
                self.queue.write_zeroes(disk, len as u64, unmap, number).expect("asked");
                place.doing = Doing::Zero { at, len };
            }
            _ => {
                self.queue.flush(number).expect("asked");
                place.doing = Doing::Flush;
            }
        }
    }

    /// Takes what has ended; returns how many requests that were.
    fn reap(&mut self, memory: &MmapRegion<()>) -> usize {
        let ended: Vec<_> = self.queue.completions().map(|c| (c.context, c.ret)).collect();
        for &(number, result) in &ended {
            assert_eq!(result, 0, "no request fails");
            let place = &mut self.places[number];
            match std::mem::replace(&mut place.doing, Doing::Nothing) {
                Doing::Read { at, len } => {
                    let mut read = vec![0; len];
                    memory.as_volatile_slice().read_slice(&mut read, place.memory).expect("fits");
                    assert!(read == place.model[at..at + len], "a read returns what was written");
                }
                Doing::Write { at, data } => place.model[at..][..data.len()].copy_from_slice(&data),
                Doing::Zero { at, len } => place.model[at..at + len].fill(0),
                Doing::Flush => {}
                Doing::Nothing => panic!("answered twice"),
            }
        }
        ended.len()
    }

    fn wait_for_call(&self) {
        let mut fds = [PollFd::new(&*self.called, PollFlags::IN)];
        let timeout = Timespec { tv_sec: 5, tv_nsec: 0 };
        assert_eq!(poll(&mut fds, Some(&timeout)), Ok(1), "a completion is announced");
        let _ = self.called.read();
    }
}

/// Memory from `from` on, cut into pieces at random places.
fn cut(from: usize, len: usize, chance: &mut Chance) -> Vec<(usize, usize)> {
    let mut cuts: Vec<usize> = (0..chance.below(5)).map(|_| chance.below(len)).collect();
    cuts.extend([0, len]);
    cuts.sort_unstable();
    cuts.dedup();
    cuts.windows(2).map(|pair| (from + pair[0], pair[1] - pair[0])).collect()
}

#[derive(Clone, Copy)]
struct Case {
    queues: usize,
    features: VirtioFeatureFlags,
    manners: Manners,
    idle: Idle,
    /// Whether the driver waits for calls or looks by itself.
    calls: bool,
    requests: usize,
}

fn verify(case: Case) {
    let world = World::new(1, SECTORS, case.manners, case.idle, |_| ());
    let mut transport = connect(&world, 0, case.features);
    let memory = shared(case.queues * DEPTH * STRIPE);
    share(&mut transport, &memory);
    let queues =
        VirtioBlkQueue::<usize>::setup_queues(&mut transport, case.queues, 128).expect("queues");
    let mut clients: Vec<_> = queues
        .into_iter()
        .enumerate()
        .map(|(number, mut queue)| {
            queue.set_used_notif_enabled(case.calls);
            let place = |slot| {
                let at = (number * DEPTH + slot) * STRIPE;
                Place {
                    disk: at % (SECTORS as usize * 512),
                    memory: at,
                    model: vec![0; STRIPE],
                    doing: Doing::Nothing,
                }
            };
            Client {
                queue,
                notify: transport.get_submission_notifier(number),
                called: transport.get_completion_fd(number),
                places: (0..DEPTH).map(place).collect(),
            }
        })
        .collect();
    assert!(case.queues * DEPTH * STRIPE <= SECTORS as usize * 512);

    let mut chance = Chance(0x1234_5678_9abc_def1);
    let (mut asked, mut ended) = (0, 0);
    let mut moved = Instant::now();
    while ended < case.requests {
        for client in &mut clients {
            for place in 0..DEPTH {
                if matches!(client.places[place].doing, Doing::Nothing) && asked < case.requests {
                    client.ask(place, &memory, &mut chance);
                    asked += 1;
                }
            }
            if client.queue.avail_notif_needed() {
                client.notify.notify().expect("kick");
            }
        }
        for client in &mut clients {
            let count = client.reap(&memory);
            ended += count;
            let busy = client.places.iter().any(|place| !matches!(place.doing, Doing::Nothing));
            if count > 0 {
                moved = Instant::now();
            } else if case.calls && busy {
                client.wait_for_call();
            } else {
                std::thread::yield_now();
            }
        }
        assert!(moved.elapsed() < Duration::from_secs(5), "{ended} of {asked} have ended");
    }
    drop(transport);
    let disks = world.end();
    for place in clients.iter().flat_map(|client| &client.places) {
        assert!(disks[0][place.disk..][..STRIPE] == place.model, "the volume is as the model");
    }
}

#[test]
fn one_queue_polled_on_both_sides() {
    verify(Case {
        queues: 1,
        features: VirtioFeatureFlags::RING_EVENT_IDX,
        manners: SWIFT,
        idle: Idle::Yield,
        calls: false,
        requests: 3000,
    });
}

#[test]
fn two_queues_with_event_indices_both_sides_asleep() {
    verify(Case {
        queues: 2,
        features: VirtioFeatureFlags::RING_EVENT_IDX,
        manners: SWIFT,
        idle: Idle::Sleep,
        calls: true,
        requests: 1500,
    });
}

#[test]
fn two_queues_without_event_indices_both_sides_asleep() {
    verify(Case {
        queues: 2,
        features: VirtioFeatureFlags::empty(),
        manners: SWIFT,
        idle: Idle::Sleep,
        calls: true,
        requests: 1500,
    });
}

/// Little room, answers out of order, reads in segments that split sectors.
#[test]
fn two_queues_over_a_path_that_does_all_it_may() {
    verify(Case {
        queues: 2,
        features: VirtioFeatureFlags::RING_EVENT_IDX,
        manners: RUDE,
        idle: Idle::Yield,
        calls: false,
        requests: 1500,
    });
}
