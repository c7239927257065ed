//! The control socket from end to end: a client, HTTP over a UNIX socket, and
//! a worker in its own thread.

mod support;

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;

use block_server::api::{
    AccessInfo, CreateVolume, DeleteVolume, DetachVolume, ResizeVolume, ServerInfo, VolumeInfo,
    WorkerInfo,
};
use block_server::checks::Checks;
use block_server::client::ClientError;
use block_server::{
    Authorized, Client, Control, Directory, Errand, LocalPath, Mailbox, Office, Size, WorkerIndex,
};
use link::{Access, AttachReply, AttachRequest};
use nvme::{LbaSize, SoftNamespace};
use support::{DEVICE_BYTES, front, name, place, worker_over};

/// A server without a wire: a fused worker in a thread, which attaches what it
/// is told to.
struct Server {
    client: Client,
    socket: PathBuf,
    control: Option<Control>,
    mailbox: Arc<Mailbox>,
    attach: mpsc::Sender<(&'static str, mpsc::Sender<AttachReply>)>,
    thread: Option<JoinHandle<()>>,
    _folder: tempfile::TempDir,
}

impl Server {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("below/server.sock");
        let directory = Arc::new(Directory::default());
        let (attach, wanted) = mpsc::channel::<(&str, mpsc::Sender<AttachReply>)>();
        let (told, mailbox) = mpsc::channel();
        let shared = Arc::clone(&directory);
        let thread = std::thread::spawn(move || {
            let place = place(0, &shared);
            told.send(Arc::clone(&place.mailbox)).expect("somebody waits");
            let memory = SoftNamespace::memory(DEVICE_BYTES, LbaSize::B4096).expect("memory");
            let mut path = LocalPath::over_nvme(worker_over(memory, place), front(1), 1, 8);
            while !path.worker().is_stopped() {
                use link::Path;
                path.turn(block_core::Time::ZERO, &mut support::VecGuest::default());
                if let Ok((volume, reply)) = wanted.try_recv() {
                    let request = AttachRequest::new(name(volume), Access::Write);
                    reply.send(path.attach(request)).expect("somebody waits");
                }
                std::thread::yield_now();
            }
        });
        let mailbox = mailbox.recv().expect("the worker starts");
        let control =
            Control::start(&socket, None, None, office(&directory, &mailbox)).expect("a socket");
        Self {
            client: Client::new(&socket),
            socket,
            control: Some(control),
            mailbox,
            attach,
            thread: Some(thread),
            _folder: folder,
        }
    }

    fn attach(&self, volume: &'static str) -> AttachReply {
        let (reply, answer) = mpsc::channel();
        self.attach.send((volume, reply)).expect("the worker runs");
        answer.recv().expect("an answer")
    }

    /// Status line and body of a request that no client of ours would send.
    fn raw(&self, request: &str) -> String {
        let mut stream = UnixStream::connect(&self.socket).expect("it listens");
        stream.write_all(request.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    }

    fn post(&self, path: &str, body: &str) -> String {
        self.raw(&format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ))
    }
}

fn office(directory: &Arc<Directory>, mailbox: &Arc<Mailbox>) -> Office {
    let info = WorkerInfo {
        address: "udp://127.0.0.1:7700".to_owned(),
        cpu: None,
        idle: "adaptive".to_owned(),
    };
    Office {
        version: "1.2.3".to_owned(),
        workers: vec![(info, Arc::clone(mailbox))],
        devices: vec![("disk".to_owned(), WorkerIndex(0))],
        directory: Arc::clone(directory),
        traces: Arc::default(),
        checks: Checks::default(),
        authorized: Arc::new(Authorized::open("/nowhere/authorized".as_ref()).expect("none")),
        keys: Vec::new(),
        clear: true,
        draw: || 4,
        wall: || 1_700_000_000,
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.control.take());
        self.mailbox.send(Errand::Stop);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the worker ends");
        }
        assert!(!self.socket.exists(), "the socket is gone with its server");
    }
}

fn sized(name: &str, bytes: u64) -> CreateVolume {
    CreateVolume {
        name: name.to_owned(),
        size: Size(bytes),
        device: None,
        read_only: false,
        domain: None,
    }
}

