//! Times in which nothing was acknowledged although something was under way, and what the server's log says of them.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::measure::accounting::CpuTimes;

/// A time without any acknowledgement from which on it is a stall.
pub const STALL: Duration = Duration::from_millis(100);
/// A tick of the load that comes so late means that the load itself was not run.
pub const STANDSTILL: Duration = Duration::from_millis(50);
/// What is written about a slow step is written at its end, and may be written a little later.
const AFTER: Duration = Duration::from_millis(250);
/// What the server's log says of slow steps begins so.
const SLOW: &str = "slow";
/// Kinds of threads that are named.
const BUSY_MAX: usize = 4;
const UNKNOWN: &str = "unknown: the server's log has no slow step at that time";

/// A stretch of time by the machine's clock.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stretch {
    /// Its begin.
    pub from: SystemTime,
    /// How long.
    pub lasted: Duration,
}

impl Stretch {
    /// One that ends now.
    pub fn until_now(lasted: Duration) -> Self {
        Self { from: SystemTime::now() - lasted, lasted }
    }

    fn to(&self) -> SystemTime {
        self.from + self.lasted
    }

    fn meets(&self, other: &Self) -> bool {
        self.from < other.to() && other.from < self.to()
    }
}

/// A stall as it is reported.
#[derive(Clone, Debug, Serialize)]
pub struct Stall {
    /// What was measured meanwhile.
    pub during: String,
    /// How long nothing was acknowledged, in milliseconds.
    pub stall_ms: u64,
    /// What the server's log, or the load itself, says of that time.
    pub cause: String,
    /// Which of the server's threads ran meanwhile, and what part of the time.
    pub busy: String,
}

/// What the server's threads had spent at some moment.
pub struct Sample {
    /// When.
    pub at: SystemTime,
    /// What.
    pub cpu: CpuTimes,
}

/// Which threads ran during a stall, by the samples around it.
pub fn busy(stall: &Stretch, samples: &[Sample]) -> String {
    let before = samples.iter().rfind(|sample| sample.at <= stall.from).or(samples.first());
    let after = samples.iter().find(|sample| sample.at >= stall.to()).or(samples.last());
    let Some((before, after)) = before.zip(after) else { return String::new() };
    let Ok(between) = after.at.duration_since(before.at) else { return String::new() };
    let spent = after.cpu.since(&before.cpu);
    let mut kinds: Vec<(&String, f64)> = spent
        .iter()
        .map(|(kind, ns)| (kind, *ns as f64 * 100.0 / (between.as_nanos() as f64).max(1.0)))
        .collect();
    kinds.sort_by(|one, other| other.1.total_cmp(&one.1));
    let all: f64 = kinds.iter().map(|(_, part)| part).sum();
    let first: Vec<String> =
        kinds.iter().take(BUSY_MAX).map(|(kind, part)| format!("{kind} {part:.0} %")).collect();
    format!("its threads ran {all:.0} % of a core: {}", first.join(", "))
}

/// A slow step of the server: when, and what its line says.
#[derive(Clone, Debug)]
struct Step {
    when: Stretch,
    what: String,
}

#[derive(Deserialize)]
struct Line {
    timestamp: String,
    message: String,
    took_ms: u64,
    #[serde(flatten)]
    fields: serde_json::Map<String, serde_json::Value>,
}

/// Fields that every line has.
const NO_NEWS: [&str; 3] = ["level", "target", "file"];

/// Names the cause of each stretch.
///
/// # Errors
/// The log cannot be read.
pub fn explained(
    stalls: &[(String, Stretch, String)],
    standstills: &[Stretch],
    server_log: &Path,
) -> Result<Vec<Stall>> {
    if stalls.is_empty() {
        return Ok(Vec::new());
    }
    let text = std::fs::read_to_string(server_log)
        .with_context(|| format!("cannot read {}", server_log.display()))?;
    let steps: Vec<Step> = text.lines().filter_map(step).collect();
    Ok(stalls
        .iter()
        .map(|(during, stretch, busy)| Stall {
            during: during.clone(),
            stall_ms: stretch.lasted.as_millis() as u64,
            cause: cause(stretch, standstills, &steps),
            busy: busy.clone(),
        })
        .collect())
}

fn cause(stall: &Stretch, standstills: &[Stretch], steps: &[Step]) -> String {
    let mut causes: Vec<String> =
        steps.iter().filter(|step| step.when.meets(stall)).map(|step| step.what.clone()).collect();
    let stood: Duration =
        standstills.iter().filter(|still| still.meets(stall)).map(|still| still.lasted).sum();
    if stood >= STANDSTILL {
        causes.push(format!("the load itself was not run for {} ms", stood.as_millis()));
    }
    if causes.is_empty() { UNKNOWN.into() } else { causes.join("; ") }
}

/// A line of the server's log that tells of a slow step: its message begins with `slow`, `took_ms` says how long it was.
fn step(line: &str) -> Option<Step> {
    let line: Line = serde_json::from_str(line).ok()?;
    if !line.message.starts_with(SLOW) {
        return None;
    }
    let took = Duration::from_millis(line.took_ms);
    let at = SystemTime::from(OffsetDateTime::parse(&line.timestamp, &Rfc3339).ok()?);
    let fields = line.fields.iter().filter(|(name, _)| !NO_NEWS.contains(&name.as_str()));
    let fields: Vec<String> = fields.map(|(name, value)| format!("{name} {value}")).collect();
    let what = format!("{} of {} ms ({})", line.message, line.took_ms, fields.join(", "));
    Some(Step { when: Stretch { from: at - took - AFTER, lasted: took + AFTER }, what })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"timestamp":"1970-01-01T00:00:10.000000Z","level":"INFO","message":"slow commit","took_ms":400,"flush_ms":390,"target":"x"}"#;

    fn stretch(from_ms: u64, lasted_ms: u64) -> Stretch {
        Stretch {
            from: SystemTime::UNIX_EPOCH + Duration::from_millis(from_ms),
            lasted: Duration::from_millis(lasted_ms),
        }
    }

    #[test]
    fn a_slow_step_is_read_with_its_time() {
        let step = step(LINE).unwrap();
        assert_eq!(step.when.to(), stretch(10_000, 0).from);
        assert_eq!(step.what, "slow commit of 400 ms (flush_ms 390)");
        assert!(super::step(&LINE.replace("slow commit", "a commit failed")).is_none());
        assert!(super::step("not JSON").is_none());
    }

    #[test]
    fn a_stall_has_the_causes_of_its_own_time() {
        let steps = [step(LINE).unwrap()];
        assert!(cause(&stretch(9_700, 350), &[], &steps).starts_with("slow commit"));
        assert_eq!(cause(&stretch(5_000, 200), &[], &steps), UNKNOWN);
        assert_eq!(cause(&stretch(10_001, 200), &[], &steps), UNKNOWN);
        let still = [stretch(5_050, 120)];
        assert_eq!(cause(&stretch(5_000, 200), &still, &steps), "the load itself was not run for 120 ms");
    }
}
