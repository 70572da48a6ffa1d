//! A broker process for the tests: started on free ports, read until it says that it serves, ended by its pid.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The binary under test.
pub(crate) const CORELOG: &str = env!("CARGO_BIN_EXE_corelog");

/// A folder for data on a real file system: the build's own, since `/tmp` may be memory.
pub(crate) fn data_folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("corelog-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// A running broker.
pub(crate) struct Broker {
    child: Child,
    /// Where clients connect.
    pub(crate) address: String,
    /// Where operators look.
    pub(crate) admin: String,
    /// What it said when it was ready.
    pub(crate) said: String,
    /// From its start as a process until it said so.
    pub(crate) took: Duration,
}

impl Broker {
    /// Starts `corelog dev` and returns when it serves. `port` 0 takes a free one.
    pub(crate) fn dev(data: &Path, port: u16, shards: u16) -> Self {
        Self::start(Command::new(CORELOG).arg("dev").arg("--data-dir").arg(data).args([
            "--port",
            &port.to_string(),
            "--admin-port",
            "0",
            "--shards",
            &shards.to_string(),
        ]))
    }

    /// Starts `corelog serve` on free ports with its file and its data in `folder`, and returns when it serves.
    pub(crate) fn serve(folder: &Path, shards: u16, storage: &str) -> Self {
        let (file, data) = (folder.join("corelog.toml"), folder.join("data"));
        let text = format!(
            "[broker]\nid = 7\ncluster = \"c\"\ndata_dir = \"{}\"\nshards = {shards}\n[listen]\naddress = \
             \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n[storage]\njournal_bytes = \"64MiB\"\n{storage}\n",
            data.display()
        );
        std::fs::write(&file, text).unwrap();
        Self::start(Command::new(CORELOG).arg("serve").arg("--config").arg(file))
    }

    /// Starts a broker by any command and returns when it serves.
    pub(crate) fn start(command: &mut Command) -> Self {
        Self::start_with(command, Stdio::inherit())
    }

    /// The same, with its log written there.
    pub(crate) fn start_with(command: &mut Command, log: Stdio) -> Self {
        let began = Instant::now();
        let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut said = String::new();
        // The first lines end with where its metrics are; before that, the end of the output means that it ended.
        while !said.contains("Ctrl-C") {
            assert!(stdout.read_line(&mut said).unwrap() > 0, "the broker ended before it served: {said}");
        }
        let took = began.elapsed();
        let word_after = |what: &str| {
            let rest = &said[said.find(what).unwrap() + what.len()..];
            rest.split([' ', '/', '\n']).next().unwrap().to_owned()
        };
        let (address, admin) = (word_after(" serves "), word_after("http://"));
        Self { child, address, admin, said, took }
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its port.
    pub(crate) fn port(&self) -> u16 {
        self.address.rsplit(':').next().unwrap().parse().unwrap()
    }

    /// Resident memory in KiB.
    pub(crate) fn resident_kib(&self) -> u64 {
        self.status_kib("VmRSS:")
    }

    /// A size in KiB from the system's account of the process.
    pub(crate) fn status_kib(&self, what: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with(what)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// What its administration answers to a GET.
    pub(crate) fn get(&self, what: &str) -> String {
        get(&self.admin, what)
    }

    /// A number of `/metrics`, by its name and labels.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).trim().parse().unwrap()
    }

    /// `kill -9`, and its end awaited.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Ctrl-C.
    pub(crate) fn signal(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    }

    /// Ctrl-C, and its end awaited. Gives its exit code.
    pub(crate) fn interrupt(mut self) -> Option<i32> {
        self.signal();
        self.child.wait().unwrap().code()
    }

    /// Runs a client command against this broker.
    pub(crate) fn run(&self, args: &[&str], input: &[u8]) -> Output {
        let mut child = Command::new(CORELOG)
            .args(args)
            .env("CORELOG_BOOTSTRAP", &self.address)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let (mut out, mut err) = (Vec::new(), Vec::new());
        std::thread::scope(|scope| {
            // A command that ends early closes its input; what it said tells why.
            scope.spawn(move || drop(stdin.write_all(input)));
            let reading = scope.spawn(|| stderr.read_to_end(&mut err).unwrap());
            stdout.read_to_end(&mut out).unwrap();
            reading.join().unwrap();
        });
        Output { status: child.wait().unwrap(), stdout: out, stderr: err }
    }

    /// Runs a client command that must succeed, without input, and hands its standard output over as it comes.
    pub(crate) fn stream<R>(&self, args: &[&str], take: impl FnOnce(&mut BufReader<ChildStdout>) -> R) -> R {
        let mut child = Command::new(CORELOG)
            .args(args)
            .env("CORELOG_BOOTSTRAP", &self.address)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::with_capacity(1 << 20, child.stdout.take().unwrap());
        let taken = take(&mut stdout);
        let status = child.wait().unwrap();
        assert!(status.success(), "{args:?} ended with {status}");
        taken
    }

    /// Runs a client command that must succeed; gives its standard output.
    pub(crate) fn succeed(&self, args: &[&str], input: &[u8]) -> Vec<u8> {
        let output = self.run(args, input);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?} ended with {}: {stderr}", output.status);
        output.stdout
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A number from the environment, for longer runs by hand.
pub(crate) fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |value| value.parse().unwrap())
}

/// Something that this host wrote itself, whatever host it is: the log of its package manager, another log, or, where there
/// is no log that may be read, what the kernel says of itself. At most 8 MiB of it.
pub(crate) fn host_log() -> Vec<u8> {
    let named = [
        "/var/log/dpkg.log",
        "/var/log/syslog",
        "/var/log/messages",
        "/var/log/dnf.rpm.log",
        "/var/log/pacman.log",
    ];
    let others = ["/var/lib/dpkg/status", "/proc/kallsyms", "/proc/cpuinfo"];
    let logs = std::fs::read_dir("/var/log").into_iter().flatten().flatten().map(|entry| entry.path());
    let candidates =
        named.into_iter().map(PathBuf::from).chain(logs).chain(others.into_iter().map(PathBuf::from));
    let read = candidates.filter(|path| path.is_file()).find_map(|path| {
        let mut bytes = Vec::new();
        std::fs::File::open(&path).and_then(|file| file.take(8 << 20).read_to_end(&mut bytes)).ok()?;
        println!("the host's own log: {}", path.display());
        (!bytes.is_empty()).then_some(bytes)
    });
    read.unwrap()
}

/// Pseudo-random numbers (splitmix64) from a seed that a failing test prints.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// The next 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// A file of the test's data folder.
pub(crate) fn path(folder: &tempfile::TempDir, name: &str) -> PathBuf {
    folder.path().join(name)
}

/// What is answered to a GET.
pub(crate) fn get(address: &str, what: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {what} HTTP/1.1\r\nHost: broker\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}
