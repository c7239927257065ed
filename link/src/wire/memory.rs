//! The wire inside one process and one thread: two queues.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::rc::Rc;

use crate::frame::HEADER_BYTES;
use crate::wire::{Peer, Wire};

/// An end's number in its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Port(pub u16);

impl Peer for Port {
    fn with_port(self, port: u16) -> Self {
        Self(port)
    }
}

/// A frame on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Who sent it.
    pub from: Port,
    /// Who shall get it.
    pub to: Port,
    /// The frame.
    pub bytes: Vec<u8>,
}

/// What the ends have sent and nobody has delivered, and each end's arrivals.
/// A test takes from the one and puts into the other as it sees fit;
/// [`Network::deliver_all`] is the perfect wire.
#[derive(Clone, Debug, Default)]
pub struct Network {
    sent: Queue,
    arrived: Rc<RefCell<Vec<(Port, Queue)>>>,
}

type Queue = Rc<RefCell<VecDeque<Datagram>>>;

/// One end of the wire.
#[derive(Debug)]
pub struct End {
    port: Port,
    sent: Queue,
    arrived: Queue,
}

impl Network {
    /// A network without ends.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an end with that number; an older one with the same number hears
    /// nothing from then on.
    #[must_use]
    pub fn end(&self, port: Port) -> End {
        let arrived = Queue::default();
        let mut ends = self.arrived.borrow_mut();
        ends.retain(|(other, _)| *other != port);
        ends.push((port, Rc::clone(&arrived)));
        End { port, sent: Rc::clone(&self.sent), arrived }
    }

    /// Takes the oldest frame that was sent and not delivered.
    #[must_use]
    pub fn take(&self) -> Option<Datagram> {
        self.sent.borrow_mut().pop_front()
    }

    /// Lets a frame arrive; one to nobody is lost.
    pub fn deliver(&self, datagram: Datagram) {
        let ends = self.arrived.borrow();
        if let Some((_, queue)) = ends.iter().find(|(port, _)| *port == datagram.to) {
            queue.borrow_mut().push_back(datagram);
        }
    }

    /// Lets everything arrive as it was sent; how many frames.
    pub fn deliver_all(&self) -> usize {
        std::iter::from_fn(|| self.take()).map(|datagram| self.deliver(datagram)).count()
    }
}

impl Wire for End {
    type Peer = Port;

    fn receive(&mut self, take: &mut dyn FnMut(&Port, &mut [u8])) -> io::Result<usize> {
        let mut frames = 0;
        while let Some(mut datagram) = self.arrived.borrow_mut().pop_front() {
            take(&datagram.from, &mut datagram.bytes);
            frames += 1;
        }
        Ok(frames)
    }

    fn send(&mut self, &to: &Port, header: &[u8; HEADER_BYTES], payload: &[u8]) {
        let bytes = [header, payload].concat();
        self.sent.borrow_mut().push_back(Datagram { from: self.port, to, bytes });
    }

    fn flush(&mut self) {}

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn window(&self) -> u32 {
        4 << 20
    }
}