fn refused<T: std::fmt::Debug>(outcome: Result<T, ClientError>) -> String {
    match outcome {
        Err(ClientError::Refused(sentence)) => sentence,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn a_volume_is_made_shown_grown_and_deleted() {
    let server = Server::start();
    let client = &server.client;
    let made = client.create(&sized("vm", 8 << 20)).expect("created");
    assert_eq!((made.size, &made.device[..], made.generation), (Size(8 << 20), "disk", 1));
    assert_eq!(client.volume("vm").expect("there"), made);
    client.create(&sized("a", 1 << 20)).expect("created");
    let names: Vec<String> =
        client.volumes().expect("a list").into_iter().map(|volume| volume.name).collect();
    assert_eq!(names, ["a", "vm"]);

    let grown = client.resize("vm", &ResizeVolume { size: Size(16 << 20), shrink: false });
    assert_eq!(grown.expect("room"), VolumeInfo { size: Size(16 << 20), extents: 2, ..made });
    let smaller = ResizeVolume { size: Size(4096), shrink: false };
    assert!(refused(client.resize("vm", &smaller)).contains("--shrink"));
    client.resize("vm", &ResizeVolume { shrink: true, ..smaller }).expect("asked for");

    let ServerInfo { version, workers, devices } = client.server().expect("it says");
    assert_eq!((&version[..], workers.len(), devices[0].volumes), ("1.2.3", 1, 2));
    assert_eq!(devices[0].free, Size(DEVICE_BYTES - (9 << 20) - (2 << 20)));
    client.delete("a", &DeleteVolume::default()).expect("deleted");
    client.delete("vm", &DeleteVolume::default()).expect("deleted");
    assert_eq!(client.volumes().expect("a list"), []);
    assert_eq!(client.server().expect("it says").devices[0].free, Size(DEVICE_BYTES - (9 << 20)));
}

#[test]
fn each_mistake_is_answered_with_a_sentence() {
    let server = Server::start();
    let client = &server.client;
    client.create(&sized("vm", 1 << 20)).expect("created");
    for (sentence, part) in [
        (refused(client.create(&sized("vm", 1 << 20))), "there is a volume 'vm' already"),
        (refused(client.create(&sized("v m", 1 << 20))), "'v m' is not a volume name"),
        (refused(client.create(&sized("x", 4097))), "multiple of 4096"),
        (refused(client.create(&sized("x", 1 << 40))), "has 54M free and 1T were asked"),
        (refused(client.volume("nothing")), "no volume 'nothing'"),
        (refused(client.delete("nothing", &DeleteVolume::default())), "no volume 'nothing'"),
        (refused(client.volume("../etc")), "is not a volume name"),
    ] {
        assert!(sentence.contains(part), "{sentence:?} lacks {part:?}");
    }
    let elsewhere = CreateVolume { device: Some("ssd".to_owned()), ..sized("x", 4096) };
    assert!(refused(client.create(&elsewhere)).contains("no device 'ssd'"));
    let absent = ResizeVolume { size: Size(8192), shrink: false };
    assert!(refused(client.resize("nothing", &absent)).contains("no volume 'nothing'"));
    for (answer, status, part) in [
        (server.post("/volumes", "{\"name\": \"x\"}"), "400", "missing field `size`"),
        (server.post("/volumes", "{\"sice\": 3}"), "400", "unknown field `sice`"),
        (server.post("/volumes", "not json"), "400", "body is wrong"),
        (server.post("/volumes", "{\"name\":\"y\",\"size\":\"1M\"}"), "201", "1048576"),
        (server.post("/nowhere", ""), "404", "nothing at /nowhere"),
        (server.post("/server", ""), "405", "does not know POST"),
        (server.post("/volumes/vm/detach", "{\"front\":\"x\"}"), "400", "a UUID"),
        (server.post("/volumes", &"x".repeat(70_000)), "413", "at most 64K"),
    ] {
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert!(answer.contains(part), "{answer:?} lacks {part:?}");
    }
    assert_eq!(client.volumes().expect("it still serves").len(), 2);
}

#[test]
fn a_volume_that_is_attached_is_kept_until_it_is_taken_away_by_force() {
    let server = Server::start();
    let client = &server.client;
    client.create(&sized("vm", 1 << 20)).expect("created");
    assert!(matches!(server.attach("vm"), AttachReply::Attached(_)));
    let shown = client.volume("vm").expect("there");
    let attached = &shown.attachments[0];
    assert_eq!(attached.front, front(1).to_string());
    assert_eq!((attached.access, attached.connected), (AccessInfo::Write, true));

    let writer = format!("writer {}", attached.front);
    assert!(refused(client.delete("vm", &DeleteVolume::default())).contains(&writer));
    let sentence = refused(client.detach("vm", &DetachVolume::default()));
    assert!(sentence.contains(&writer) && sentence.contains("--force"), "{sentence}");
    let shrink = ResizeVolume { size: Size(4096), shrink: true };
    assert!(refused(client.resize("vm", &shrink)).contains(&writer));
    client.resize("vm", &ResizeVolume { size: Size(2 << 20), shrink: false }).expect("it may grow");

    let other = DetachVolume { front: Some(front(2).to_string()), force: true };
    assert!(refused(client.detach("vm", &other)).contains("does not have volume 'vm'"));
    let its = DetachVolume { front: Some(attached.front.clone()), force: true };
    let detached = client.detach("vm", &its).expect("by force");
    assert_eq!((detached.generation, detached.attachments.len()), (shown.generation + 1, 0));
    client.detach("vm", &DetachVolume::default()).expect("nobody has it: nothing to do");
    client.delete("vm", &DeleteVolume::default()).expect("nobody has it");
}

#[test]
fn the_socket_belongs_to_one_server_and_to_its_owner() {
    let server = Server::start();
    let mode = std::fs::metadata(&server.socket).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let directory = Arc::new(Directory::default());
    let second = Control::start(&server.socket, None, None, office(&directory, &server.mailbox));
    let sentence = second.expect_err("it is taken").to_string();
    assert!(sentence.starts_with("another vrio server is running on "), "{sentence}");
    server.client.volumes().expect("the first one still answers");

    // Left behind by a server that was killed.
    let stale = server.socket.with_file_name("stale.sock");
    drop(UnixListener::bind(&stale).expect("bound"));
    assert!(matches!(Client::new(&stale).volumes(), Err(ClientError::NoServer(_))));
    let control = Control::start(&stale, None, None, office(&directory, &server.mailbox));
    drop(control.expect("a stale socket is replaced"));

    let file = server.socket.with_file_name("precious");
    std::fs::write(&file, "data").expect("written");
    let onto = Control::start(&file, None, None, office(&directory, &server.mailbox));
    assert!(onto.expect_err("a file").to_string().contains("is not a socket"));
    assert_eq!(std::fs::read(&file).expect("there"), b"data");
    // Somebody who connects and says nothing does not hold up the end.
    let _silent = UnixStream::connect(&server.socket).expect("it listens");
    let nowhere = Client::new(&server.socket.with_file_name("none.sock")).volumes();
    let sentence = nowhere.expect_err("nobody").to_string();
    assert!(sentence.contains("start one with `vrio server`"), "{sentence}");
}
