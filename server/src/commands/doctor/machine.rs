//! What only the machine can answer: its disk, its limits, its sockets, its clock.

use std::{
    fs::OpenOptions,
    io::{self, Write},
    path::Path,
    time::{Duration, Instant},
};

use fanfare_gateway::DATAGRAM_BUFFER_BYTES;
use fanfare_proto::{Code, ids::EPOCH_MS};
use socket2::{Domain, Protocol, Socket, Type};

use super::Finding;
use crate::{cli::DoctorCheck, clock as clocks};

/// Less room than this fails, and than that is a warning.
const SPACE_MIN_BYTES: u64 = 256 << 20;
const SPACE_LOW_BYTES: u64 = 2 << 30;
/// Writes that are timed, and the bytes of each: what one small commit adds to a log.
const SYNCS: usize = 30;
const SYNC_BYTES: usize = 4096;
/// Acknowledgements wait for one such write: a median above it is felt.
const SYNC_SLOW: Duration = Duration::from_millis(20);
/// Fewer files than this fail, and than that are a warning.
const FILES_MIN: u64 = 256;
const FILES_LOW: u64 = 65_536;
/// Both clocks are watched for so long, and may drift apart by so much.
const CLOCK_WATCHED: Duration = Duration::from_millis(200);
const CLOCK_DRIFT_MAX_MS: u64 = 20;
/// A clock later than this (2100-01-01) is wrong.
const CLOCK_LATEST_MS: u64 = 4_102_444_800_000;

/// Whether a file can be made there.
pub fn writable(folder: &Path) -> io::Result<()> {
    let path = folder.join(format!(".doctor-{}", std::process::id()));
    let made = OpenOptions::new().write(true).create_new(true).open(&path).map(drop);
    let _ = std::fs::remove_file(&path);
    made
}

/// Free space of the disk of that folder.
pub fn space(folder: &Path) -> Finding {
    let shown = folder.display();
    let check = DoctorCheck::Space;
    let stat = match rustix::fs::statvfs(folder) {
        Ok(stat) => stat,
        Err(error) => {
            return Finding::ok(check, "free space", format!("{shown}: {error}"))
                .warning(Code::DOCTOR_SPACE, format!("df -h {shown}"));
        }
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let finding = Finding::ok(check, "free space", format!("{} on the disk of {shown}", bytes(free)));
    let fix = format!("df -h {shown}   then free some, or fanfare start --data DIR on another disk");
    match free {
        0..SPACE_MIN_BYTES => finding.failed(Code::DOCTOR_SPACE, fix),
        SPACE_MIN_BYTES..SPACE_LOW_BYTES => finding.warning(Code::DOCTOR_SPACE, fix),
        _ => finding,
    }
}

/// How long a small write takes to reach the disk.
pub fn sync(folder: &Path) -> Finding {
    let check = DoctorCheck::Sync;
    match time_syncs(folder) {
        Ok((median, worst)) => synced(median, worst),
        Err(error) => Finding::ok(check, "disk sync", format!("{}: {error}", folder.display()))
            .failed(Code::DOCTOR_FOLDER, "fanfare doctor --only folder,space"),
    }
}

fn synced(median: Duration, worst: Duration) -> Finding {
    let detail = format!("median {}, worst {} of {SYNCS} writes", millis(median), millis(worst));
    let finding = Finding::ok(DoctorCheck::Sync, "disk sync", detail);
    if median > SYNC_SLOW {
        return finding.warning(Code::DOCTOR_SYNC, "fanfare start --data DIR   on a faster local disk");
    }
    finding
}

fn time_syncs(folder: &Path) -> io::Result<(Duration, Duration)> {
    let path = folder.join(format!(".doctor-{}", std::process::id()));
    let timed = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        let block = [0x5a; SYNC_BYTES];
        let mut took = Vec::with_capacity(SYNCS);
        for _ in 0..SYNCS {
            let began = Instant::now();
            file.write_all(&block)?;
            file.sync_data()?;
            took.push(began.elapsed());
        }
        took.sort_unstable();
        Ok((took[SYNCS / 2], took[SYNCS - 1]))
    })();
    let _ = std::fs::remove_file(&path);
    timed
}

