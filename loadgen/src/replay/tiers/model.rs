//! What rules would push to whom in a trace: members' activity with given settings, and the plain rule "whoever posted within so many
//! days". Everybody's app is on screen and nobody opens a channel, as in the run. The trace does not say who names whom: a post is taken
//! for an answer to whoever wrote before it in its topic, who is then pushed it by name, by either rule; or for one that names nobody.

use fanfare_activity::{Act, Level, Member, Score, Settings, Shown, Total, level};
use hashbrown::HashMap;
use serde::Serialize;

use super::answers::{Answer, Reached};
use crate::trace::Trace;

/// How a rule fares.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Point {
    /// The part of the answers whose body had been pushed to who answers.
    pub answered_in_time: f64,
    /// Bodies pushed, of those that go out where everybody gets everything.
    pub deliveries_ratio: f64,
}

impl Point {
    /// Of what was reached.
    pub fn of(reached: &Reached, answers: &[Answer], untiered: u64) -> Self {
        Self {
            answered_in_time: reached.in_time(answers),
            deliveries_ratio: reached.count() as f64 / untiered.max(1) as f64,
        }
    }
}

struct Person {
    sender: u32,
    score: Score,
    level: Level,
    posted_s: u64,
}

#[derive(Default)]
struct Channel {
    people: Vec<Person>,
    places: HashMap<u32, usize>,
    total: Total,
    ordinal: u64,
}

impl Channel {
    /// The sender's place; joins where it is new.
    fn place(&mut self, sender: u32) -> usize {
        let next = self.people.len();
        let place = *self.places.entry(sender).or_insert(next);
        if place == next {
            self.people.push(Person { sender, score: Score::default(), level: Level::Passive, posted_s: 0 });
        }
        place
    }

    fn member(&self) -> Member {
        Member {
            shown: Shown::Foreground,
            is_direct: false,
            members: self.people.len(),
            is_muted: false,
            unread: self.ordinal,
            total: self.total,
        }
    }

    fn is_small(&self, settings: &Settings) -> bool {
        self.people.len() <= settings.small_members
    }

    fn look(&mut self, settings: &Settings, place: usize, now_ms: u64) {
        let (member, is_small) = (self.member(), self.is_small(settings));
        let person = &mut self.people[place];
        person.level = if is_small {
            Level::Active
        } else {
            level(settings, &person.score, &member, person.level, now_ms)
        };
    }

    fn act(&mut self, settings: &Settings, place: usize, act: Act, now_ms: u64) {
        let score = &mut self.people[place].score;
        self.total.remove(settings, score);
        score.act(settings, act, now_ms);
        self.total.add(settings, score);
        self.look(settings, place, now_ms);
    }
}

/// Whether posts name whom they answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Posts {
    /// They do.
    Name,
    /// They name nobody.
    NameNobody,
}

/// Whom members' activity pushes each message to; `start_ms` is the clock at the first row.
pub fn tiered(trace: &Trace, settings: &Settings, start_ms: u64, posts: Posts) -> Reached {
    let mut reached = Reached::new(trace);
    let mut channels: Vec<Channel> = (0..trace.channels).map(|_| Channel::default()).collect();
    let mut newest: Vec<Option<u32>> = vec![None; trace.topics];
    for (number, row) in trace.rows.iter().enumerate() {
        let now_ms = start_ms + (row.time_s - trace.rows[0].time_s) * 1_000;
        let channel = &mut channels[row.channel as usize];
        let sender = channel.place(row.sender);
        let is_small = channel.is_small(settings);
        for place in 0..channel.people.len() {
            if is_small || channel.people[place].level > Level::Passive {
                channel.look(settings, place, now_ms);
            }
        }
        channel.ordinal += 1;
        channel.act(settings, sender, Act::Send, now_ms);
        let target = newest[row.topic as usize].replace(row.sender);
        if let Some(target) = target.filter(|_| posts == Posts::Name) {
            channel.act(settings, sender, Act::Reply, now_ms);
            if target != row.sender {
                let target = channel.place(target);
                channel.act(settings, target, Act::Named, now_ms);
                channel.people[target].level = Level::Active;
            }
        }
        for person in &channel.people {
            if person.level > Level::Passive && person.sender != row.sender {
                reached.insert(number, person.sender as usize);
            }
        }
    }
    reached
}

