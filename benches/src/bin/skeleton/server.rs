//! The server: blocks from and to its store, as the network asks.

use std::fs::File;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context;

use crate::message::{FULL, HEADER, write};
use crate::ring::Request;
use crate::socket::{BARE_BURST, FULL_BURST, Socket};
use crate::store::Store;

/// Requests that one burst can bring.
const MOST: usize = 65_536 / HEADER;

/// Serves until it is killed. It makes `sign` when it can be asked.
pub(crate) fn serve(
    here: SocketAddr,
    there: SocketAddr,
    sign: &Path,
    size: usize,
) -> anyhow::Result<()> {
    let mut store = Store::new(size);
    let mut socket = Socket::connect(here, there)?;
    File::create(sign).with_context(|| format!("cannot make {}", sign.display()))?;
    let mut asked = Vec::with_capacity(MOST);
    loop {
        asked.clear();
        let received = socket.receive(
            |request| request.write,
            |request, block| {
                if request.write {
                    store.block_mut(request.block).copy_from_slice(block);
                }
                asked.push(request);
            },
        )?;
        if !received {
            rustix::thread::sched_yield();
        }
        // All of a burst are alike.
        let most = match asked.first() {
            Some(Request { write: false, .. }) => FULL_BURST,
            _ => BARE_BURST,
        };
        for burst in asked.chunks(most) {
            answer(&store, &mut socket, burst)?;
        }
    }
}

fn answer(store: &Store, socket: &mut Socket, burst: &[Request]) -> anyhow::Result<()> {
    let mut headers = [[0; HEADER]; BARE_BURST];
    for (header, &request) in headers.iter_mut().zip(burst) {
        write(request, header);
    }
    let mut parts = [IoSlice::new(&[]); 2 * BARE_BURST];
    let (mut used, mut size) = (0, HEADER);
    for (header, request) in headers.iter().zip(burst) {
        parts[used] = IoSlice::new(header);
        used += 1;
        if !request.write {
            // The kernel copies it from where it lies.
            parts[used] = IoSlice::new(store.block(request.block));
            used += 1;
            size = FULL;
        }
    }
    socket.send(&parts[..used], size)
}