/// Files that a process may open: `start` takes as many as the hard limit gives.
pub fn files() -> Finding {
    let hard = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let detail =
        hard.map_or_else(|| "no limit".to_owned(), |hard| format!("{hard} (hard limit), one per connection"));
    let finding = Finding::ok(DoctorCheck::Files, "open files", detail);
    let fix =
        "ulimit -Hn 1048576   as root in the shell that starts it; LimitNOFILE=1048576 in a systemd unit";
    match hard {
        Some(0..FILES_MIN) => finding.failed(Code::DOCTOR_FILES, fix),
        Some(FILES_MIN..FILES_LOW) => finding.warning(Code::DOCTOR_FILES, fix),
        _ => finding,
    }
}

/// Buffers of a UDP socket as the gateway asks for them, read back.
pub fn udp() -> Vec<Finding> {
    let check = DoctorCheck::Udp;
    let socket = match Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)) {
        Ok(socket) => socket,
        Err(error) => {
            let finding = Finding::ok(check, "UDP", format!("no socket can be made: {error}"));
            return vec![finding.failed(Code::DOCTOR_UDP_RECEIVE, "fanfare doctor --only files")];
        }
    };
    let receive = buffer(
        "UDP receive",
        Code::DOCTOR_UDP_RECEIVE,
        "rmem_max",
        || socket.recv_buffer_size(),
        || socket.set_recv_buffer_size(DATAGRAM_BUFFER_BYTES),
    );
    let send = buffer(
        "UDP send",
        Code::DOCTOR_UDP_SEND,
        "wmem_max",
        || socket.send_buffer_size(),
        || socket.set_send_buffer_size(DATAGRAM_BUFFER_BYTES),
    );
    vec![receive, send]
}

fn buffer(
    what: &str,
    code: Code,
    sysctl: &str,
    read: impl Fn() -> io::Result<usize>,
    set: impl FnOnce() -> io::Result<()>,
) -> Finding {
    // Linux gives back twice what is usable: it counts its own bookkeeping.
    let scale = if cfg!(target_os = "linux") { 2 } else { 1 };
    let usable = || read().map_or(0, |bytes| bytes / scale);
    let had = usable();
    let _ = set();
    let got = usable();
    let kib = |bytes: usize| format!("{} KiB", bytes / 1024);
    let detail = format!("had {}, wanted {}, got {}", kib(had), kib(DATAGRAM_BUFFER_BYTES), kib(got));
    let finding = Finding::ok(DoctorCheck::Udp, what, detail);
    if got >= DATAGRAM_BUFFER_BYTES {
        return finding;
    }
    finding.warning(code, format!("sudo sysctl -w net.core.{sysctl}={DATAGRAM_BUFFER_BYTES}"))
}

/// The wall clock: a time that can be, and as fast as the clock that cannot be set.
pub fn clock() -> Finding {
    let (began, wall) = both_clocks();
    std::thread::sleep(CLOCK_WATCHED);
    let (ended, later) = both_clocks();
    judged(wall, ended.duration_since(began).as_millis() as u64, later)
}

/// Both clocks at one moment: the closest pair of a few, since a busy machine may stop between two reads.
fn both_clocks() -> (Instant, u64) {
    let read = || {
        let before = Instant::now();
        let wall = clocks::now_ms();
        (before.elapsed(), before, wall)
    };
    let best = (0..5).map(|_| read()).min_by_key(|(between, ..)| *between);
    best.map_or_else(|| (Instant::now(), clocks::now_ms()), |(_, at, wall)| (at, wall))
}

