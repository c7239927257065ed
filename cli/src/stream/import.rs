//! `vrio snapshot import`: a stream is opened and checked here, and what it
//! holds goes to the server, some of it at a time.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use anyhow::{Context, anyhow, bail};
use block_core::{BLOCK_SIZE, BlockCount, Lba};
use block_server::Size;
use block_server::api::{EndImport, Hex, SnapshotInfo, StartImport, Step};
use block_server::client::Client;
use clap::Args;
use interpose::layout::stream::{About, Body, Manifest};
use interpose::pool::Piece;
use interpose::stream::StreamReader;

use super::SecretArgs;
use crate::progress::Flow;

/// Bytes that are read at a time.
const READ_BYTES: usize = 128 * 1024;

/// Bytes of content after which a step is sent, and most pieces of one.
const SEND_BYTES: usize = 1 << 20;
const SEND_PIECES: usize = 1024;

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// The stream; `-` is the standard input
    file: PathBuf,
    /// A new volume; or, if the stream holds what changed, the one that has the snapshot before.
    /// Another name for the snapshot may follow, as in disk@monday
    #[arg(value_name = "VOLUME[@NAME]")]
    target: String,
    #[command(flatten)]
    secret: SecretArgs,
    /// On which device a new volume is made; may be left out if there is one
    #[arg(long)]
    device: Option<String>,
    /// With whose volumes a new volume shares a key and blocks
    #[arg(long)]
    domain: Option<String>,
}

/// What has come and was not sent.
struct Sender<'a> {
    client: &'a Client,
    volume: &'a str,
    about: About,
    blocks: u64,
    /// Up to where the server has it, and up to where it has come.
    there: u64,
    come: u64,
    pieces: Vec<Piece>,
    bytes: usize,
}

pub(crate) fn import(client: &Client, args: ImportArgs) -> anyhow::Result<SnapshotInfo> {
    let ImportArgs { file, target, secret, device, domain } = args;
    let (volume, name) = match target.split_once('@') {
        None => (target.as_str(), None),
        Some((volume, name)) if !volume.is_empty() && !name.is_empty() => (volume, Some(name)),
        Some(_) => bail!("'{target}' names no volume; write VOLUME or VOLUME@NAME"),
    };
    let is_pipe = file.as_os_str() == "-";
    let mut input: Box<dyn Read> = if is_pipe {
        Box::new(io::stdin())
    } else {
        let opened = File::open(&file);
        Box::new(opened.with_context(|| format!("{} cannot be opened", file.display()))?)
    };
    let from = if is_pipe { "the standard input".to_owned() } else { file.display().to_string() };
    let mut reader = StreamReader::new(secret.read(false)?.secret());
    let mut sender: Option<Sender<'_>> = None;
    let begin = |manifest: &Manifest| {
        let name = name.unwrap_or(&manifest.snapshot).to_owned();
        let mut body = Vec::new();
        Body::Manifest(manifest.clone()).encode(&mut body);
        let manifest_bytes = Hex::new(&body);
        let (device, domain) = (device.clone(), domain.clone());
        let start = StartImport { manifest: manifest_bytes, name, device, domain };
        let there = client.begin_import(volume, &start)?.block;
        if there > 0 {
            eprintln!("going on at {} of {}", at(there), at(manifest.blocks.0));
        }
        let (about, blocks) = (manifest.about(), manifest.blocks.0);
        let (pieces, bytes) = (Vec::new(), 0);
        anyhow::Ok(Sender { client, volume, about, blocks, there, come: there, pieces, bytes })
    };
    let mut flow = Flow::new("importing");
    let read = read(&mut *input, &mut reader, |body| {
        match (body, &mut sender) {
            (Body::Manifest(manifest), None) => sender = Some(begin(&manifest)?),
            (Body::Blocks { start, content }, Some(sender)) => {
                sender.put(start, Some(content), (content.len() / BLOCK_SIZE) as u64)?;
            }
            (Body::Holes { start, count }, Some(sender)) => sender.put(start, None, count.0)?,
            (Body::End, Some(sender)) => sender.come = sender.blocks,
            _ => {}
        }
        if let Some(sender) = &sender {
            let message = format!("{} of {}", at(sender.come), at(sender.blocks));
            flow.at(sender.come, sender.blocks, message);
        }
        Ok(())
    });
    let Some(mut sender) = sender else {
        read.context(from.clone())?;
        bail!(
            "{from}: {}",
            reader.finish().map_or_else(|error| error.to_string(), |()| String::new())
        );
    };
    // What is sound is kept, whatever follows.
    let sent = sender.send();
    read.and_then(|()| Ok(reader.finish()?)).map_err(|error| {
        anyhow!("{from}: {error:#}; what has come is kept, and '{volume}' waits for the rest")
    })?;
    sent?;
    let manifest = reader.manifest().context("the stream does not say what it is")?;
    let name = name.unwrap_or(&manifest.snapshot).to_owned();
    let end = EndImport { about: Hex::of(&sender.about), name, as_is: manifest.as_is };
    Ok(client.end_import(volume, &end)?)
}

/// Reads to the end of the input, or to what is wrong with it.
fn read(
    input: &mut dyn Read,
    reader: &mut StreamReader,
    mut take: impl FnMut(Body<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut bytes = vec![0; READ_BYTES];
    loop {
        let count = input.read(&mut bytes).context("cannot be read")?;
        if count == 0 {
            return Ok(());
        }
        reader.push(&bytes[..count]);
        while let Some(body) = reader.next_body()? {
            take(body)?;
        }
    }
}

impl Sender<'_> {
    /// Takes blocks, without those that have come before.
    fn put(&mut self, start: Lba, content: Option<&[u8]>, count: u64) -> anyhow::Result<()> {
        let end = start.0 + count;
        let first = start.0.max(self.come);
        if end <= first {
            return Ok(());
        }
        let piece = match content {
            Some(content) => {
                let content = content[(first - start.0) as usize * BLOCK_SIZE..].to_vec();
                self.bytes += content.len();
                Piece::Blocks { start: Lba(first), content }
            }
            None => Piece::Holes { start: Lba(first), count: BlockCount(end - first) },
        };
        self.pieces.push(piece);
        self.come = end;
        if self.bytes >= SEND_BYTES || self.pieces.len() >= SEND_PIECES {
            self.send()?;
        }
        Ok(())
    }

    fn send(&mut self) -> anyhow::Result<()> {
        if self.come == self.there {
            return Ok(());
        }
        let pieces = std::mem::take(&mut self.pieces);
        let step = Step { about: self.about, after: self.there, upto: self.come, pieces };
        // What did not arrive has not come: nothing may be sent as if it had.
        self.come = self.there;
        self.there = self.client.import_blocks(self.volume, &step)?.block;
        self.come = self.there;
        self.bytes = 0;
        Ok(())
    }
}

fn at(block: u64) -> Size {
    Size(BlockCount(block).bytes())
}
