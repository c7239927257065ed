//! A cable that carries frames as a network card does: two network namespaces, a veth
//! pair with an MTU of 9000, and no burst that crosses it in one piece.

use std::process::Command;

use anyhow::{Context, bail};

/// Two network namespaces and what joins them; both go with it.
#[derive(Debug)]
pub(crate) struct Cable {
    ends: [String; 2],
}

impl Cable {
    /// Where the server is, and where the front is.
    pub(crate) const ADDRESSES: [&'static str; 2] = ["10.213.9.1", "10.213.9.2"];

    /// The network interface of each end.
    pub(crate) const INTERFACE: &'static str = "eth0";

    /// Lays one; `name` tells those of one process apart.
    pub(crate) fn lay(name: &str) -> anyhow::Result<Self> {
        let process = std::process::id();
        let ends = ["server", "front"].map(|end| format!("vrio-compare-{process}-{name}-{end}"));
        // Owned first: what was made of it goes when something fails.
        let cable = Self { ends };
        let [one, other] = &cable.ends;
        let device = Self::INTERFACE;
        ip(&format!("netns add {one}"))?;
        ip(&format!("netns add {other}"))?;
        ip(&format!("-n {one} link add {device} type veth peer name {device} netns {other}"))?;
        for (end, address) in cable.ends.iter().zip(Self::ADDRESSES) {
            ip(&format!("-n {end} address add {address}/24 dev {device}"))?;
            ip(&format!("-n {end} link set lo up"))?;
            // Veth would hand a burst over as it is: no frame would be a frame.
            ip(&format!("-n {end} link set {device} mtu 9000 gso_max_segs 1 up"))?;
        }
        Ok(cable)
    }

    pub(crate) fn end(&self, end: usize) -> &str {
        &self.ends[end]
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for end in &self.ends {
            // It may not have been made.
            let _ = ip(&format!("netns delete {end}"));
        }
    }
}

fn ip(words: &str) -> anyhow::Result<()> {
    let output = Command::new("ip").args(words.split_whitespace()).output();
    let output = output.context("cannot run ip (Debian: apt-get install iproute2)")?;
    if !output.status.success() {
        bail!("`ip {words}` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
