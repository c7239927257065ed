//! `vrio snapshot export`: what the server reads goes out sealed.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use block_core::{BlockCount, Chance, Lba};
use block_server::Size;
use block_server::api::{AskExport, GoOn, Hex};
use block_server::client::Client;
use clap::Args;
use interpose::layout::stream::{Body, Manifest};
use interpose::stream::{Fault, StreamReader};
use interpose::vault::stream::{StreamKey, StreamKeyError};
use interpose::vault::{Cost, NewWay};

use super::{SecretArgs, StreamSecret};
use crate::progress::Flow;
use crate::snapshot::Snapshot;

/// Bytes that are read at a time of a stream that is there in part.
const READ_BYTES: usize = 128 * 1024;

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// Which one
    #[arg(value_name = "VOLUME@NAME")]
    snapshot: Snapshot,
    /// Only what changed since this earlier snapshot of the same volume
    #[arg(long, value_name = "VOLUME@BASE")]
    from: Option<Snapshot>,
    #[command(flatten)]
    secret: SecretArgs,
    /// Write to this file; to the standard output if left out
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Go on with a file that an export was cut off at
    #[arg(long, requires = "output")]
    resume: bool,
}

/// Where a stream goes.
enum Output {
    Pipe(io::Stdout),
    File { file: File, path: PathBuf },
}

/// What is there of a stream: up to which byte and block.
struct Before {
    bytes: u64,
    block: Lba,
}

pub(crate) fn export(client: &Client, args: ExportArgs) -> anyhow::Result<()> {
    let ExportArgs { snapshot: Snapshot { volume, name }, from, secret, output, resume } = args;
    if let Some(from) = from.as_ref().filter(|from| from.volume != volume) {
        let other = &from.volume;
        bail!("'{other}' and '{volume}' are different volumes; name a snapshot of '{volume}'");
    }
    if output.is_none() && io::stdout().is_terminal() {
        bail!("a stream is no text for a terminal; name a file with --output, or use a pipe");
    }
    let base = from.map(|from| from.name);
    let ask = AskExport { from: base.clone(), go_on: None };
    let mut manifest = first(&client.export(&volume, &name, &ask)?.bodies)?;
    // A file that is there was sealed with a passphrase that is there, too.
    let secret = secret.read(!resume)?;
    let mut output = match output {
        None => Output::Pipe(io::stdout()),
        Some(path) => match go_on(&path, &secret, &manifest, resume)? {
            None => return Ok(()),
            Some((file, before)) => {
                manifest.from = before;
                Output::File { file, path }
            }
        },
    };
    let sent = send(client, [&volume, &name], base, &manifest, &secret, &mut output);
    match (sent, &output) {
        (Ok(bytes), _) => {
            eprintln!("{volume}@{name} is exported: {}", Size(bytes));
            Ok(())
        }
        (Err(error), Output::Pipe(_)) => Err(error),
        (Err(error), Output::File { path, .. }) => Err(error.context(format!(
            "{} has a part of {volume}@{name}; the same command with --resume goes on",
            path.display()
        ))),
    }
}

fn first(bodies: &[Vec<u8>]) -> anyhow::Result<Manifest> {
    match bodies.first().map(|body| Body::decode(body)) {
        Some(Ok(Body::Manifest(manifest))) => Ok(manifest),
        _ => bail!("the server does not say what it exports; is it of another version?"),
    }
}

/// A file to write to and the block to begin at; `None` if all is there.
fn go_on(
    path: &Path,
    secret: &StreamSecret,
    manifest: &Manifest,
    resume: bool,
) -> anyhow::Result<Option<(File, Lba)>> {
    let named = || path.display().to_string();
    if !resume {
        let file = File::options().write(true).create_new(true).open(path);
        let file = file.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => anyhow::anyhow!(
                "{} exists; use --resume if it is a part of this export, or choose another file",
                named()
            ),
            _ => anyhow::Error::new(error).context(format!("{} cannot be made", named())),
        })?;
        return Ok(Some((file, Lba(0))));
    }
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path);
    let mut file = file.with_context(|| format!("{} cannot be opened", named()))?;
    let Some(Before { bytes, block }) =
        before(&file, secret, manifest).with_context(|| format!("{} cannot go on", named()))?
    else {
        eprintln!("{} has all of it", named());
        return Ok(None);
    };
    let moved = file.set_len(bytes).and_then(|()| file.seek(SeekFrom::Start(bytes)));
    moved.with_context(|| format!("{} cannot be written", named()))?;
    Ok(Some((file, block)))
}