fn judged(wall_ms: u64, monotonic_ms: u64, later_ms: u64) -> Finding {
    let finding = |detail: String| Finding::ok(DoctorCheck::Clock, "clock", detail);
    let fix = "timedatectl set-ntp true";
    let shown = clocks::rfc3339(later_ms);
    if !(EPOCH_MS..CLOCK_LATEST_MS).contains(&later_ms) {
        return finding(format!("it is set to {shown}")).failed(Code::DOCTOR_CLOCK, fix);
    }
    let drift = later_ms.abs_diff(wall_ms.saturating_add(monotonic_ms));
    if drift > CLOCK_DRIFT_MAX_MS {
        let detail = format!("{shown}; it jumped by {drift} ms while {monotonic_ms} ms went by");
        return finding(detail).warning(Code::DOCTOR_CLOCK, fix);
    }
    finding(format!("{shown}, steady within {CLOCK_DRIFT_MAX_MS} ms"))
}

fn millis(took: Duration) -> String {
    format!("{:.1} ms", took.as_secs_f64() * 1000.0)
}

fn bytes(bytes: u64) -> String {
    match bytes >> 30 {
        0 => format!("{} MiB", bytes >> 20),
        gib => format!("{gib} GiB"),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Grade, *};

    #[test]
    fn a_clock_that_is_wrong_fails_and_one_that_jumps_warns() {
        let now = 1_800_000_000_000;
        assert_eq!(judged(now, 200, now + 201).grade, Grade::Ok);
        assert_eq!(judged(now, 200, now + 5_000).grade, Grade::Warning);
        assert_eq!(judged(now, 200, now - 5_000).grade, Grade::Warning);
        assert_eq!(judged(0, 200, 200).grade, Grade::Failed);
        assert_eq!(judged(0, 200, 200).code, Some(Code::DOCTOR_CLOCK));
        assert_eq!(judged(CLOCK_LATEST_MS, 0, CLOCK_LATEST_MS).grade, Grade::Failed);
    }

    #[test]
    fn a_short_buffer_says_what_it_had_wanted_and_got_with_the_command() {
        let short = buffer("UDP send", Code::DOCTOR_UDP_SEND, "wmem_max", || Ok(425_984), || Ok(()));
        assert_eq!((short.grade, short.code), (Grade::Warning, Some(Code::DOCTOR_UDP_SEND)));
        assert_eq!(short.fix.as_deref(), Some("sudo sysctl -w net.core.wmem_max=4194304"));
        assert!(short.detail.contains("wanted 4096 KiB"), "{}", short.detail);
        let receive = buffer("UDP receive", Code::DOCTOR_UDP_RECEIVE, "rmem_max", || Ok(1), || Ok(()));
        assert_eq!(receive.code, Some(Code::DOCTOR_UDP_RECEIVE));
        let scale = if cfg!(target_os = "linux") { 2 } else { 1 };
        let long = buffer("UDP", Code::DOCTOR_UDP_SEND, "", || Ok(DATAGRAM_BUFFER_BYTES * scale), || Ok(()));
        assert_eq!(long.grade, Grade::Ok);
    }

    #[test]
    fn a_disk_that_is_slow_is_a_warning() {
        let slow = synced(SYNC_SLOW * 2, SYNC_SLOW * 3);
        assert_eq!((slow.grade, slow.code), (Grade::Warning, Some(Code::DOCTOR_SYNC)));
        assert_eq!(synced(SYNC_SLOW / 2, SYNC_SLOW * 3).grade, Grade::Ok, "one slow write is nothing");
    }

    #[test]
    fn the_disk_is_timed_and_left_as_it_was() {
        let folder = tempfile::tempdir().expect("a scratch folder");
        let (median, worst) = time_syncs(folder.path()).expect("timed");
        assert!(median <= worst);
        assert!(writable(folder.path()).is_ok() && writable(&folder.path().join("none")).is_err());
        assert_eq!(std::fs::read_dir(folder.path()).expect("readable").count(), 0);
    }
}
