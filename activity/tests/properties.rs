//! Scores and levels over virtual time.

use fanfare_activity::{Act, EPOCH_S, Level, Member, Score, Settings, Shown, Total, level};
use proptest::prelude::*;

const ACTS: [Act; 8] =
    [Act::Send, Act::Tap, Act::Reply, Act::React, Act::Named, Act::Look, Act::Read, Act::Type];

fn act() -> impl Strategy<Value = Act> {
    (0..ACTS.len()).prop_map(|number| ACTS[number])
}

/// Acts with the milliseconds since the one before, in a year within ten of the epoch.
fn history() -> impl Strategy<Value = (u64, Vec<(u64, Act)>)> {
    let gap = prop_oneof![0..2_000u64, 0..600_000u64, 0..86_400_000u64, 0..30 * 86_400_000u64];
    (0..10 * 365 * 86_400_000u64, prop::collection::vec((gap, act()), 1..60))
        .prop_map(|(from, acts)| (EPOCH_S * 1_000 + from, acts))
}

fn member(shown: Shown) -> Member {
    Member { shown, is_direct: false, members: 1_000, is_muted: false, unread: 0, total: Total::default() }
}

fn played(settings: &Settings, from: u64, acts: &[(u64, Act)]) -> (Score, u64) {
    let (mut score, mut now) = (Score::default(), from);
    for (gap, act) in acts {
        now += gap;
        score.act(settings, *act, now);
    }
    (score, now)
}

