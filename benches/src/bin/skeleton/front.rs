//! The front: from the ring into the network and back.

use std::io::IoSlice;
use std::net::SocketAddr;
use std::path::Path;

use crate::message::{FULL, HEADER, write};
use crate::ring::{ENTRIES, Ring};
use crate::socket::{BARE_BURST, FULL_BURST, Socket};

/// Serves until it is killed.
pub(crate) fn serve(ring: &Path, here: SocketAddr, there: SocketAddr) -> anyhow::Result<()> {
    let mut socket = Socket::connect(here, there)?;
    let ring = Ring::make(ring)?;
    let (mut seen, mut done) = (0_u32, 0_u32);
    loop {
        let head = ring.head();
        let mut worked = seen != head;
        while seen != head {
            seen = send(&ring, &mut socket, seen, head)?;
        }
        while seen != done && receive(&ring, &mut socket, &mut done)? {
            worked = true;
        }
        if !worked {
            // Its core is also the server's.
            rustix::thread::sched_yield();
        }
    }
}

/// Sends the next burst of alike requests; the first that is not sent.
fn send(ring: &Ring, socket: &mut Socket, seen: u32, head: u32) -> anyhow::Result<u32> {
    let mut headers = [[0; HEADER]; BARE_BURST];
    let mut requests = [ring.request(seen); BARE_BURST];
    let carries = requests[0].write;
    let most = if carries { FULL_BURST } else { BARE_BURST };
    let mut count = 0;
    while count < most && count as u32 != head.wrapping_sub(seen) {
        let request = ring.request(seen.wrapping_add(count as u32));
        if request.write != carries {
            break;
        }
        requests[count] = request;
        write(request, &mut headers[count]);
        count += 1;
    }
    let mut parts = [IoSlice::new(&[]); 2 * BARE_BURST];
    let mut used = 0;
    for (header, request) in headers[..count].iter().zip(requests) {
        parts[used] = IoSlice::new(header);
        used += 1;
        if carries {
            parts[used] = IoSlice::new(ring.slot(request.slot));
            used += 1;
        }
    }
    socket.send(&parts[..used], if carries { FULL } else { HEADER })?;
    Ok(seen.wrapping_add(count as u32))
}

/// Takes a burst of answers and tells the client; false when there is none.
fn receive(ring: &Ring, socket: &mut Socket, done: &mut u32) -> anyhow::Result<bool> {
    let received = socket.receive(
        |answer| !answer.write,
        |answer, block| {
            let slot = answer.slot % ENTRIES;
            if !answer.write {
                ring.fill_slot(slot, block);
            }
            ring.complete(*done, slot);
            *done = done.wrapping_add(1);
        },
    )?;
    if received {
        ring.tell(*done);
    }
    Ok(received)
}
