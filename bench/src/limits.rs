//! What the machine gives without a broker: the device with the same flush pattern, and loopback TCP. Measured in the
//! same minute as a table and printed beside it.
//!
//! Called by `run` and the `limits` command. Invariant: the file is written in full before it is measured, as a flush
//! into blocks that were never written also commits file-system metadata, and is slower by a multiple.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use serde::Serialize;

use crate::error::{Doing, Error, Result};
use crate::machine::microseconds;
use crate::measure::{Percentile, histogram, nanoseconds};
use crate::pin::ThreadPlace;
use crate::schedule::Random;

/// Direct writes are multiples of this, in memory and in the file.
pub const BLOCK_BYTES: usize = 4096;
/// Length of the file that is written round and round.
const FILE_BYTES: usize = 512 << 20;
/// Longest write.
const WRITE_BYTES_MAX: usize = 8 << 20;
/// Memory that is copied and checked.
const COPIED_BYTES: usize = 512 << 20;
/// Length of a read.
const READ_BYTES: usize = 256 << 10;
/// Length of a loopback message.
const MESSAGE_BYTES: usize = 1 << 20;

/// A file on the device under test.
#[derive(Debug)]
pub struct Device {
    file: OwnedFd,
    path: PathBuf,
    buffer: Vec<u8>,
    /// Where the buffer is aligned.
    aligned_at: usize,
}

/// Writes of one size, each flushed before the next, one after the other.
#[derive(Clone, Debug, Serialize)]
pub struct WriteFlush {
    /// Bytes of each.
    pub bytes: usize,
    /// How many in a second.
    pub per_second: f64,
    /// Megabytes (1e6) in a second.
    pub mb_per_second: f64,
    /// Write and flush, in nanoseconds.
    pub p50_ns: Option<u64>,
    /// The same.
    pub p99_ns: Option<u64>,
}

impl Device {
    /// Makes the file and writes it in full.
    ///
    /// # Errors
    /// [`Error::System`], if only because the file system takes no direct writes.
    pub fn prepare(folder: &Path) -> Result<Self> {
        let path = folder.join(format!("corelog-bench-limits-{}", std::process::id()));
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::DIRECT | OFlags::CLOEXEC;
        let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)
            .doing(|| format!("making {} for direct writes", path.display()))?;
        let mut buffer = vec![0; WRITE_BYTES_MAX + BLOCK_BYTES];
        Random::new(1).fill(&mut buffer);
        let aligned_at = buffer.as_ptr().align_offset(BLOCK_BYTES);
        let device = Self { file, path, buffer, aligned_at };
        rustix::fs::fallocate(&device.file, rustix::fs::FallocateFlags::empty(), 0, FILE_BYTES as u64)
            .doing(|| "reserving the file".to_owned())?;
        for at in (0..FILE_BYTES).step_by(MESSAGE_BYTES) {
            device.write(at, MESSAGE_BYTES)?;
        }
        device.flush()?;
        Ok(device)
    }

    fn write(&self, at: usize, bytes: usize) -> Result<()> {
        let block = &self.buffer[self.aligned_at..self.aligned_at + bytes];
        let written = rustix::io::pwrite(&self.file, block, at as u64)
            .doing(|| format!("writing to {}", self.path.display()))?;
        if written < bytes {
            return Err(Error::Setup(format!("{} took {written} of {bytes} bytes", self.path.display())));
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        rustix::fs::fdatasync(&self.file).doing(|| format!("flushing {}", self.path.display()))
    }

    /// Sequential writes of this size (rounded up to blocks), each flushed, for so long.
    ///
    /// # Errors
    /// [`Error::System`].
    pub fn write_flush(&self, bytes: usize, for_time: Duration) -> Result<WriteFlush> {
        let bytes = bytes.next_multiple_of(BLOCK_BYTES).clamp(BLOCK_BYTES, WRITE_BYTES_MAX);
        let mut took = histogram();
        let began = Instant::now();
        let mut at = 0;
        while began.elapsed() < for_time {
            let one = Instant::now();
            self.write(at, bytes)?;
            self.flush()?;
            took.saturating_record(nanoseconds(one.elapsed()));
            at += bytes;
            if at + bytes > FILE_BYTES {
                at = 0;
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "for tables")]
        let per_second = took.len() as f64 / began.elapsed().as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "for tables")]
        let mb_per_second = per_second * bytes as f64 / 1e6;
        Ok(WriteFlush {
            bytes,
            per_second,
            mb_per_second,
            p50_ns: Percentile::P50.of(&took),
            p99_ns: Percentile::P99.of(&took),
        })
    }

    /// Sequential writes of a mebibyte without a flush, in megabytes (1e6) a second.
    ///
    /// # Errors
    /// [`Error::System`].
    pub fn write_rate(&self, for_time: Duration) -> Result<f64> {
        rate_of(MESSAGE_BYTES, FILE_BYTES, for_time, |at| self.write(at, MESSAGE_BYTES))
    }

    /// Sequential reads of this size, one at a time, in megabytes (1e6) a second.
    ///
    /// # Errors
    /// [`Error::System`].
    pub fn read_rate(&self, bytes: usize, for_time: Duration) -> Result<f64> {
        let mut memory = vec![0; bytes + BLOCK_BYTES];
        let aligned_at = memory.as_ptr().align_offset(BLOCK_BYTES);
        rate_of(bytes, FILE_BYTES, for_time, |at| {
            let block = &mut memory[aligned_at..aligned_at + bytes];
            let read = rustix::io::pread(&self.file, block, at as u64);
            read.doing(|| format!("reading {}", self.path.display())).map(drop)
        })
    }

    /// The same by fio on the same file, so that nobody need trust this file's loop. None if fio is not installed.
    ///
    /// # Errors
    /// [`Error::Setup`] if fio fails.
    pub fn fio(&self, bytes: usize, for_time: Duration) -> Result<Option<Fio>> {
        let bytes = bytes.next_multiple_of(BLOCK_BYTES).clamp(BLOCK_BYTES, WRITE_BYTES_MAX);
        let mut command = Command::new("fio");
        command
            .arg(format!("--filename={}", self.path.display()))
            .arg(format!("--size={FILE_BYTES}"))
            .arg(format!("--bs={bytes}"))
            .arg(format!("--runtime={}ms", for_time.as_millis()))
            .args(["--name=limit", "--rw=write", "--direct=1", "--ioengine=io_uring", "--iodepth=1"])
            .args(["--fdatasync=1", "--overwrite=1", "--time_based", "--output-format=json"]);
        let output = match command.output() {
            Ok(output) => output,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(source).doing(|| "running fio".to_owned()),
        };
        let text = String::from_utf8_lossy(&output.stdout);
        let parsed = text.find('{').and_then(|at| Fio::parse(&text[at..], bytes, &format!("{command:?}")));
        let errors = || String::from_utf8_lossy(&output.stderr).trim().to_owned();
        parsed.map(Some).ok_or_else(|| Error::Setup(format!("fio failed: {}", errors())))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            eprintln!("warning: {} could not be removed: {error}", self.path.display());
        }
    }
}

