//! What the commands have in common that ask a server: which one, and how its
//! answer is printed.

use std::path::PathBuf;

use block_server::client::Client;
use block_server::config::DEFAULT_CONTROL;
use clap::Args;
use serde::Serialize;

/// Which server is asked, and how its answers are printed.
#[derive(Debug, Args)]
pub(crate) struct Control {
    /// The server's control socket
    #[arg(long = "control", value_name = "SOCKET", default_value = DEFAULT_CONTROL, global = true)]
    socket: PathBuf,
    /// Print JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

impl Control {
    pub(crate) fn client(&self) -> Client {
        Client::new(&self.socket)
    }

    /// Prints an answer: as JSON if that was asked for, else as a text that
    /// ends its last line.
    pub(crate) fn print<T: Serialize + ?Sized>(
        &self,
        answer: &T,
        text: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<()> {
        if self.json {
            println!("{}", serde_json::to_string_pretty(answer)?);
        } else {
            print!("{}", text(answer));
        }
        Ok(())
    }
}
