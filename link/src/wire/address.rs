//! Where a wire goes: `udp://HOST:PORT`, `eth://IFACE` or `mem://PATH`.

use std::fmt;
use std::net::{AddrParseError, IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

use super::ethernet::{EthernetAddress, EthernetAddressError};
use super::sys::interface;

/// An address, with which also the kind of wire is chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// UDP over IPv4 or IPv6.
    Udp(SocketAddr),
    /// Ethernet without IP.
    Ethernet(EthernetAddress),
    /// Memory of this machine: the socket of the first worker, and which worker.
    Memory(PathBuf, u16),
}

/// Why a text is no address.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AddressError {
    /// No wire begins like that.
    #[error("'{0}' is no address; write udp://HOST:PORT, eth://IFACE[:PORT][/MAC] or mem://PATH")]
    Scheme(String),
    /// Not an IP address and a port.
    #[error("'{0}' is no address; write udp://HOST:PORT, as in udp://10.0.0.1:7700")]
    Udp(String),
    /// Every interface has such addresses.
    #[error(
        "'{0}' is an address of one network: say through which interface it is reached, as in \
         udp://[fe80::1%eth0]:7700"
    )]
    Scope(String),
    /// That interface is not there.
    #[error("'{text}': there is no network interface {name}; `ip link` lists those there are")]
    NoInterface {
        /// The address.
        text: String,
        /// The interface in it.
        name: String,
    },
    /// Not an end on an Ethernet.
    #[error("'{text}' is no address: {error}; write eth://IFACE[:PORT][/MAC]")]
    Ethernet {
        /// The address.
        text: String,
        /// What is wrong with it.
        error: EthernetAddressError,
    },
    /// No socket has such a name.
    #[error("'{0}' is no address; write mem://PATH, as in mem:///run/vrio/wire.sock")]
    Memory(String),
}

impl Address {
    /// Whether what goes there stays in the memory of this machine, between
    /// processes whom the kernel has named to each other.
    #[must_use]
    pub const fn is_memory(&self) -> bool {
        matches!(self, Self::Memory(..))
    }

    /// The port, which tells the workers of one server apart.
    #[must_use]
    pub const fn port(&self) -> u16 {
        match self {
            Self::Udp(address) => address.port(),
            Self::Ethernet(address) => address.port,
            Self::Memory(_, worker) => *worker,
        }
    }

    /// Where the worker of this number listens when the first one listens here; none
    /// if there are not so many ports.
    #[must_use]
    pub fn of_worker(mut self, number: u16) -> Option<Self> {
        match &mut self {
            // Port 0 means any: for each worker.
            Self::Udp(address) if address.port() == 0 => {}
            Self::Udp(address) => address.set_port(address.port().checked_add(number)?),
            Self::Ethernet(address) => address.port = address.port.checked_add(number)?,
            Self::Memory(_, worker) => *worker = number,
        }
        Some(self)
    }
}

impl FromStr for Address {
    type Err = AddressError;

    /// Hosts are IP addresses here; names are looked up by whoever may wait.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some(rest) = text.strip_prefix("udp://") {
            return udp(text, rest).map(Self::Udp);
        }
        if let Some(path) = text.strip_prefix("mem://") {
            // The kernel's bound, less what names another worker's socket.
            let fits = (1..=100).contains(&path.len()) && !path.contains('\0');
            let none = || AddressError::Memory(text.to_owned());
            return fits.then(|| Self::Memory(path.into(), 0)).ok_or_else(none);
        }
        let Some(rest) = text.strip_prefix("eth://") else {
            return Err(AddressError::Scheme(text.to_owned()));
        };
        let wrong = |error| AddressError::Ethernet { text: text.to_owned(), error };
        rest.parse().map(Self::Ethernet).map_err(wrong)
    }
}

