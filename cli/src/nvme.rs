//! `vrio nvme`: controllers themselves, without volumes.

mod bench;
mod devices;
mod place;

use std::os::fd::AsFd;
use std::path::PathBuf;

use anyhow::Context;
use block_server::Size;
use clap::{Args, Subcommand};
use nvme::soft::{FileIo, FileOptions};
use nvme::vfio_user::Exported;
use nvme::{Controller, LbaSize, SoftNamespace, SoftOptions};

use bench::Bench;
use devices::{Bind, List, Unbind};
use place::Place;

use crate::stop::Stop;
use crate::table::{Side, table};

/// NVMe controllers: which there are, what they are, who drives them
#[derive(Debug, Args)]
pub(crate) struct NvmeArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve files as namespaces of a controller on a vfio-user socket
    ///
    /// For one driver at a time: a `vrio server` whose device is
    /// "vfio-user:SOCKET", or any other that speaks vfio-user and polls. Only this
    /// user may open the socket. Runs until SIGINT or SIGTERM.
    Serve(Serve),
    /// List the NVMe controllers of this machine
    ///
    /// With each: who drives it, its disks, and what they are used for. A server uses a
    /// controller as "pci:ADDRESS" when it is bound to vfio-pci.
    List(List),
    /// Take a controller from the kernel, for `vrio server` and the commands below
    ///
    /// It is given to the driver vfio-pci (load it: modprobe vfio-pci). Refused while a
    /// disk of it is mounted, is swap space, or part of RAID, LVM or the device mapper.
    /// Lasts until `unbind` or a reboot.
    Bind(Bind),
    /// Give a controller back to the kernel's driver
    Unbind(Unbind),
    /// Show what a controller is and which namespaces it has
    Identify(Place),
    /// Show a controller's SMART / health log
    Health(Place),
    /// Measure a namespace without anything in between: random reads, or writes
    ///
    /// Reads only, unless --overwrite names the device once more.
    Bench(Bench),
}

#[derive(Debug, Args)]
struct Serve {
    /// The socket to make
    socket: PathBuf,
    /// A file for each namespace, the first of which is 1
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Make files that do not exist, with this size
    #[arg(long, value_name = "SIZE")]
    create: Option<Size>,
    /// Bytes in a logical block: 512, or 4096
    #[arg(long, value_name = "BYTES", default_value_t = 4096)]
    lba: u32,
    /// How the files' bytes are moved: "mapped" (copied, through the page cache), "direct"
    /// (straight between storage and driver), or "auto": direct where the file system can
    #[arg(long, default_value = "auto")]
    io: FileIo,
    /// The controller's serial number: up to 20 letters and digits
    #[arg(long, default_value = "VRIO-SOFT")]
    serial: String,
    /// Most I/O queue pairs
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    queues: u16,
}

pub(crate) fn run(args: NvmeArgs) -> anyhow::Result<()> {
    match args.command {
        Command::Serve(serve) => serve.run(),
        Command::List(list) => list.run(),
        Command::Bind(bind) => bind.run(),
        Command::Unbind(unbind) => unbind.run(),
        Command::Identify(place) => identify(&place.start()?),
        Command::Health(place) => health(&place.start()?),
        Command::Bench(bench) => bench.run(),
    }
}

impl Serve {
    fn run(&self) -> anyhow::Result<()> {
        let lba = match self.lba {
            512 => LbaSize::B512,
            4096 => LbaSize::B4096,
            other => anyhow::bail!("--lba {other} is neither 512 nor 4096"),
        };
        let open = |path: &PathBuf| {
            let create = self.create.map(Size::bytes);
            SoftNamespace::file(&FileOptions { path: path.clone(), create, io: self.io }, lba)
        };
        let namespaces = self.files.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        let options = SoftOptions {
            serial: self.serial.clone(),
            queues: self.queues,
            ..SoftOptions::default()
        };
        let stop = Stop::listen()?;
        let named = || format!("cannot serve on '{}'", self.socket.display());
        let exported = Exported::bind(&self.socket, options, namespaces).with_context(named)?;
        tracing::info!(socket = %self.socket.display(), namespaces = self.files.len(), "serving");
        exported.serve(&|| stop.is_asked(), stop.bell().as_fd()).with_context(named)
    }
}

fn identify(controller: &Controller) -> anyhow::Result<()> {
    let info = controller.info();
    let version =
        format!("{}.{}.{}", info.version >> 16, info.version >> 8 & 0xff, info.version & 0xff);
    let transfer = info.max_transfer.map_or("any".to_owned(), |bytes| Size(bytes).to_string());
    println!("model             {}", info.model);
    println!("serial number     {}", info.serial);
    println!("firmware          {}", info.firmware);
    println!("NVMe              {version}");
    println!("largest transfer  {transfer}");
    println!("I/O queue pairs   {}", controller.queues_granted());
    println!("volatile cache    {}", yes(info.has_volatile_cache));
    println!("write zeroes      {}", yes(info.has_write_zeroes));
    println!("deallocate        {}", yes(info.has_dataset_management));
    println!();
    let rows = controller.namespaces().map(|namespace| {
        let bytes = namespace.lba_count.saturating_mul(namespace.lba_size.bytes() as u64);
        let size = Size(bytes).to_string();
        [namespace.id.to_string(), size, namespace.lba_size.bytes().to_string()]
    });
    let columns = [("NAMESPACE", Side::Right), ("SIZE", Side::Right), ("BLOCK", Side::Right)];
    print!("{}", table(columns, &rows.collect::<Vec<_>>()));
    Ok(())
}

fn health(controller: &Controller) -> anyhow::Result<()> {
    let log = controller.health_log()?;
    println!("critical warning  {:#04x}", log.critical_warning);
    println!("temperature       {} C", i32::from(log.kelvin) - 273);
    println!(
        "spare blocks      {} % (critical below {} %)",
        log.spare_percent, log.spare_threshold_percent
    );
    println!("life used         {} %", log.used_percent);
    println!("bytes read        {}", log.bytes_read);
    println!("bytes written     {}", log.bytes_written);
    println!("reads             {}", log.reads);
    println!("writes            {}", log.writes);
    println!("power cycles      {}", log.power_cycles);
    println!("power-on hours    {}", log.power_on_hours);
    println!("unsafe shutdowns  {}", log.unsafe_shutdowns);
    println!("media errors      {}", log.media_errors);
    println!("errors logged     {}", log.logged_errors);
    Ok(())
}

fn yes(is: bool) -> &'static str {
    if is { "yes" } else { "no" }
}