/// What fio says of the same pattern.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fio {
    /// Bytes of each write.
    pub bytes: usize,
    /// How many in a second.
    pub per_second: f64,
    /// Megabytes (1e6) in a second.
    pub mb_per_second: f64,
    /// How it was called.
    pub command: String,
}

impl Fio {
    fn parse(text: &str, bytes: usize, command: &str) -> Option<Self> {
        let json: serde_json::Value = serde_json::from_str(text).ok()?;
        let write = json.get("jobs")?.get(0)?.get("write")?;
        Some(Self {
            bytes,
            per_second: write.get("iops")?.as_f64()?,
            mb_per_second: write.get("bw_bytes")?.as_f64()? / 1e6,
            command: command.replace('"', ""),
        })
    }
}

/// What one processor does alone, in megabytes (1e6) a second.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Memory {
    /// Copies of a mebibyte, from and to memory that is not in its caches.
    pub copy: f64,
    /// The batches' checksum (CRC-32C) of a mebibyte.
    pub checksum: f64,
}

impl Memory {
    /// Measures both at a place.
    ///
    /// # Errors
    /// [`Error::System`] if the place cannot be taken.
    pub fn measure(place: ThreadPlace, for_time: Duration) -> Result<Self> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                place.take()?;
                Self::here(for_time)
            });
            thread.join().unwrap_or_else(|_| Err(Error::Setup("the copying thread ended".to_owned())))
        })
    }

    fn here(for_time: Duration) -> Result<Self> {
        // More than any cache holds.
        let mut memory = vec![7; COPIED_BYTES];
        let half = COPIED_BYTES / 2;
        let copy = rate_of(MESSAGE_BYTES, half, for_time, |at| {
            memory.copy_within(at..at + MESSAGE_BYTES, half + at);
            Ok(())
        });
        let checksum = rate_of(MESSAGE_BYTES, half, for_time, |at| {
            let message = &memory[at..at + MESSAGE_BYTES];
            std::hint::black_box(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, message));
            Ok(())
        });
        Ok(Self { copy: copy?, checksum: checksum? })
    }
}

/// Does something of this size round and round a length; megabytes (1e6) a second.
fn rate_of(
    bytes: usize,
    length: usize,
    for_time: Duration,
    mut each: impl FnMut(usize) -> Result<()>,
) -> Result<f64> {
    let began = Instant::now();
    let mut done = 0;
    while began.elapsed() < for_time {
        each(done % (length / bytes * bytes))?;
        done += bytes;
    }
    #[expect(clippy::cast_precision_loss, reason = "for a rate")]
    let megabytes = done as f64 / 1e6;
    Ok(megabytes / began.elapsed().as_secs_f64())
}