fn udp(text: &str, rest: &str) -> Result<SocketAddr, AddressError> {
    let none = |_: AddrParseError| AddressError::Udp(text.to_owned());
    let address = match zone(rest) {
        None => rest.parse().map_err(none)?,
        Some((address, name, port)) => {
            let address: Ipv6Addr = address.parse().map_err(none)?;
            let port = port.parse().map_err(|_| AddressError::Udp(text.to_owned()))?;
            let number = name.parse().ok().filter(|&number: &u32| number != 0);
            let scope = number.or_else(|| interface::index_of(name).map(u32::from));
            let scope = scope.ok_or_else(|| AddressError::NoInterface {
                text: text.to_owned(),
                name: name.to_owned(),
            })?;
            SocketAddr::V6(SocketAddrV6::new(address, port, 0, scope))
        }
    };
    match address {
        SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() && v6.scope_id() == 0 => {
            Err(AddressError::Scope(text.to_owned()))
        }
        _ => Ok(address),
    }
}

/// Address, interface and port of `[ADDRESS%INTERFACE]:PORT`.
fn zone(text: &str) -> Option<(&str, &str, &str)> {
    let (host, port) = text.strip_prefix('[')?.split_once("]:")?;
    let (address, name) = host.split_once('%')?;
    Some((address, name, port))
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Udp(address) => write!(f, "udp://{address}"),
            Self::Ethernet(address) => write!(f, "eth://{address}"),
            Self::Memory(path, 0) => write!(f, "mem://{}", path.display()),
            Self::Memory(path, worker) => write!(f, "mem://{}.{worker}", path.display()),
        }
    }
}

/// The address of an IPv4 host as IPv6 sockets name it.
pub(super) fn as_v6(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wire_is_chosen_by_its_address() {
        let index = interface::index_of("lo").expect("an interface").get();
        let scoped = format!("udp://[fe80::1%{index}]:7700");
        for (text, means) in [
            ("udp://10.0.0.1:7700", "udp://10.0.0.1:7700"),
            ("udp://[::]:7700", "udp://[::]:7700"),
            ("udp://[fe80::1%lo]:7700", &scoped),
            (&scoped, &scoped),
            ("eth://eth0", "eth://eth0:7700"),
            ("mem:///run/wire", "mem:///run/wire"),
            ("mem://wire", "mem://wire"),
            ("eth://eth0:7701/02:00:00:00:00:01", "eth://eth0:7701/02:00:00:00:00:01"),
        ] {
            let address: Address = text.parse().expect(text);
            assert_eq!(address.to_string(), means);
            assert_eq!(means.parse(), Ok(address.clone()));
            let worker = address.clone().of_worker(2).expect("there is room");
            assert_eq!(worker.port(), address.port() + 2);
        }
    }

    #[test]
    fn workers_have_places_of_their_own() {
        let of = |text: &str| text.parse::<Address>().expect(text);
        assert_eq!(of("udp://0.0.0.0:0").of_worker(3), Some(of("udp://0.0.0.0:0")));
        assert_eq!(of("udp://0.0.0.0:65535").of_worker(1), None);
        let third = of("mem:///run/wire").of_worker(3).expect("a place");
        assert_eq!(third.to_string(), "mem:///run/wire.3");
    }

    #[test]
    fn mistakes_are_named() {
        for (text, named) in [
            ("10.0.0.1:7700", "udp://HOST:PORT"),
            ("tcp://10.0.0.1:7700", "eth://IFACE"),
            ("udp://nowhere:7700", "udp://HOST:PORT"),
            ("udp://[fe80::1]:7700", "through which interface"),
            ("udp://[fe80::1%no-such-one]:7700", "no network interface no-such-one"),
            ("udp://[fe80::x%lo]:7700", "udp://HOST:PORT"),
            ("udp://[fe80::1%lo]:port", "udp://HOST:PORT"),
            ("eth://", "''"),
            ("eth://eth0/me", "hardware address"),
            ("mem://", "mem://PATH"),
        ] {
            let sentence = text.parse::<Address>().expect_err(text).to_string();
            assert!(sentence.contains(text) && sentence.contains(named), "{sentence}");
        }
    }
}
