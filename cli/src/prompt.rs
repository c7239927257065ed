//! Asking a person for a passphrase, without showing it.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};

use anyhow::{Context, bail};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

/// A passphrase, asked for twice.
pub(crate) fn new_passphrase() -> anyhow::Result<Zeroizing<Vec<u8>>> {
    let first = ask("Passphrase: ")?;
    if first.is_empty() {
        bail!("a passphrase has at least one letter; nothing was changed");
    }
    if ask("The same again: ")? != first {
        bail!("the two differ; nothing was changed");
    }
    Ok(first)
}

/// A passphrase that is there already.
pub(crate) fn passphrase() -> anyhow::Result<Zeroizing<Vec<u8>>> {
    ask("Passphrase: ")
}

fn ask(question: &str) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    let terminal = File::options().read(true).write(true).open("/dev/tty");
    let terminal = terminal.context(
        "there is no terminal to ask for a passphrase; name a file with --passphrase-file or --key-file",
    )?;
    let _quiet = Quiet::on(&terminal)?;
    (&terminal).write_all(question.as_bytes()).context("cannot ask")?;
    // All room at once: bytes that grow leave copies behind.
    let mut line = Zeroizing::new(Vec::with_capacity(4096));
    let mut reader = BufReader::with_capacity(1, &terminal);
    reader.read_until(b'\n', &mut line).context("cannot read the answer")?;
    (&terminal).write_all(b"\n").context("cannot ask")?;
    if line.ends_with(b"\n") {
        line.pop();
    }
    Ok(line)
}

/// A terminal that does not show what is typed, until this is dropped.
struct Quiet<'a> {
    terminal: &'a File,
    before: Termios,
}

impl<'a> Quiet<'a> {
    fn on(terminal: &'a File) -> anyhow::Result<Self> {
        let before = tcgetattr(terminal).context("cannot hide what is typed")?;
        let mut quiet = before.clone();
        quiet.local_modes -= LocalModes::ECHO;
        tcsetattr(terminal, OptionalActions::Flush, &quiet).context("cannot hide what is typed")?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        // Nothing else can be done about a terminal that has gone.
        let _ = tcsetattr(self.terminal, OptionalActions::Flush, &self.before);
    }
}
