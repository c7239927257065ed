//! How users name an end on an Ethernet.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use super::packet::{Mac, NoMac};

/// Bytes of the longest name that Linux gives an interface.
const LONGEST_NAME: usize = 15;

/// The name of a network interface.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct InterfaceName {
    bytes: [u8; LONGEST_NAME],
    length: u8,
}

impl InterfaceName {
    fn new(text: &str) -> Option<Self> {
        let valid = |byte: u8| byte.is_ascii_graphic() && byte != b'/' && byte != b':';
        let fits = (1..=LONGEST_NAME).contains(&text.len()) && text.bytes().all(valid);
        fits.then(|| {
            let mut bytes = [0; LONGEST_NAME];
            bytes[..text.len()].copy_from_slice(text.as_bytes());
            Self { bytes, length: text.len() as u8 }
        })
    }

    /// As the system says it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.length)]).unwrap_or_default()
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What follows `eth://`: an interface of this host, a port, and perhaps who
/// listens there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EthernetAddress {
    /// The interface of this host.
    pub interface: InterfaceName,
    /// The port that is listened on.
    pub port: u16,
    /// The interface of the server.
    pub mac: Option<Mac>,
}

impl EthernetAddress {
    /// The port that is meant when none is said.
    pub const DEFAULT_PORT: u16 = 7700;
}

/// Why a text names no end on an Ethernet.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EthernetAddressError {
    /// The interface's name is none.
    #[error("'{0}' is no name of a network interface")]
    Interface(String),
    /// The port is none.
    #[error("'{0}' is no port; those are the numbers from 1 to 65535")]
    Port(String),
    /// The hardware address is none.
    #[error("'{0}': {NoMac}")]
    Mac(String),
}

/// `IFACE`, `IFACE:PORT`, `IFACE/MAC` or `IFACE:PORT/MAC`.
impl FromStr for EthernetAddress {
    type Err = EthernetAddressError;

    fn from_str(text: &str) -> Result<Self, EthernetAddressError> {
        let (end, mac) = match text.split_once('/') {
            Some((end, mac)) => (end, Some(mac)),
            None => (text, None),
        };
        let (name, port) = match end.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (end, None),
        };
        let interface = InterfaceName::new(name)
            .ok_or_else(|| EthernetAddressError::Interface(name.to_owned()))?;
        let port = port.map_or(Ok(Self::DEFAULT_PORT), |port| {
            let number = port.parse().ok().filter(|&number| number != 0);
            number.ok_or_else(|| EthernetAddressError::Port(port.to_owned()))
        })?;
        let mac = mac.map(|mac| mac.parse().map_err(|_| EthernetAddressError::Mac(mac.to_owned())));
        Ok(Self { interface, port, mac: mac.transpose()? })
    }
}

impl fmt::Display for EthernetAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.interface, self.port)?;
        self.mac.map_or(Ok(()), |mac| write!(f, "/{mac}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_an_interface_a_port_and_who_is_there() {
        for (text, means) in [
            ("eth0", "eth0:7700"),
            ("eth0:7800", "eth0:7800"),
            ("br-lan.5/02:00:00:00:00:0A", "br-lan.5:7700/02:00:00:00:00:0a"),
            ("e:1/02:00:00:00:00:0a", "e:1/02:00:00:00:00:0a"),
        ] {
            let address: EthernetAddress = text.parse().expect(text);
            assert_eq!(address.to_string(), means);
            assert_eq!(means.parse(), Ok(address));
        }
        for (text, named) in [
            ("", "''"),
            ("a name", "'a name'"),
            ("sixteen-letters-", "'sixteen-letters-'"),
            ("eth0:0", "'0'"),
            ("eth0:70000", "'70000'"),
            ("eth0/1:2", "'1:2': a hardware address"),
        ] {
            let sentence = text.parse::<EthernetAddress>().expect_err(text).to_string();
            assert!(sentence.contains(named), "{sentence}");
        }
    }
}
