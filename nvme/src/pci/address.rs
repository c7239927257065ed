//! Where a PCI device is.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// Domain, bus, device and function, as `lspci -D` writes them: "0000:01:00.0".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

/// A text that is no address.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "'{0}' is no PCI address; they look like 0000:01:00.0 (`vrio nvme list` and `lspci -D` show them)"
)]
pub struct BadAddress(String);

impl FromStr for Address {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        parse(text).ok_or_else(|| BadAddress(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Address> {
    let (place, function) = text.rsplit_once('.')?;
    let (place, device) = place.rsplit_once(':')?;
    // The domain may be left out, as lspci does.
    let (domain, bus) = place.rsplit_once(':').unwrap_or(("0000", place));
    Some(Address {
        // Domains of five and more digits are made by some bridges.
        domain: number(domain, 4..=8)?,
        bus: number(bus, 2..=2)? as u8,
        device: number(device, 2..=2).filter(|&device| device < 32)? as u8,
        function: number(function, 1..=1).filter(|&function| function < 8)? as u8,
    })
}

fn number(text: &str, digits: std::ops::RangeInclusive<usize>) -> Option<u32> {
    let is_hex = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    (is_hex && digits.contains(&text.len())).then(|| u32::from_str_radix(text, 16).ok())?
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_what_sysfs_writes_and_nothing_else() {
        for text in ["0000:01:00.0", "10000:e1:1f.7"] {
            assert_eq!(text.parse::<Address>().map(|it| it.to_string()), Ok(text.to_owned()));
        }
        assert_eq!("01:0A.1".parse::<Address>().map(|it| it.to_string()).unwrap(), "0000:01:0a.1");
        // The address becomes a part of paths.
        let not = ["", "0000:01:00", "0000:01:20.0", "0000:01:00.8", "../01:00.0", "0:1:0.0"];
        for text in not.into_iter().chain(["0000:01:00.0/", " 01:00.0", "+000:01:00.0"]) {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