/// How much of a file is a sound part of the stream; `None` if that is
/// complete. Nothing is believed that does not open.
fn before(
    mut file: &File,
    secret: &StreamSecret,
    manifest: &Manifest,
) -> anyhow::Result<Option<Before>> {
    let mut reader = StreamReader::new(secret.secret());
    let mut bytes = vec![0; READ_BYTES];
    let mut flow = Flow::new("reading what is there");
    let length = file.metadata()?.len();
    'file: loop {
        let count = file.read(&mut bytes)?;
        if count == 0 {
            break;
        }
        reader.push(&bytes[..count]);
        loop {
            match reader.next_body().map(|body| body.is_some()) {
                Ok(false) => break,
                Ok(true) => {}
                // What was being written when a machine stopped.
                Err(error) if is_torn(error.fault) && reader.sound().is_some() => break 'file,
                Err(error) => return Err(error.into()),
            }
        }
        let at = reader.sound().map_or(0, |(at, _)| at);
        flow.at(at, length, Size(at).to_string());
    }
    let Some((bytes, block)) = reader.sound() else {
        return Ok(Some(Before { bytes: 0, block: Lba(0) }));
    };
    let there = reader.manifest().map(Manifest::about);
    if there != Some(manifest.about()) {
        bail!("it is a part of another export; choose another file");
    }
    Ok((!reader.is_ended()).then_some(Before { bytes, block }))
}

const fn is_torn(fault: Fault) -> bool {
    matches!(fault, Fault::Damaged | Fault::Key(StreamKeyError::WrongSecret { .. }))
}

/// Sends a part of the stream, from where the manifest says to the end; how
/// many bytes that were.
fn send(
    client: &Client,
    [volume, name]: [&str; 2],
    base: Option<String>,
    manifest: &Manifest,
    secret: &StreamSecret,
    output: &mut Output,
) -> anyhow::Result<u64> {
    let chance = Chance::new(rand::random);
    let way = NewWay::new("stream", &secret.secret(), Cost::USUAL, &chance)?;
    let (mut key, header) = StreamKey::create(&way, &chance);
    let mut sent = output.write(&header)?;
    let mut body = Vec::new();
    Body::Manifest(manifest.clone()).encode(&mut body);
    sent += output.write(&key.seal(&body))?;
    let about = Hex::of(&manifest.about());
    let (mut block, blocks) = (manifest.from.0, manifest.blocks.0);
    let mut flow = Flow::new("exporting");
    loop {
        let go_on = Some(GoOn { about: about.clone(), block });
        let exported = client.export(volume, name, &AskExport { from: base.clone(), go_on })?;
        for body in &exported.bodies {
            sent += output.write(&key.seal(body))?;
        }
        match exported.next {
            None => break,
            // The server's word, and still no reason to ask for ever.
            Some(next) if next <= block => bail!("the server does not go on"),
            Some(next) => block = next,
        }
        let message = format!("{} of {}", at(block), at(blocks));
        flow.at(block, blocks, message);
    }
    body.clear();
    Body::End.encode(&mut body);
    sent += output.write(&key.seal(&body))?;
    output.finish()?;
    Ok(sent)
}

fn at(block: u64) -> Size {
    Size(BlockCount(block).bytes())
}

impl Output {
    fn write(&mut self, bytes: &[u8]) -> anyhow::Result<u64> {
        match self {
            Self::Pipe(pipe) => pipe.write_all(bytes).context("the pipe cannot be written")?,
            Self::File { file, path } => file
                .write_all(bytes)
                .with_context(|| format!("{} cannot be written", path.display()))?,
        }
        Ok(bytes.len() as u64)
    }

    fn finish(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Pipe(pipe) => pipe.flush().context("the pipe cannot be written"),
            Self::File { file, path } => file
                .sync_all()
                .with_context(|| format!("{} cannot be made durable", path.display())),
        }
    }
}
