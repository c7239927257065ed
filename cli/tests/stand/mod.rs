//! A server and a front as real processes, in a folder of their own.
#![allow(dead_code)] // Each test binary uses its part.

pub(crate) mod cable;

use std::fs;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long a process may take to be ready, or to end: the machine is shared
/// with other tests.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn vrio() -> Command {
    Command::new(binary())
}

/// The binary that is tested: of these tests' profile, or, for figures that mean
/// something, what `VRIO_BINARY` names, from the repository's folder.
pub(crate) fn binary() -> PathBuf {
    let Some(file) = std::env::var_os("VRIO_BINARY") else {
        return env!("CARGO_BIN_EXE_vrio").into();
    };
    let found = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(&file).canonicalize();
    found.unwrap_or_else(|error| panic!("VRIO_BINARY names {file:?}: {error}"))
}

/// A folder with a server and its fronts; all end with it.
pub(crate) struct Stand {
    folder: TempDir,
    /// Where fronts look for the server, which listens there.
    address: String,
    /// The network namespaces of the server and of the fronts, if they have
    /// their own.
    namespaces: [Option<String>; 2],
    /// More words for their command lines.
    pub(crate) words: String,
    server: Option<Process>,
    fronts: Vec<(String, Process)>,
}

/// A process that does not outlive its test.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    pub(crate) fn spawn(command: &mut Command, log: PathBuf) -> Self {
        let file = fs::File::options().create(true).append(true).open(&log).expect("a log file");
        let errors = file.try_clone().expect("a second handle");
        let child = command.stdin(Stdio::null()).stdout(file).stderr(errors).spawn();
        Self { child: child.expect("vrio starts"), log }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }

    /// Asks it to stop, as a service manager does; its exit code.
    pub(crate) fn stop(&mut self) -> Option<i32> {
        let id = self.child.id().to_string();
        Command::new("kill").args(["-TERM", &id]).status().expect("kill runs");
        self.wait()
    }

    pub(crate) fn wait(&mut self) -> Option<i32> {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                return status.code();
            }
            assert!(Instant::now() < end, "it does not end; its log:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn await_path(&mut self, path: &Path) {
        let end = Instant::now() + PATIENCE;
        while !path.exists() {
            let ended = self.child.try_wait().expect("wait");
            assert!(ended.is_none(), "it ended before {path:?} was there:\n{}", self.log());
            assert!(Instant::now() < end, "{path:?} does not appear:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Stand {
    /// A server with a device of so many MiB and no volume.
    pub(crate) fn start(device_mib: u64) -> Self {
        Self::start_with(device_mib, |_| String::new())
    }

    /// The same, with more lines for the device; they may name files, whose
    /// paths are made of names.
    pub(crate) fn start_with(
        device_mib: u64,
        more: impl FnOnce(&dyn Fn(&str) -> PathBuf) -> String,
    ) -> Self {
        let mut stand = Self::on_loopback();
        stand.configure_server(device_mib, more);
        stand.start_server();
        stand
    }

    /// A server with an idle setting of its own.
    pub(crate) fn start_idling(idle: &str) -> Self {
        let mut stand = Self::on_loopback();
        stand.configure_server(64, |_| String::new());
        stand.say_to_server(&format!("idle = \"{idle}\""));
        stand.start_server();
        stand
    }

    /// A line for the server as a whole, which it reads at its next start.
    pub(crate) fn say_to_server(&self, line: &str) {
        let file = self.path("server.toml");
        let text = fs::read_to_string(&file).expect("just written");
        fs::write(&file, format!("{line}\n{text}")).expect("write");
    }

    /// A server that fronts reach through memory.
    pub(crate) fn start_in_memory() -> Self {
        let mut stand = Self::empty(String::new(), [None, None]);
        stand.address = format!("mem://{}", stand.path("wire").display());
        stand.configure_server(256, |_| String::new());
        stand.start_server();
        stand
    }

    fn on_loopback() -> Self {
        // The kernel picks a free port; nobody else is given it soon.
        let port = UdpSocket::bind("127.0.0.1:0").expect("a port").local_addr().expect("it").port();
        Self::empty(format!("udp://127.0.0.1:{port}"), [None, None])
    }

    /// A server at this address, and fronts, in network namespaces of their own.
    pub(crate) fn start_in(
        namespaces: [String; 2],
        address: &str,
        words: &str,
        device_mib: u64,
    ) -> Self {
        let mut stand = Self::empty(address.to_owned(), namespaces.map(Some));
        stand.words = words.to_owned();
        stand.configure_server(device_mib, |_| String::new());
        stand.start_server();
        stand
    }

    fn empty(address: String, namespaces: [Option<String>; 2]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (server, fronts, words) = (None, Vec::new(), String::new());
        Self { folder, address, namespaces, words, server, fronts }
    }

    fn configure_server(
        &self,
        device_mib: u64,
        more: impl FnOnce(&dyn Fn(&str) -> PathBuf) -> String,
    ) {
        let stand = self;
        let text = format!(
            "clear = true\nlisten = \"{}\"\ncontrol = \"{}\"\nstate = \"{}\"\n\
             [[device]]\nname = \"soft\"\npath = \"soft:{}\"\nsize = \"{device_mib}M\"\n{}",
            stand.server_address(),
            stand.path("control.sock").display(),
            stand.path("server").display(),
            stand.path("device.img").display(),
            more(&|name| stand.path(name)),
        );
        fs::write(stand.path("server.toml"), text).expect("write");
    }

    /// A `vrio` in one of the namespaces.
    fn vrio_in(&self, place: usize) -> Command {
        let Some(namespace) = &self.namespaces[place] else { return vrio() };
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace]).arg(binary());
        command
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn server_address(&self) -> String {
        self.address.clone()
    }

    /// Fronts that are configured from now on name the server like that.
    pub(crate) fn fronts_look_at(&mut self, address: &str) {
        address.clone_into(&mut self.address);
    }

    pub(crate) fn start_server(&mut self) {
        let mut command = self.vrio_in(0);
        command.arg("server").arg("--config").arg(self.path("server.toml"));
        command.args(self.words.split_whitespace());
        let control = self.path("control.sock");
        let _ = fs::remove_file(&control);
        let mut server = Process::spawn(&mut command, self.path("server.log"));
        server.await_path(&control);
        self.server = Some(server);
    }

    pub(crate) fn server(&mut self) -> &mut Process {
        self.server.as_mut().expect("a server runs")
    }

    /// Runs `vrio ...` on this server.
    pub(crate) fn run(&self, words: &str) -> Output {
        let mut command = vrio();
        command.args(words.split_whitespace());
        command.arg("--control").arg(self.path("control.sock")).stdin(Stdio::null());
        command.output().expect("vrio runs")
    }

    /// Runs `vrio volume ...` on this server.
    pub(crate) fn volume(&self, words: &[&str]) -> Output {
        let mut command = vrio();
        command.arg("volume").args(words).arg("--control").arg(self.path("control.sock"));
        command.output().expect("vrio runs")
    }

    pub(crate) fn create(&self, name: &str, size: &str) {
        let output = self.volume(&["create", name, "--size", size]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Writes a front's configuration, with more lines for its one disk.
    pub(crate) fn configure_front(&self, front: &str, volume: &str, more: &str) -> PathBuf {
        let file = self.path(&format!("{front}.toml"));
        let text = format!(
            "state = \"{}\"\nserver = \"{}\"\nclear = true\nconnect_timeout_seconds = 5\n[[disk]]\n\
             volume = \"{volume}\"\nsocket = \"{}\"\n{more}\n",
            self.path(front).display(),
            self.server_address(),
            self.socket(front).display(),
        );
        fs::write(&file, text).expect("write");
        file
    }

    pub(crate) fn socket(&self, front: &str) -> PathBuf {
        self.path(&format!("{front}.sock"))
    }

    /// Starts a front and waits for its socket, which is returned.
    pub(crate) fn front(&mut self, front: &str, volume: &str, more: &str) -> PathBuf {
        self.front_with(front, volume, "", more)
    }

    /// The same, with more lines for the front, and for its one disk.
    pub(crate) fn front_with(
        &mut self,
        front: &str,
        volume: &str,
        all: &str,
        more: &str,
    ) -> PathBuf {
        let config = self.configure_front(front, volume, more);
        let text = fs::read_to_string(&config).expect("just written");
        fs::write(&config, format!("{all}\n{text}")).expect("write");
        self.front_of(front, &config)
    }

    /// Starts a front of that configuration and waits for its socket.
    pub(crate) fn front_of(&mut self, front: &str, config: &Path) -> PathBuf {
        let socket = self.socket(front);
        let _ = fs::remove_file(&socket);
        let mut process = self.spawn_front(front, config);
        process.await_path(&socket);
        self.fronts.retain(|(name, _)| name != front);
        self.fronts.push((front.to_owned(), process));
        socket
    }

    /// Starts a front again that was killed, and waits for nothing.
    pub(crate) fn restart_front(&mut self, front: &str) {
        let process = self.spawn_front(front, &self.path(&format!("{front}.toml")));
        *self.front_process(front) = process;
    }

    pub(crate) fn spawn_front(&self, front: &str, config: &Path) -> Process {
        let mut command = self.vrio_in(1);
        command.arg("front").arg("--config").arg(config);
        command.args(self.words.split_whitespace());
        Process::spawn(&mut command, self.path(&format!("{front}.log")))
    }

    pub(crate) fn front_process(&mut self, front: &str) -> &mut Process {
        let place = self.fronts.iter_mut().find(|(name, _)| name == front);
        &mut place.expect("a front of that name").1
    }

    /// The logs, for a test that fails.
    pub(crate) fn logs(&self) -> String {
        let logs = fs::read_dir(self.folder.path()).expect("the folder").flatten();
        let logs = logs
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|e| e == "log"));
        logs.map(|path| {
            format!("-- {}\n{}", path.display(), fs::read_to_string(&path).unwrap_or_default())
        })
        .collect()
    }
}

/// Runs `vrio bench` on a socket; its report.
pub(crate) fn bench(socket: &Path, options: &str) -> Result<serde_json::Value, String> {
    let mut command = vrio();
    command.arg("bench").arg(socket).args(options.split_whitespace());
    command.args(["--json", "--wait", "yield"]);
    let output = command.output().expect("vrio runs");
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    Ok(serde_json::from_slice(&output.stdout).expect("JSON and nothing else"))
}
