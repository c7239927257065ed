//! Reading configuration files: a wrong one is refused with a sentence that
//! names the file, the place and the way out.

use std::fs;
use std::io;
use std::net::ToSocketAddrs;
use std::path::Path;

use anyhow::{Context, anyhow};
use block_server::config::explain_toml;
use link::wire::address::{Address, AddressError};
use serde::de::DeserializeOwned;

/// Reads `file` as TOML into the raw form of a configuration. `example` is
/// what a newcomer could put there.
pub(crate) fn read<T: DeserializeOwned>(file: &Path, example: &str) -> anyhow::Result<T> {
    let name = file.display();
    let text = fs::read_to_string(file).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => anyhow!(
            "there is no configuration file {name}; name another with --config, or write one, for \
             example:\n\n{example}"
        ),
        _ => anyhow!("cannot read {name}: {error}"),
    })?;
    toml::from_str(&text)
        .map_err(|error| anyhow!("{name} is wrong, {}", explain_toml(&text, &error)))
}

/// The address of a server. Of `udp://HOST:PORT` the host may be a name.
pub(crate) fn server_address(text: &str) -> anyhow::Result<Address> {
    match (text.parse(), text.strip_prefix("udp://")) {
        (Err(AddressError::Udp(_)), Some(rest)) => {
            let mut found = rest
                .to_socket_addrs()
                .with_context(|| format!("'{text}' is not an address: write udp://HOST:PORT"))?;
            found.next().map(Address::Udp).with_context(|| format!("'{text}': no such host"))
        }
        (address, _) => Ok(address?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_named_by_its_address_or_its_name() {
        let by_name = server_address("udp://localhost:7700").expect("valid");
        assert_eq!(by_name.port(), 7700);
        let by_number = server_address("udp://[::1]:1").expect("valid");
        assert_eq!(by_number.to_string(), "udp://[::1]:1");
        for bad in ["127.0.0.1:7700", "tcp://127.0.0.1:1", "udp://127.0.0.1", "udp://"] {
            let sentence = format!("{:#}", server_address(bad).expect_err("refused"));
            assert!(sentence.contains("udp://HOST:PORT"), "{sentence}");
        }
    }
}
