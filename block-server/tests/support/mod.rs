//! A worker over a soft NVMe controller, and a guest that keeps its data in
//! vectors.
// Each test is a crate of its own and takes what it needs.
#![allow(dead_code, unreachable_pub)]

use std::cell::Cell;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::SystemTime;

use block_core::time::Clock;
use block_core::{BlockError, Op, SectorRange, Time};
use block_server::api::VolumeInfo;
use block_server::catalog::Formatting;
use block_server::errand::Failed;
use block_server::{
    Chance, Directory, Errand, Limits, LocalPath, Mailbox, NvmeEngine, Owned, Place, Size, Worker,
    WorkerIndex,
};
use link::{
    Access, AttachReply, AttachRequest, Attached, FrontId, Guest, Part, Path, Refused, Source,
    Token, VolumeHandle, VolumeName,
};
use nvme::soft::{FileIo, FileOptions};
use nvme::{LbaSize, Namespace, SoftNamespace, SoftOptions};
use tokio::sync::oneshot;

pub type SoftWorker = Worker<NvmeEngine>;
pub type SoftPath = LocalPath<NvmeEngine>;

pub const DEVICE_BYTES: u64 = 64 << 20;

pub fn place(worker: usize, directory: &Arc<Directory>) -> Place {
    let drawn = Cell::new(0u64);
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let seed = since.map_or(1, |since| since.as_nanos() as u64);
    Place {
        worker: WorkerIndex(worker),
        directory: Arc::clone(directory),
        mailbox: Mailbox::new().expect("an eventfd"),
        chance: Chance::new(move || {
            drawn.set(drawn.get() + 1);
            (drawn.get() ^ seed.rotate_left(20)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        }),
        wall: || 1_800_000_000,
    }
}

pub fn limits() -> Limits {
    Limits { sessions: 4, slots: 200, small_buffers: 64, large_buffers: 64 }
}

pub fn worker_over(namespace: SoftNamespace, place: Place) -> SoftWorker {
    worker_of(namespace, place, |device| Owned::raw("disk", device, Formatting::IfBlank))
}

fn worker_of(
    namespace: SoftNamespace,
    place: Place,
    owned: impl FnOnce(Namespace) -> Owned<Namespace>,
) -> SoftWorker {
    let clock = Clock::start();
    let clock: nvme::Clock = Arc::new(move || clock.now());
    let (engine, mut devices) =
        NvmeEngine::soft(SoftOptions::default(), vec![namespace], clock).expect("a controller");
    let device = devices.remove(0);
    Worker::over_nvme(engine, vec![owned(device)], place, limits()).expect("a worker")
}

pub fn memory_worker() -> (SoftWorker, Arc<Mailbox>) {
    let namespace = SoftNamespace::memory(DEVICE_BYTES, LbaSize::B4096).expect("memory");
    let place = place(0, &Arc::default());
    let mailbox = Arc::clone(&place.mailbox);
    (worker_over(namespace, place), mailbox)
}

pub fn file_worker(path: &FilePath) -> (SoftWorker, Arc<Mailbox>) {
    file_worker_of(path, |device| Owned::raw("disk", device, Formatting::IfBlank))
}

/// A worker over a file, whose device is owned as `owned` says.
pub fn file_worker_of(
    path: &FilePath,
    owned: impl FnOnce(Namespace) -> Owned<Namespace>,
) -> (SoftWorker, Arc<Mailbox>) {
    let options =
        FileOptions { path: path.to_owned(), create: Some(DEVICE_BYTES), io: FileIo::Auto };
    let namespace = SoftNamespace::file(&options, LbaSize::B512).expect("a file");
    let place = place(0, &Arc::default());
    let mailbox = Arc::clone(&place.mailbox);
    (worker_of(namespace, place, owned), mailbox)
}

pub fn name(text: &str) -> VolumeName {
    VolumeName::new(text).expect("a name")
}

pub fn front(number: u8) -> FrontId {
    FrontId([number; 16])
}

/// Leaves an errand and turns until it is answered.
pub fn errand<T>(
    mailbox: &Mailbox,
    mut turn: impl FnMut(),
    errand: impl FnOnce(oneshot::Sender<Result<T, Failed>>) -> Errand,
) -> Result<T, Failed> {
    let (answer, mut outcome) = oneshot::channel();
    mailbox.send(errand(answer));
    for _ in 0..1_000_000 {
        turn();
        if let Ok(outcome) = outcome.try_recv() {
            return outcome;
        }
    }
    panic!("the errand was not answered");
}

pub fn create(
    mailbox: &Mailbox,
    turn: impl FnMut(),
    volume: &str,
    bytes: u64,
) -> Result<VolumeInfo, Failed> {
    errand(mailbox, turn, |answer| Errand::Create {
        device: "disk".to_owned(),
        name: name(volume),
        size: Size(bytes),
        read_only: false,
        domain: None,
        answer,
    })
}

/// A guest whose part number `n` has the data `data[n]`.
#[derive(Default)]
pub struct VecGuest {
    pub data: Vec<Vec<u8>>,
    pub ended: Vec<(usize, Result<(), BlockError>)>,
}

impl Source for VecGuest {
    fn fetch(&mut self, token: Token, into: &mut [u8]) -> Result<(), BlockError> {
        into.copy_from_slice(&self.data[token.0 as usize]);
        Ok(())
    }
}

impl Guest for VecGuest {
    fn place(&mut self, token: Token, offset: usize, bytes: &[u8]) {
        self.data[token.0 as usize][offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn complete(&mut self, token: Token, outcome: Result<(), BlockError>) {
        self.ended.push((token.0 as usize, outcome));
    }
}

pub fn attach(path: &mut SoftPath, volume: &str, access: Access) -> Result<Attached, Refused> {
    match path.attach(AttachRequest::new(name(volume), access)) {
        AttachReply::Attached(attached) => Ok(attached),
        AttachReply::Refused(refused) => Err(refused),
        AttachReply::Elsewhere { .. } => panic!("there is one worker"),
    }
}

/// One request from beginning to end.
pub fn io(
    path: &mut SoftPath,
    volume: VolumeHandle,
    op: Op,
    start: u64,
    data: Vec<u8>,
) -> Result<Vec<u8>, BlockError> {
    let mut guest = VecGuest { data: vec![data], ended: Vec::new() };
    let count = (guest.data[0].len() / 512) as u32;
    let part = Part { token: Token(0), volume, op, range: SectorRange::new(start, count) };
    path.submit(Time::ZERO, part, &mut guest).expect("taken");
    while guest.ended.is_empty() {
        path.turn(Time::ZERO, &mut guest);
    }
    guest.ended[0].1.map(|()| guest.data.remove(0))
}
