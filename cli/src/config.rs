//! Reading configuration files: a wrong one is refused with a sentence that
//! names the file, the place and the way out.

use std::fs;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;

use anyhow::{Context, anyhow, bail};
use block_server::config::explain_toml;
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

/// The address in `udp://HOST:PORT`.
pub(crate) fn udp_address(text: &str) -> anyhow::Result<SocketAddr> {
    let Some(rest) = text.strip_prefix("udp://") else {
        bail!("'{text}' is not an address of a wire: write udp://HOST:PORT");
    };
    let mut found = rest
        .to_socket_addrs()
        .with_context(|| format!("'{text}' is not an address: write udp://HOST:PORT"))?;
    found.next().with_context(|| format!("'{text}': the host has no address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wire_is_chosen_by_its_address() {
        let address = udp_address("udp://127.0.0.1:7700").expect("valid");
        assert_eq!(address, "127.0.0.1:7700".parse().expect("an address"));
        assert_eq!(udp_address("udp://[::1]:1").expect("valid").port(), 1);
        for bad in ["127.0.0.1:7700", "tcp://127.0.0.1:1", "udp://127.0.0.1", "udp://"] {
            let sentence = format!("{:#}", udp_address(bad).expect_err("refused"));
            assert!(sentence.contains("udp://HOST:PORT"), "{sentence}");
        }
    }
}
