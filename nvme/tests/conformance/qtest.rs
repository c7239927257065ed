//! QEMU's NVMe controller without a machine around it: under qtest a socket takes
//! accesses to PCI configuration and registers as lines of text, and the guest's
//! memory is a file that this process maps as well.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use block_core::DmaMemory;
use nvme::Bus;
use nvme::arena::Arena;

/// Memory of the machine, and what of it is ours: beyond everything that has a
/// meaning on a PC.
const RAM_BYTES: u64 = 64 << 20;
const OURS: std::ops::Range<u64> = 16 << 20..48 << 20;

/// Where the controller's registers are put, far above the memory.
const BAR: u64 = 0xe000_0000;

/// PCI: an NVMe controller's class, the command register and what is set there.
const NVME_CLASS: u32 = 0x01_08_02;
const COMMAND: u32 = 0x04;
const MEMORY_SPACE: u32 = 1 << 1;
const BUS_MASTER: u32 = 1 << 2;

/// The first doorbell.
const DOORBELLS: u32 = 0x1000;

/// Doorbells whose receipt has not been read yet, at most.
const UNREAD: usize = 64;

/// A running QEMU.
pub(crate) struct Qemu {
    child: Child,
    bus: Arc<QtestBus>,
    _folder: tempfile::TempDir,
}

impl Qemu {
    /// Starts it with two namespaces of `bytes`, or says why there is none.
    pub(crate) fn start(
        bytes: u64,
        max_transfer: usize,
        queues: u16,
        serial: &str,
    ) -> Result<Self, String> {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guest/qemu");
        if !program.exists() {
            return Err("there is no QEMU; demo/guest-image gets one (`make test` does)".to_owned());
        }
        // Where files are memory nothing is written to a disk.
        let memory = Path::new("/dev/shm");
        let folder = if memory.exists() { memory.to_owned() } else { std::env::temp_dir() };
        let folder = tempfile::tempdir_in(folder).expect("a folder");
        let file = |name: &str, bytes| {
            let path = folder.path().join(name);
            File::create(&path).and_then(|file| file.set_len(bytes)).expect("a file");
            path.display().to_string()
        };
        let ram = file("ram", RAM_BYTES);
        let socket = folder.path().join("qtest");
        let pages = (max_transfer / 4096).trailing_zeros();
        let mut command = Command::new(program);
        command.args(["-accel", "tcg", "-S", "-machine", "q35,memory-backend=ram", "-m", "64"]);
        command
            .arg("-object")
            .arg(format!("memory-backend-file,id=ram,mem-path={ram},size={RAM_BYTES},share=on"));
        command.args(["-nodefaults", "-display", "none", "-qtest-log", "/dev/null", "-qtest"]);
        command.arg(format!("unix:{},server=on,wait=off", socket.display()));
        command.args([
            "-device",
            &format!("nvme,id=nvme0,serial={serial},mdts={pages},max_ioqpairs={queues},aerl=3"),
        ]);
        for (id, size) in [(1, 4096), (2, 512)] {
            let image = file(&format!("namespace{id}"), bytes);
            command
                .arg("-drive")
                .arg(format!("if=none,id=d{id},file={image},format=raw,discard=unmap"));
            command.args([
                "-device",
                &format!(
                    "nvme-ns,bus=nvme0,drive=d{id},nsid={id},logical_block_size={size},\
                 physical_block_size={size}"
                ),
            ]);
        }
        let child = command.stdin(Stdio::null()).spawn().expect("QEMU starts");
        let stream = connect(&socket);
        let ram = OpenOptions::new().read(true).write(true).open(ram).expect("the memory");
        let bus = Arc::new(QtestBus::new(stream, Arena::new(ram, OURS, OURS.start)));
        Ok(Self { child, bus, _folder: folder })
    }

    pub(crate) fn bus(&self) -> Arc<dyn Bus> {
        Arc::clone(&self.bus) as _
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn connect(socket: &PathBuf) -> UnixStream {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < end, "QEMU's socket: {error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

struct QtestBus {
    link: Mutex<Link>,
    slot: u32,
    arena: Arena,
}

struct Link {
    stream: UnixStream,
    answers: BufReader<UnixStream>,
    unread: usize,
}

impl Link {
    fn ask(&mut self, line: &str) -> u32 {
        self.say(line);
        self.catch_up()
    }

    /// Says something without waiting for the answer.
    fn tell(&mut self, line: &str) {
        self.say(line);
        if self.unread > UNREAD {
            self.catch_up();
        }
    }

    fn say(&mut self, line: &str) {
        self.stream.write_all(line.as_bytes()).expect("QEMU lives");
        self.unread += 1;
    }

    /// Reads every answer; the value of the last.
    fn catch_up(&mut self) -> u32 {
        let mut value = 0;
        while self.unread > 0 {
            let mut line = String::new();
            assert!(self.answers.read_line(&mut line).expect("QEMU lives") > 0, "QEMU is gone");
            let Some(rest) = line.strip_prefix("OK") else {
                assert!(line.starts_with("IRQ"), "QEMU says {line}");
                continue;
            };
            self.unread -= 1;
            let digits = rest.trim().trim_start_matches("0x");
            value = u64::from_str_radix(digits, 16).unwrap_or(0) as u32;
        }
        value
    }
}

impl QtestBus {
    fn new(stream: UnixStream, arena: Arena) -> Self {
        let answers = BufReader::new(stream.try_clone().expect("a second handle"));
        let link = Mutex::new(Link { stream, answers, unread: 0 });
        let mut bus = Self { link, slot: 0, arena };
        let is_nvme = |bus: &Self, slot| bus.configuration(slot, 0x08) >> 8 == NVME_CLASS;
        bus.slot = (0..32).find(|&slot| is_nvme(&bus, slot)).expect("the controller");
        bus.configure(0x10, BAR as u32);
        bus.configure(0x14, 0);
        bus.configure(COMMAND, MEMORY_SPACE | BUS_MASTER);
        bus
    }

    fn ask(&self, line: &str) -> u32 {
        self.link.lock().unwrap_or_else(PoisonError::into_inner).ask(line)
    }

    fn configuration(&self, slot: u32, register: u32) -> u32 {
        self.ask(&format!("outl 0xcf8 {:#x}\n", 1 << 31 | slot << 11 | register));
        self.ask("inl 0xcfc\n")
    }

    fn configure(&self, register: u32, value: u32) {
        self.ask(&format!("outl 0xcf8 {:#x}\n", 1 << 31 | self.slot << 11 | register));
        self.ask(&format!("outl 0xcfc {value:#x}\n"));
    }
}

impl Bus for QtestBus {
    fn read32(&self, offset: u32) -> u32 {
        self.ask(&format!("readl {:#x}\n", BAR + u64::from(offset)))
    }

    fn write32(&self, offset: u32, value: u32) {
        let line = format!("writel {:#x} {value:#x}\n", BAR + u64::from(offset));
        let mut link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        if offset < DOORBELLS {
            link.ask(&line);
        } else {
            link.tell(&line);
        }
    }

    fn allocate(&self, bytes: usize) -> std::io::Result<DmaMemory> {
        self.arena.allocate(bytes)
    }

    fn cut_off(&self) {
        self.configure(COMMAND, MEMORY_SPACE);
    }

    fn relax(&self) {
        std::thread::yield_now();
    }
}
