//! A network namespace of a test's own thread. Where nobody may make one, nothing is
//! tested, and the test says so.
#![allow(unsafe_code)]

use std::process::Command;

/// A network of this thread alone; it goes with the thread.
pub(crate) fn enter_network(interfaces: &[&str]) -> bool {
    // SAFETY: no pointer is passed; the namespace of this thread only is another.
    let entered = unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0;
    if !entered {
        eprintln!("no network namespaces here (this takes root): not tested");
        return false;
    }
    for pair in interfaces {
        lay_cable(pair);
    }
    true
}

/// Interfaces NAME0 and NAME1, joined.
pub(crate) fn lay_cable(name: &str) {
    ip(&format!("link add {name}0 mtu 9000 type veth peer name {name}1 mtu 9000"));
    for end in [0, 1] {
        ip(&format!("link set {name}{end} up"));
    }
}

pub(crate) fn ip(words: &str) {
    let done = Command::new("ip").args(words.split_whitespace()).status();
    assert!(done.is_ok_and(|status| status.success()), "ip {words}");
}
