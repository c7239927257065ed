//! Two network namespaces and a cable between them.

use std::ffi::OsStr;
use std::process::Command;

use super::Stand;

/// Where the server is, and where the fronts are.
pub(crate) const ADDRESSES: [&str; 2] = ["10.213.7.1", "10.213.7.2"];

/// Two network namespaces and a cable.
pub(crate) struct Cable {
    ends: [String; 2],
}

impl Cable {
    /// None, where nobody may make namespaces.
    pub(crate) fn lay(name: &str) -> Option<Self> {
        let ends =
            ["server", "front"].map(|end| format!("vrio-{name}-{}-{end}", std::process::id()));
        let cable = Self { ends };
        let [one, other] = &cable.ends;
        let made = ip(&format!("netns add {one}")) && ip(&format!("netns add {other}"));
        if !made {
            eprintln!("no network namespaces here (this takes root): not tested");
            return None;
        }
        let pair = format!("-n {one} link add eth0 type veth peer name eth0 netns {other}");
        assert!(ip(&pair), "a cable");
        for (end, address) in cable.ends.iter().zip(ADDRESSES) {
            assert!(ip(&format!("-n {end} address add {address}/24 dev eth0")));
            assert!(ip(&format!("-n {end} link set lo up")));
            assert!(ip(&format!("-n {end} link set eth0 mtu 9000 up")));
        }
        Some(cable)
    }

    /// What one end sends and takes from now on.
    pub(crate) fn narrow(&self, end: usize, bytes: u32) {
        self.ip(end, &format!("link set eth0 mtu {bytes}"));
    }

    /// A server at that address, and its fronts at the other end.
    pub(crate) fn stand(&self, server: &str, words: &str) -> Stand {
        Stand::start_in(self.ends.clone(), server, words, 256)
    }

    /// A program at one end, started through other words.
    pub(crate) fn command(&self, end: usize, words: &str, program: &OsStr) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.ends[end]]).args(words.split_whitespace());
        command.arg(program);
        command
    }

    /// Runs `ip` at one end.
    pub(crate) fn ip(&self, end: usize, words: &str) {
        assert!(ip(&format!("-n {} {words}", self.ends[end])), "ip {words}");
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for end in &self.ends {
            ip(&format!("netns delete {end}"));
        }
    }
}

fn ip(words: &str) -> bool {
    Command::new("ip").args(words.split_whitespace()).status().is_ok_and(|status| status.success())
}
