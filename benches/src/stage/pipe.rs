//! A wire without a kernel: each frame is copied once, into memory that is there.

use std::cell::RefCell;
use std::io;
use std::os::fd::BorrowedFd;
use std::rc::Rc;

use link::frame::{HEADER_BYTES, MAX_FRAME};
use link::wire::Wire;
use link::wire::memory::Port;

/// Frames that wait at most; more are lost, as on any wire.
const ROOM: usize = 256;

/// One end.
pub(super) struct Pipe {
    peer: Port,
    sent: Rc<RefCell<Queue>>,
    arrived: Rc<RefCell<Queue>>,
}

/// Frames that were sent and not taken.
struct Queue {
    frames: Vec<(usize, [u8; MAX_FRAME])>,
    waiting: usize,
}

/// Both ends, the peer of each being the other's name.
pub(super) fn pair(names: [Port; 2]) -> [Pipe; 2] {
    let [one, other] = [(); 2].map(|()| {
        let frames = vec![(0, [0; MAX_FRAME]); ROOM];
        Rc::new(RefCell::new(Queue { frames, waiting: 0 }))
    });
    let [first, second] = names;
    [
        Pipe { peer: second, sent: Rc::clone(&one), arrived: Rc::clone(&other) },
        Pipe { peer: first, sent: other, arrived: one },
    ]
}

impl Wire for Pipe {
    type Peer = Port;

    fn receive(&mut self, take: &mut dyn FnMut(&Port, &mut [u8])) -> io::Result<usize> {
        let mut queue = self.arrived.borrow_mut();
        let waiting = std::mem::take(&mut queue.waiting);
        for (bytes, frame) in &mut queue.frames[..waiting] {
            take(&self.peer, &mut frame[..*bytes]);
        }
        Ok(waiting)
    }

    fn send(&mut self, _: &Port, header: &[u8; HEADER_BYTES], payload: &[u8]) {
        let mut queue = self.sent.borrow_mut();
        let place = queue.waiting;
        let Some((bytes, frame)) = queue.frames.get_mut(place) else { return };
        *bytes = HEADER_BYTES + payload.len();
        frame[..HEADER_BYTES].copy_from_slice(header);
        frame[HEADER_BYTES..*bytes].copy_from_slice(payload);
        queue.waiting += 1;
    }

    fn flush(&mut self) {}

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn window(&self) -> u32 {
        (ROOM * MAX_FRAME) as u32
    }
}
