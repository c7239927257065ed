//! What the kernel says about the front-end and its descriptors.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::fs::fstat;

/// The process at the other end of the socket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    pid: i32,
}

impl Peer {
    pub(crate) fn of(socket: &UnixStream) -> Option<Self> {
        let credentials = rustix::net::sockopt::socket_peercred(socket).ok()?;
        Some(Self { pid: credentials.pid.as_raw_nonzero().get() })
    }

    /// Whether the front-end itself has `file` mapped at address `user`, and
    /// privately: then what the guest writes never reaches the file, and we
    /// would wait on a ring of zeroes for ever.
    ///
    /// What cannot be seen (another user's process, another namespace) is
    /// taken to be well.
    pub(crate) fn maps_privately(&self, user: u64, file: &File) -> bool {
        let Ok(stat) = fstat(file.as_fd()) else { return false };
        let Ok(maps) = File::open(format!("/proc/{}/maps", self.pid)) else { return false };
        BufReader::new(maps).lines().map_while(Result::ok).any(|line| {
            mapping(&line).is_some_and(|(from, to, private, inode)| {
                (from..to).contains(&user) && private && inode == stat.st_ino
            })
        })
    }
}

/// A line of /proc/PID/maps (proc(5)): from, to, whether private, inode.
fn mapping(line: &str) -> Option<(u64, u64, bool, u64)> {
    let mut fields = line.split_ascii_whitespace();
    let (from, to) = fields.next()?.split_once('-')?;
    let private = fields.next()?.ends_with('p');
    let inode = fields.nth(2)?.parse().ok()?;
    Some((u64::from_str_radix(from, 16).ok()?, u64::from_str_radix(to, 16).ok()?, private, inode))
}

/// Whether a descriptor is an eventfd: writing to anything else could wait
/// for its reader, and the worker with it.
pub(crate) fn is_eventfd(fd: &OwnedFd) -> bool {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    link.is_ok_and(|name| name.as_os_str() == "anon_inode:[eventfd]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_maps_says_whether_a_mapping_is_private() {
        let line = "7f00e4000000-7f00e4021000 rw-p 00000000 00:01 1234  /memfd:guest (deleted)";
        assert_eq!(mapping(line), Some((0x7f00_e400_0000, 0x7f00_e402_1000, true, 1234)));
        let line = "7f00e4000000-7f00e4021000 rw-s 00000000 00:01 1234";
        assert_eq!(mapping(line), Some((0x7f00_e400_0000, 0x7f00_e402_1000, false, 1234)));
        assert_eq!(mapping("nonsense"), None);
    }

    #[test]
    fn an_eventfd_is_known_from_a_pipe() {
        let eventfd = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty());
        assert!(is_eventfd(&eventfd.expect("eventfd")));
        let (reader, _writer) = std::io::pipe().expect("pipe");
        assert!(!is_eventfd(&reader.into()));
    }
}