/// What the machine gives in a suite's own minutes: everything that a broker does is made of these.
#[derive(Clone, Debug, Serialize)]
pub struct Limits {
    /// Sequential direct writes of 1 MiB without a flush, MB/s.
    pub write: Option<f64>,
    /// The same, each flushed.
    pub write_flush: Option<WriteFlush>,
    /// The same by fio.
    pub fio: Option<Fio>,
    /// Sequential direct reads of 256 KiB, one at a time, MB/s.
    pub read: Option<f64>,
    /// Loopback TCP from the generator's processor to the broker's.
    pub loopback: Loopback,
    /// The broker's processor.
    pub memory: Memory,
}

impl Limits {
    /// Measures everything, each for so long, at the broker's place but for loopback's other end.
    ///
    /// # Errors
    /// [`Error::System`].
    pub fn measure(
        device: Option<&Device>,
        broker: ThreadPlace,
        generator: ThreadPlace,
        for_time: Duration,
        fio: bool,
    ) -> Result<Self> {
        let disk = |measure: &(dyn Fn(&Device) -> Result<f64> + Sync)| {
            let Some(device) = device else { return Ok(None) };
            let at_place = || {
                broker.take()?;
                measure(device)
            };
            std::thread::scope(|scope| {
                let ended = || Err(Error::Setup("the device's thread ended".to_owned()));
                scope.spawn(at_place).join().unwrap_or_else(|_| ended()).map(Some)
            })
        };
        let write_flush = std::sync::Mutex::new(None);
        disk(&|device| {
            let measured = device.write_flush(MESSAGE_BYTES, for_time)?;
            let rate = measured.mb_per_second;
            if let Ok(mut kept) = write_flush.lock() {
                *kept = Some(measured);
            }
            Ok(rate)
        })?;
        Ok(Self {
            write: disk(&|device| device.write_rate(for_time))?,
            write_flush: write_flush.into_inner().unwrap_or_default(),
            fio: match device {
                Some(device) if fio => device.fio(MESSAGE_BYTES, for_time * 4)?,
                _ => None,
            },
            read: disk(&|device| device.read_rate(READ_BYTES, for_time))?,
            loopback: loopback(generator, broker, for_time)?,
            memory: Memory::measure(broker, for_time)?,
        })
    }

    /// For a report's head and the terminal.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let rate = |rate: Option<f64>| rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.0}"));
        let Loopback { mb_per_second, two_streams, round_trip_p50_ns, round_trip_p99_ns } = &self.loopback;
        vec![
            format!(
                "device     1 MiB writes {} MB/s, each flushed {} MB/s (fio {}); 256 KiB reads {} MB/s",
                rate(self.write),
                rate(self.write_flush.as_ref().map(|both| both.mb_per_second)),
                rate(self.fio.as_ref().map(|fio| fio.mb_per_second)),
                rate(self.read),
            ),
            format!(
                "loopback   {mb_per_second:.0} MB/s one stream, {two_streams:.0} two; 64 B round trip p50 {} us, p99 {} us",
                microseconds(*round_trip_p50_ns),
                microseconds(*round_trip_p99_ns)
            ),
            format!("memory     copy {:.0} MB/s, CRC-32C {:.0} MB/s", self.memory.copy, self.memory.checksum),
        ]
    }
}

/// Loopback TCP between two processors.
#[derive(Clone, Debug, Serialize)]
pub struct Loopback {
    /// Megabytes (1e6) in a second, one stream.
    pub mb_per_second: f64,
    /// The same of two streams together.
    pub two_streams: f64,
    /// Round trip of 64 bytes, in nanoseconds, both sides asleep in between.
    pub round_trip_p50_ns: Option<u64>,
    /// The same.
    pub round_trip_p99_ns: Option<u64>,
}

/// Measures loopback from one thread's place to another's, each for so long.
///
/// # Errors
/// [`Error::System`].
pub fn loopback(from: ThreadPlace, to: ThreadPlace, for_time: Duration) -> Result<Loopback> {
    let mb_per_second = streams(1, from, to, for_time)?;
    let two_streams = streams(2, from, to, for_time)?;
    let (mut asking, answering) = pair()?;
    let echo = std::thread::spawn(move || echo(answering, to));
    let round_trips = std::thread::scope(|scope| {
        let asker = scope.spawn(|| {
            from.take()?;
            ask_for(&mut asking, for_time)
        });
        asker.join().unwrap_or_else(|_| Err(Error::Setup("the asking thread ended".to_owned())))
    })?;
    drop(asking);
    drop(echo.join());
    Ok(Loopback {
        mb_per_second,
        two_streams,
        round_trip_p50_ns: Percentile::P50.of(&round_trips),
        round_trip_p99_ns: Percentile::P99.of(&round_trips),
    })
}

