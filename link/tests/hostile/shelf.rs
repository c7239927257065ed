//! A worker that holds the link's server to its promises: volumes in memory.

use std::collections::{BTreeMap, VecDeque};

use block_core::unit::MAX_REQUEST_BYTES;
use block_core::{BLOCK_SIZE, BlockError, Buffer, Op, Pool, SECTOR_SIZE};
use link::{
    AttachReply, AttachRequest, Attached, Caller, Host, Refused, Reply, SessionIndex, SlotRef,
    VolumeHandle, Work,
};

/// Sectors of each volume.
pub(crate) const SECTORS: u64 = 1024;

/// How many buffers there are.
const BUFFERS: usize = 6;

/// Most buffers of one session: it leaves some to others.
const SHARE: usize = 3;

/// The volumes that there are: a handle is a place here.
const NAMES: [&str; 2] = ["a", "b"];

/// The worker.
pub(crate) struct Shelf {
    volumes: [Vec<u8>; NAMES.len()],
    pool: Pool,
    running: VecDeque<(SlotRef, Work)>,
    open: BTreeMap<u16, u16>,
    closing: Vec<u16>,
    /// What each session has attached.
    attached: Vec<(u16, VolumeHandle)>,
    /// How many requests ran.
    pub(crate) ran: usize,
}

impl Shelf {
    pub(crate) fn new() -> Self {
        Self {
            volumes: [(); NAMES.len()].map(|()| vec![0; SECTORS as usize * SECTOR_SIZE]),
            pool: Pool::private(BUFFERS, MAX_REQUEST_BYTES + BLOCK_SIZE).expect("memory"),
            running: VecDeque::new(),
            open: BTreeMap::new(),
            closing: Vec::new(),
            attached: Vec::new(),
            ran: 0,
        }
    }

    /// Ends the oldest of what runs.
    pub(crate) fn finish(&mut self) -> Option<(SlotRef, Reply)> {
        let (at, work) = self.running.pop_front()?;
        let reply = match work {
            Work::Attach(request) => self.attach(at, &request),
            Work::Detach(_) => Reply::plain(Ok(()), 0),
            Work::Block { volume, mut request } => {
                let outcome = self.run(at, volume, &mut request);
                Reply { buffer: request.buffer, ..Reply::plain(outcome, 1) }
            }
        };
        Some((at, reply))
    }

    fn attach(&mut self, at: SlotRef, request: &AttachRequest) -> Reply {
        let place = NAMES.iter().position(|name| *name == request.name.as_str());
        let reply = place.map_or(AttachReply::Refused(Refused::Unknown), |place| {
            let handle = VolumeHandle(place as u16);
            self.attached.push((at.session.0, handle));
            AttachReply::Attached(Attached {
                handle,
                volume_id: [place as u8; 16],
                generation: 1,
                verifier: 1,
                stored_verifier: 1,
                sectors: SECTORS,
                read_only: false,
            })
        });
        Reply { attach: Some(Box::new(reply)), ..Reply::plain(Ok(()), 0) }
    }

    fn run(
        &mut self,
        at: SlotRef,
        volume: VolumeHandle,
        request: &mut block_core::Request,
    ) -> Result<(), BlockError> {
        self.ran += 1;
        if !self.attached.contains(&(at.session.0, volume)) {
            return Err(BlockError::NotAttached);
        }
        let Some(range) = request.range else {
            assert_eq!(request.op, Op::Flush, "only a flush has no range");
            return Ok(());
        };
        let bytes = range.start() as usize * SECTOR_SIZE..range.end() as usize * SECTOR_SIZE;
        let volume = &mut self.volumes[usize::from(volume.0)];
        let place = volume.get_mut(bytes).ok_or(BlockError::OutOfRange)?;
        if request.op == Op::Read || request.op.carries_data() {
            let buffer = request.buffer.as_mut().expect("data has a buffer");
            let touched = range.blocks_touched().count.0 as usize * BLOCK_SIZE;
            assert!(buffer.len() >= touched, "the buffer is large enough");
            let data = &mut buffer[range.offset_in_block()..][..place.len()];
            match request.op {
                Op::Read => data.copy_from_slice(place),
                _ => place.copy_from_slice(data),
            }
        } else {
            place.fill(0);
        }
        Ok(())
    }
}

impl Host for Shelf {
    fn buffer(&mut self, bytes: usize, held: usize) -> Option<Buffer> {
        assert!(bytes <= MAX_REQUEST_BYTES + BLOCK_SIZE, "no request is larger");
        assert!(bytes.is_multiple_of(BLOCK_SIZE));
        if held < SHARE { self.pool.take() } else { None }
    }

    fn opened(&mut self, session: SessionIndex, _: Caller, _: u64, slots: u16) {
        assert!(self.open.insert(session.0, slots).is_none(), "a session opens once");
    }

    fn start(&mut self, at: SlotRef, work: Work) {
        let slots = self.open.get(&at.session.0).expect("the session is open");
        assert!(at.slot < *slots, "the session has that slot");
        assert!(!self.closing.contains(&at.session.0), "nothing begins in a session that ends");
        let runs = self.running.iter().any(|(running, _)| *running == at);
        assert!(!runs, "a slot runs one request at a time");
        self.running.push_back((at, work));
    }

    fn closing(&mut self, session: SessionIndex) {
        assert!(self.open.contains_key(&session.0) && !self.closing.contains(&session.0));
        self.closing.push(session.0);
    }

    fn closed(&mut self, session: SessionIndex) {
        assert!(self.open.remove(&session.0).is_some());
        self.closing.retain(|closing| *closing != session.0);
        self.attached.retain(|(of, _)| *of != session.0);
        let runs = self.running.iter().any(|(running, _)| running.session == session);
        assert!(!runs, "all requests of a session that has closed have been answered");
    }
}