proptest! {
    #[test]
    fn forward_decay_counts_what_a_sweep_would((from, acts) in history()) {
        let settings = Settings::default();
        let (score, now) = played(&settings, from, &acts);
        let (mut fast, mut slow, mut at) = (0.0f64, 0.0f64, from);
        for (gap, act) in &acts {
            at += gap;
            let gap = *gap as f64 / 1_000.0;
            fast *= 0.5f64.powf(gap / f64::from(settings.fast_half_life_s));
            slow *= 0.5f64.powf(gap / f64::from(settings.slow_half_life_s));
            for count in [&mut fast, &mut slow] {
                // What others do lifts it to 16 at the most.
                let most = if *act == Act::Named { count.max(16.0) } else { f64::INFINITY };
                *count = (*count + f64::from(settings.weight(*act))).min(most);
            }
        }
        prop_assert_eq!(at, now);
        let counts = score.counts(&settings, now);
        // A counter is rounded to a sixteenth of a second of its 600 with each act; what is far from 1 has 24 bits.
        prop_assert!((f64::from(counts.0) / fast - 1.0).abs() < 1e-4 * acts.len() as f64, "{:?} {fast}", counts);
        prop_assert!((f64::from(counts.1) / slow - 1.0).abs() < 1e-6 * acts.len() as f64, "{:?} {slow}", counts);
    }

    #[test]
    fn an_act_raises_and_time_lowers((from, acts) in history(), more in act(), later in 1..86_400_000u64) {
        let settings = Settings::default();
        let (score, now) = played(&settings, from, &acts);
        let mut raised = score;
        raised.act(&settings, more, now);
        prop_assert!(raised.base(&settings, now, 0) >= score.base(&settings, now, 0) - 1e-3);
        prop_assert!(score.base(&settings, now + later, 0) <= score.base(&settings, now, 0));
        prop_assert!((0.0..=1.0).contains(&member(Shown::Visible).score(&settings, &score, now)));
        prop_assert_eq!(Score::of_parts(score.parts()), score);
    }

    #[test]
    fn promotion_is_immediate_and_demotion_waits((from, acts) in history(), steps in prop::collection::vec(1..90_000u64, 1..80)) {
        let settings = Settings::default();
        let (score, mut now) = played(&settings, from, &acts);
        let member = member(Shown::Foreground);
        let mut current = level(&settings, &score, &member, Level::Passive, now);
        let value = |now| member.score(&settings, &score, now);
        for step in steps {
            now += step;
            let next = level(&settings, &score, &member, current, now);
            if value(now) >= settings.active {
                prop_assert_eq!(next, Level::Active);
            } else if value(now) >= settings.warm {
                prop_assert!(next >= Level::Warm);
            }
            // Nothing happens meanwhile: it does not rise, and falls only what was below its threshold's part for a minute.
            prop_assert!(next <= current);
            let earlier = value(now - (settings.patience_s * 1_000.0) as u64);
            if next < Level::Active && current == Level::Active {
                prop_assert!(earlier < settings.active * settings.exit);
            }
            if next == Level::Passive && current > Level::Passive {
                prop_assert!(earlier < settings.warm * settings.exit);
            }
            current = next;
        }
        let month = now + 60 * 86_400_000;
        prop_assert_eq!(level(&settings, &score, &member, Level::Active, month), Level::Passive);
    }

    #[test]
    fn a_mean_is_of_what_each_did_up_to_the_cap(histories in prop::collection::vec(history(), 1..12), leaves in 0..12usize) {
        let settings = Settings::default();
        let mut members: Vec<(Score, u64)> = histories.iter().map(|(from, acts)| played(&settings, *from, acts)).collect();
        let now = members.iter().map(|(_, now)| *now).max().unwrap();
        let mut total = Total::default();
        // As they happen: what a member adds is taken out before it acts and added after.
        for (from, acts) in &histories {
            let (mut score, mut at) = (Score::default(), *from);
            for (gap, act) in acts {
                at += gap;
                total.remove(&settings, &score);
                score.act(&settings, *act, at);
                total.add(&settings, &score);
            }
        }
        let slow = |score: &Score, at| f64::from(score.counts(&settings, at).1);
        let added = |score: &Score| {
            let acted = score.acted_ms();
            let since = (now - acted) as f64 / 1_000.0 / f64::from(settings.slow_half_life_s);
            if acted == 0 { 0.0 } else { slow(score, acted).min(f64::from(settings.total_cap)) * (-since).exp2() }
        };
        let mut gone = 0.0;
        if leaves < members.len() {
            let (left, _) = members.remove(leaves);
            total.remove(&settings, &left);
            gone = added(&left);
        }
        let sum: f64 = members.iter().map(|(score, _)| added(score)).sum();
        for (score, _) in &members {
            let expected = slow(score, now) / sum * members.len() as f64;
            let of_mean = f64::from(score.of_mean(&settings, &total, members.len()));
            // What is less than a billionth of what left is forgotten with it, and of too little there is no mean.
            let is_told = sum > gone * 1e-6 && sum > 1e-30 && expected > 1e-30;
            prop_assert!(!is_told || (of_mean / expected - 1.0).abs() < 1e-3, "{of_mean} {expected}");
        }
        prop_assert!(!members.is_empty() || total.is_empty());
        // Who does too little of it is not warm, whatever its score; who does enough stays.
        let Some((score, _)) = members.first() else { return Ok(()) };
        let member = Member { members: members.len(), total, ..member(Shown::Foreground) };
        let settings = Settings { small_members: 0, ..settings };
        let (value, of_mean) = (member.score(&settings, score, now), score.of_mean(&settings, &total, members.len()));
        let is = level(&settings, score, &member, Level::Passive, now);
        let expected = if value >= settings.active {
            Level::Active
        } else if value >= settings.warm && of_mean >= settings.warm_of_mean {
            Level::Warm
        } else {
            Level::Passive
        };
        prop_assert_eq!(is, expected);
        let kept = level(&settings, score, &member, Level::Warm, now);
        let earlier = member.score(&settings, score, now - (settings.patience_s * 1_000.0) as u64);
        let may_stay = of_mean >= settings.warm_of_mean * settings.exit || earlier >= settings.active * settings.exit;
        prop_assert!(kept >= is && (kept == is || may_stay));
    }

    #[test]
    fn what_is_shown_orders_the_score((from, acts) in history()) {
        let settings = Settings::default();
        let (score, now) = played(&settings, from, &acts);
        let of = |shown| member(shown).score(&settings, &score, now);
        prop_assert!(of(Shown::Background) <= of(Shown::Foreground) && of(Shown::Foreground) <= of(Shown::Visible));
        let muted = Member { is_muted: true, ..member(Shown::Foreground) };
        let minus = of(Shown::Foreground) - muted.score(&settings, &score, now);
        prop_assert!((minus - settings.muted_minus.min(of(Shown::Foreground))).abs() < 1e-6);
        let direct = Member { is_direct: true, ..member(Shown::Background) };
        let small = Member { members: settings.small_members, ..member(Shown::Background) };
        for one in [direct, small] {
            prop_assert_eq!(level(&settings, &score, &one, Level::Passive, now), Level::Active);
        }
    }
}

