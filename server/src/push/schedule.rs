//! What becomes of a push after an attempt: a function of the answer, of how often and how long it was tried, and of `now`.

use std::time::Duration;

use fanfare_storage::push::{Push, PushOutcome};

use super::hook::Answer;

/// The pause after the first failure; it doubles with each.
pub const PAUSE_FIRST: Duration = Duration::from_secs(1);
/// The longest pause of our own.
pub const PAUSE_MAX: Duration = Duration::from_secs(600);
/// The longest that a receiver's `Retry-After` is gone by.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(3_600);
/// The longest pause of all deliveries while nothing but failures comes back.
pub const HALT_MAX: Duration = Duration::from_secs(5);
/// The first of these pauses.
const HALT_FIRST: Duration = Duration::from_millis(100);

/// How long a push is tried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Patience {
    /// Attempts.
    pub attempts_max: u32,
    /// Since it was put.
    pub age_max: Duration,
}

/// What becomes of it. `luck` from 0 to 1 spreads those that failed together.
pub fn outcome(
    push: &Push,
    answer: &Result<Answer, String>,
    patience: Patience,
    now_ms: u64,
    luck: f64,
) -> PushOutcome {
    let (error, asked) = match answer {
        Ok(answer) if (200..300).contains(&answer.status) => return PushOutcome::Delivered,
        Ok(answer) => {
            let error = format!("the receiver answered {}", answer.status);
            // It understood and does not want it: asking again changes nothing.
            if (400..500).contains(&answer.status) && ![408, 429].contains(&answer.status) {
                return PushOutcome::Dead { error };
            }
            (error, answer.retry_after.as_deref().and_then(|value| wait(value, now_ms)))
        }
        Err(error) => (error.clone(), None),
    };
    let attempts = push.attempts + 1;
    if attempts >= patience.attempts_max {
        return PushOutcome::Dead { error: format!("{error}; it was tried {attempts} times") };
    }
    let doubled = PAUSE_FIRST.saturating_mul(1 << push.attempts.min(16)).min(PAUSE_MAX);
    let pause = match asked {
        // Not before it said, and not all at once.
        Some(asked) => asked.mul_f64(1.0 + 0.1 * luck),
        None => doubled.mul_f64(0.5 + 0.5 * luck),
    };
    let due_ms = now_ms + pause.as_millis() as u64;
    if due_ms > push.created_ms.saturating_add(patience.age_max.as_millis() as u64) {
        return PushOutcome::Dead { error: format!("{error}; it is too old") };
    }
    PushOutcome::Retry { due_ms, error }
}

/// A `Retry-After` of seconds, or of an HTTP date.
fn wait(value: &str, now_ms: u64) -> Option<Duration> {
    let value = value.trim();
    let wait = match value.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let until = httpdate::parse_http_date(value).ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
            until.saturating_sub(Duration::from_millis(now_ms))
        }
    };
    Some(wait.min(RETRY_AFTER_MAX))
}

/// How long all deliveries rest after so many failures in a row, with `connections` of them at once.
pub fn halt(failures: usize, connections: usize) -> Duration {
    match failures.checked_sub(connections) {
        None => Duration::ZERO,
        Some(more) => HALT_FIRST.saturating_mul(1 << more.min(10)).min(HALT_MAX),
    }
}

#[cfg(test)]
mod tests {
    use fanfare_proto::{ChannelId, MessageId, UserId};
    use fanfare_storage::push::{PushKey, PushKind};

    use super::*;

    const PATIENCE: Patience = Patience { attempts_max: 5, age_max: Duration::from_secs(60) };

    fn after(attempts: u32, status: u16, retry_after: Option<&str>, now_ms: u64, luck: f64) -> PushOutcome {
        let push = Push {
            key: PushKey { user: UserId(1), channel: ChannelId(1), epoch: 1, seq: 1 },
            kind: PushKind::Direct,
            sender: UserId(2),
            message_id: MessageId(1),
            created_ms: 1_000,
            due_ms: 1_000,
            attempts,
            error: String::new(),
        };
        let answer = match status {
            0 => Err("no connection".to_owned()),
            status => Ok(Answer { status, retry_after: retry_after.map(str::to_owned) }),
        };
        outcome(&push, &answer, PATIENCE, now_ms, luck)
    }

    fn due(outcome: &PushOutcome) -> u64 {
        match outcome {
            PushOutcome::Retry { due_ms, .. } => *due_ms,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_answer_decides() {
        let is_dead = |outcome: PushOutcome| matches!(outcome, PushOutcome::Dead { .. });
        for status in [200, 202, 204, 299] {
            assert_eq!(after(4, status, None, 99_000_000, 0.0), PushOutcome::Delivered);
        }
        for status in [400, 401, 404, 410, 422] {
            assert!(is_dead(after(0, status, None, 1_000, 0.0)), "{status}");
        }
        for status in [0, 301, 408, 429, 500, 502, 503] {
            assert!(!is_dead(after(0, status, None, 1_000, 0.0)), "{status}");
            assert!(is_dead(after(4, status, None, 1_000, 0.0)), "{status} for the fifth time");
            assert!(is_dead(after(0, status, None, 61_000, 0.0)), "{status} too late");
        }
    }

    #[test]
    fn pauses_double_and_spread() {
        let pause = |attempts, luck| due(&after(attempts, 500, None, 1_000, luck)) - 1_000;
        assert_eq!([0, 1, 2, 3].map(|attempts| pause(attempts, 1.0)), [1_000, 2_000, 4_000, 8_000]);
        assert_eq!([0, 1, 2, 3].map(|attempts| pause(attempts, 0.0)), [500, 1_000, 2_000, 4_000]);
    }

    #[test]
    fn a_receiver_may_say_when() {
        let pause = |value, luck| due(&after(3, 503, Some(value), 10_000, luck)) - 10_000;
        assert_eq!((pause("2", 0.0), pause("2", 1.0)), (2_000, 2_200));
        assert_eq!(pause("Thu, 01 Jan 1970 00:00:30 GMT", 0.0), 20_000);
        assert_eq!(pause("Thu, 01 Jan 1970 00:00:01 GMT", 0.0), 0, "it is over");
        assert_eq!(pause("soon", 1.0), 8_000, "not understood");
        assert!(matches!(after(0, 429, Some("999999999"), 1_000, 0.0), PushOutcome::Dead { .. }));
    }

    #[test]
    fn all_rest_while_nothing_succeeds() {
        assert_eq!(halt(7, 8), Duration::ZERO);
        assert_eq!(halt(8, 8), HALT_FIRST);
        assert_eq!(halt(10, 8), HALT_FIRST * 4);
        assert_eq!(halt(usize::MAX, 1), HALT_MAX);
    }
}