/// Whom each message goes to that goes to whoever posted in the channel within so many days, and to whom it names.
pub fn plain(trace: &Trace, days: f64) -> Reached {
    let mut reached = Reached::new(trace);
    let mut channels: Vec<Channel> = (0..trace.channels).map(|_| Channel::default()).collect();
    let mut newest: Vec<Option<u32>> = vec![None; trace.topics];
    for (number, row) in trace.rows.iter().enumerate() {
        let channel = &mut channels[row.channel as usize];
        let sender = channel.place(row.sender);
        for person in &channel.people {
            let is_due = (row.time_s - person.posted_s.min(row.time_s)) as f64 <= days * 86_400.0;
            if is_due && person.sender != row.sender {
                reached.insert(number, person.sender as usize);
            }
        }
        if let Some(target) = newest[row.topic as usize].replace(row.sender).filter(|by| *by != row.sender) {
            reached.insert(number, target as usize);
        }
        channel.people[sender].posted_s = row.time_s;
    }
    reached
}

/// Settings that push `1 / bar` times as readily: what makes a member warm counts by `bar`, and beyond 1 only minutes make one active.
pub fn at_bar(settings: &Settings, bar: f32) -> Settings {
    Settings {
        warm: settings.warm * bar,
        warm_of_mean: settings.warm_of_mean * bar,
        active: if bar > 1.0 { settings.active.max(0.5) } else { settings.active },
        ..*settings
    }
}

/// What `curve` gives for the same deliveries as `at`, by straight lines between its points, which are in order of deliveries.
pub fn between(curve: &[Point], at: f64) -> Option<f64> {
    let above = curve.iter().position(|point| point.deliveries_ratio >= at)?;
    let high = curve[above];
    let Some(low) = above.checked_sub(1).map(|below| curve[below]) else {
        return (high.deliveries_ratio == at).then_some(high.answered_in_time);
    };
    let part = (at - low.deliveries_ratio) / (high.deliveries_ratio - low.deliveries_ratio).max(1e-12);
    Some(low.answered_in_time + part * (high.answered_in_time - low.answered_in_time))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Row;

    fn trace() -> Trace {
        let row = |number: u64| {
            let sender = if number.is_multiple_of(3) { number as u32 / 3 % 40 } else { number as u32 % 2 };
            Row { time_s: number * 600, channel: 0, topic: (number / 5) as u32, sender, bytes: 1 }
        };
        Trace { rows: (0..3_000).map(row).collect(), channels: 1, senders: 40, topics: 600 }
    }

    #[test]
    fn rules_push_more_the_lower_their_bar() {
        let (trace, start_ms) = (trace(), fanfare_activity::EPOCH_S * 1_000);
        let count = |bar| tiered(&trace, &at_bar(&Settings::default(), bar), start_ms, Posts::Name).count();
        let counts: Vec<u64> = [100.0, 4.0, 1.0, 0.1, 0.0].map(count).into();
        assert!(counts.is_sorted() && counts[0] < counts[4] / 4, "{counts:?}");
        assert_eq!(counts[4], super::super::answers::untiered(&trace));
        let plain = |days| plain(&trace, days).count();
        assert!(plain(0.1) < plain(0.5) && plain(0.5) < plain(1e6) && plain(1e6) == counts[4]);
    }

    #[test]
    fn a_curve_is_read_between_its_points() {
        let point = |answered_in_time, deliveries_ratio| Point { answered_in_time, deliveries_ratio };
        let curve = [point(0.5, 0.1), point(0.9, 0.3), point(1.0, 1.0)];
        assert_eq!(between(&curve, 0.05), None);
        assert!((between(&curve, 0.2).unwrap() - 0.7).abs() < 1e-9);
        assert_eq!((between(&curve, 0.1), between(&curve, 1.0)), (Some(0.5), Some(1.0)));
    }
}