#[test]
fn scores_of_the_table() {
    let settings = Settings::default();
    let now = (EPOCH_S + 86_400 * 400) * 1_000;
    let mut score = Score::default();
    assert_eq!(score.base(&settings, now, 0), 0.0);
    score.act(&settings, Act::Send, now);
    // sat(8) = 1/2 in both.
    assert!((score.base(&settings, now, 0) - 0.5).abs() < 0.01);
    assert_eq!(level(&settings, &score, &member(Shown::Foreground), Level::Passive, now), Level::Active);
    assert_eq!(level(&settings, &score, &member(Shown::Background), Level::Passive, now), Level::Warm);
    // Ten minutes later the fast counter is 4, sat = 1/3.
    let later = now + 600_000;
    assert!((score.base(&settings, later, 0) - (0.65 / 3.0 + 0.35 / 2.0)).abs() < 0.01);
}

#[test]
fn twenty_unread_for_a_day_halve() {
    let settings = Settings::default();
    let now = (EPOCH_S + 86_400 * 400) * 1_000;
    let mut score = Score::default();
    score.act(&settings, Act::Send, now);
    let later = now + 2 * 86_400_000;
    let (read, unread) = (score.base(&settings, later, 19), score.base(&settings, later, 20));
    assert!((unread * 2.0 - read).abs() < 1e-6);
    // Being named is nothing it did itself; a look is.
    score.act(&settings, Act::Named, later);
    assert!(score.base(&settings, later, 20) < score.base(&settings, later, 0));
    score.act(&settings, Act::Look, later);
    assert_eq!(score.base(&settings, later, 20), score.base(&settings, later, 0));
}

/// A member that never stops, whatever it does, leaves the others what they were.
#[test]
fn a_flood_takes_nobody_out() {
    let settings = Settings::default();
    let now = (EPOCH_S + 86_400 * 400) * 1_000;
    let mut one = Score::default();
    (0..4).for_each(|act| one.act(&settings, Act::Send, now - act * 3_600_000));
    let mut flood = Score::default();
    (0..100_000).for_each(|act| flood.act(&settings, Act::Send, now - 100_000 + act));
    let mut total = Total::default();
    (0..100).for_each(|_| total.add(&settings, &one));
    total.add(&settings, &flood);
    let member = Member { total, members: 101, ..member(Shown::Foreground) };
    let later = now + 86_400_000;
    assert_eq!(level(&settings, &one, &member, Level::Passive, later), Level::Warm);
    // Nor do mentions by others lift it.
    let mut named = Score::default();
    (0..100_000).for_each(|_| named.act(&settings, Act::Named, now));
    let before = total;
    total.add(&settings, &named);
    assert_eq!(total, before);
}

/// Whatever one member says of another takes it no further than two messages of its own would, and the mean of the others neither.
#[test]
fn naming_a_member_without_end_makes_it_active_for_minutes_and_lifts_nobody_else() {
    let settings = Settings::default();
    let now = (EPOCH_S + 86_400 * 400) * 1_000;
    for members in [17, 20, 30] {
        let mut named = Score::default();
        let mut quiet = Score::default();
        quiet.act(&settings, Act::Send, now);
        named.act(&settings, Act::Send, now);
        for second in 0..3_600 {
            named.act(&settings, Act::Named, now + second * 1_000);
        }
        let at = now + 3_600_000;
        assert!(named.counts(&settings, at).1 <= 16.0);
        let mut total = Total::default();
        total.add(&settings, &named);
        (1..members).for_each(|_| total.add(&settings, &quiet));
        let of = |score: &Score| {
            level(
                &settings,
                score,
                &Member { total, members, ..member(Shown::Foreground) },
                Level::Passive,
                at,
            )
        };
        assert_eq!((of(&named), of(&quiet)), (Level::Active, Level::Warm), "{members} members");
        let later = at + 3_600_000;
        let named = Member { total, members, ..member(Shown::Foreground) }.score(&settings, &named, later);
        assert!(named < settings.active, "{named}");
    }
}

#[test]
fn what_a_clock_left_that_was_ahead_does_not_count() {
    let settings = Settings::default();
    let now = (EPOCH_S + 86_400 * 400) * 1_000;
    let mut score = Score::default();
    score.act(&settings, Act::Send, now);
    let before = score;
    score.act(&settings, Act::Send, now + 365 * 86_400_000);
    assert!(score.base(&settings, now, 0) > 0.99);
    let sound = score.sound(&settings, now);
    assert_eq!(sound.counts(&settings, now), (0.0, 0.0));
    assert_eq!(sound.acted_ms(), now);
    assert_eq!(before.sound(&settings, now), before);
}