/// The rate of so many streams together.
fn streams(count: usize, from: ThreadPlace, to: ThreadPlace, for_time: Duration) -> Result<f64> {
    let pairs = (0..count).map(|_| pair()).collect::<Result<Vec<_>>>()?;
    std::thread::scope(|scope| {
        let sources: Vec<_> = pairs
            .into_iter()
            .map(|(mut sender, receiver)| {
                scope.spawn(move || sink(receiver, to));
                scope.spawn(move || {
                    from.take()?;
                    stream_for(&mut sender, for_time)
                })
            })
            .collect();
        let ended = || Err(Error::Setup("the sending thread ended".to_owned()));
        sources.into_iter().map(|source| source.join().unwrap_or_else(|_| ended())).sum()
    })
}

fn pair() -> Result<(TcpStream, TcpStream)> {
    let doing = || "connecting over loopback".to_owned();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).doing(doing)?;
    let one = TcpStream::connect(listener.local_addr().doing(doing)?).doing(doing)?;
    let (other, _) = listener.accept().doing(doing)?;
    one.set_nodelay(true).doing(doing)?;
    other.set_nodelay(true).doing(doing)?;
    Ok((one, other))
}

/// Reads all there is; a one-byte answer says that the sender's last byte has come.
fn sink(mut stream: TcpStream, place: ThreadPlace) -> Result<()> {
    place.take()?;
    let mut buffer = vec![0; MESSAGE_BYTES];
    while stream.read(&mut buffer).doing(|| "receiving".to_owned())? > 0 {}
    stream.write_all(&[1]).doing(|| "answering".to_owned())
}

fn stream_for(stream: &mut TcpStream, for_time: Duration) -> Result<f64> {
    let message = vec![7; MESSAGE_BYTES];
    let began = Instant::now();
    let mut messages = 0_u32;
    while began.elapsed() < for_time {
        stream.write_all(&message).doing(|| "sending".to_owned())?;
        messages += 1;
    }
    stream.shutdown(std::net::Shutdown::Write).doing(|| "ending the stream".to_owned())?;
    stream.read_exact(&mut [0]).doing(|| "waiting for the end".to_owned())?;
    #[expect(clippy::cast_precision_loss, reason = "a megabyte")]
    let bytes = f64::from(messages) * MESSAGE_BYTES as f64;
    Ok(bytes / began.elapsed().as_secs_f64() / 1e6)
}

fn echo(mut stream: TcpStream, place: ThreadPlace) -> Result<()> {
    place.take()?;
    let mut message = [0; 64];
    while stream.read_exact(&mut message).is_ok() {
        stream.write_all(&message).doing(|| "echoing".to_owned())?;
    }
    Ok(())
}

fn ask_for(stream: &mut TcpStream, for_time: Duration) -> Result<hdrhistogram::Histogram<u64>> {
    let mut took = histogram();
    let mut message = [7; 64];
    let began = Instant::now();
    while began.elapsed() < for_time {
        let one = Instant::now();
        stream.write_all(&message).doing(|| "asking".to_owned())?;
        stream.read_exact(&mut message).doing(|| "waiting for an echo".to_owned())?;
        took.saturating_record(nanoseconds(one.elapsed()));
    }
    Ok(took)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_carries_bytes_and_round_trips() {
        let loopback =
            loopback(ThreadPlace::default(), ThreadPlace::default(), Duration::from_millis(100)).unwrap();
        assert!(loopback.mb_per_second > 0.0 && loopback.two_streams > 0.0, "{loopback:?}");
        assert!(loopback.round_trip_p50_ns.is_none_or(|ns| ns > 1_000), "{loopback:?}");
    }

    #[test]
    fn what_fio_says_is_read() {
        let text = r#"{"jobs": [{"jobname": "x", "write": {"iops": 100.5, "bw_bytes": 411648}}]}"#;
        let fio = Fio::parse(text, 4096, "fio").unwrap();
        assert_eq!((fio.per_second, fio.mb_per_second), (100.5, 0.411_648));
        assert_eq!(Fio::parse("{}", 4096, ""), None);
    }

    #[test]
    fn a_prepared_device_is_measured_and_cleaned_up() {
        // On the file system of the target directory: temporary ones may be in memory.
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let device = Device::prepare(folder.path()).unwrap();
        let measured = device.write_flush(5000, Duration::from_millis(50)).unwrap();
        assert_eq!(measured.bytes, 8192);
        assert!(measured.per_second > 0.0);
        drop(device);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
