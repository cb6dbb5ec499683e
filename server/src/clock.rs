//! The system's clock, read in one place, one that another program drives, and times as people and programs read them.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use fanfare_router::Clock;

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Unix milliseconds now.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// A clock that another program drives: Unix milliseconds in the first 8 bytes of a file, little-endian, read at every look. For
/// replays, in which days pass in a second.
///
/// # Errors
/// The file is not there, or shorter.
pub fn driven(path: &Path) -> io::Result<Clock> {
    let file = File::open(path)?;
    let read = move || {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, 0).map(|()| u64::from_le_bytes(bytes))
    };
    let last = AtomicU64::new(read()?);
    // Should the file fail later, the time stands still.
    Ok(Arc::new(move || match read() {
        Ok(now) => {
            last.store(now, Ordering::Relaxed);
            now
        }
        Err(_) => last.load(Ordering::Relaxed),
    }))
}

/// `2026-11-21T09:30:00.123Z`.
pub fn rfc3339(unix_ms: u64) -> String {
    at(unix_ms).and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_default()
}

/// `09:30:00`, UTC.
pub fn time_of_day(unix_ms: u64) -> String {
    at(unix_ms)
        .map(|time| format!("{:02}:{:02}:{:02}", time.hour(), time.minute(), time.second()))
        .unwrap_or_default()
}

/// `2026-11-21 09:30`, UTC.
pub fn minute(unix_ms: u64) -> String {
    at(unix_ms)
        .map(|time| format!("{} {:02}:{:02}", time.date(), time.hour(), time.minute()))
        .unwrap_or_default()
}

/// `4 d 2 h`, `3 m 7 s`, `12 s`.
pub fn span(seconds: u64) -> String {
    let parts =
        [(seconds / 86_400, "d"), (seconds / 3_600 % 24, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    let first = parts.iter().position(|(number, _)| *number > 0).unwrap_or(3);
    let shown: Vec<String> =
        parts[first..].iter().take(2).map(|(number, unit)| format!("{number} {unit}")).collect();
    shown.join(" ")
}

fn at(unix_ms: u64) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ms) * 1_000_000).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driven_clock_tells_what_the_file_says() {
        let path = std::env::temp_dir().join(format!("fanfare-clock-{}", std::process::id()));
        assert!(driven(&path).is_err());
        std::fs::write(&path, [1, 2]).unwrap();
        assert!(driven(&path).is_err());
        std::fs::write(&path, 7u64.to_le_bytes()).unwrap();
        let clock = driven(&path).unwrap();
        assert_eq!(clock(), 7);
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .write_all_at(&1_700_000_000_000u64.to_le_bytes(), 0)
            .unwrap();
        assert_eq!(clock(), 1_700_000_000_000);
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn times_read_as_written() {
        assert_eq!(rfc3339(1_735_689_600_123), "2025-01-01T00:00:00.123Z");
        assert_eq!(time_of_day(1_735_689_661_000), "00:01:01");
        assert_eq!(minute(1_735_689_661_000), "2025-01-01 00:01");
        assert_eq!(
            (span(12), span(187), span(4 * 86_400 + 7_300)),
            ("12 s".into(), "3 m 7 s".into(), "4 d 2 h".into())
        );
    }
}
