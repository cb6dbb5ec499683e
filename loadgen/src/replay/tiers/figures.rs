//! What `replay --tiers` found: the run, the same by the pure rules with higher and lower bars, and beside it the plain rule.

use anyhow::Result;
use fanfare_activity::Settings;
use serde::Serialize;

use super::{
    Ran,
    answers::{answers, untiered},
    model::{Point, Posts, at_bar, between, plain, tiered},
};
use crate::{Replay, report::Verdict, trace::Trace};

/// Answers that come in time, at least.
const IN_TIME_MIN: f64 = 0.95;
/// Bodies pushed, at most, of those that go out where everybody gets everything.
const DELIVERIES_MAX: f64 = 0.35;
/// Fewer answers prove nothing.
const ANSWERS_MIN: usize = 1_000;
/// Bars of the curve, times that of the defaults.
const BARS: [f32; 24] = [
    1e3, 16.0, 8.0, 4.0, 2.0, 1.4, 1.0, 0.7, 0.5, 0.25, 0.1, 0.03, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 1e-5, 1e-6,
    1e-8, 1e-11, 1e-16, 1e-24, 0.0,
];
/// Days of the plain rule.
const DAYS: [f64; 14] = [0.5, 1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 14.0, 21.0, 30.0, 45.0, 60.0, 90.0, 180.0];

#[derive(Serialize)]
struct AtBar {
    bar: f32,
    #[serde(flatten)]
    point: Point,
}

#[derive(Serialize)]
struct Plain {
    days: f64,
    #[serde(flatten)]
    point: Point,
    /// What members' activity gives for the same deliveries.
    by_activity: Option<f64>,
}

/// See the module; stable keys, units in names.
#[derive(Serialize)]
pub struct Report {
    schema: &'static str,
    /// What the run proves.
    pub verdict: Verdict,
    reasons: Vec<String>,
    skip: usize,
    messages: usize,
    users: usize,
    channels: usize,
    answers: usize,
    answered_in_time: f64,
    deliveries: u64,
    deliveries_untiered: u64,
    deliveries_ratio: f64,
    duplicated: u64,
    heads_equal: bool,
    /// The run by the pure rules alone.
    model: Point,
    /// The same where posts name nobody.
    unnamed: Point,
    curve: Vec<AtBar>,
    plain: Vec<Plain>,
    above_plain: bool,
    duration_s: f64,
    server_cpu_s: f64,
    repeat: String,
}

impl Report {
    pub(super) fn of(arguments: &Replay, trace: &Trace, ran: &Ran) -> Result<Self> {
        let (answers, all) = (answers(trace), untiered(trace));
        let here = Point::of(&ran.reached, &answers, all);
        let defaults = Settings::default();
        let by_activity = |bar: f32| {
            let reached = tiered(trace, &at_bar(&defaults, bar), ran.start_ms, Posts::Name);
            AtBar { bar, point: Point::of(&reached, &answers, all) }
        };
        let by_days = |days: f64| (days, Point::of(&plain(trace, days), &answers, all));
        // Two threads: the runs are many and know nothing of each other.
        let (curve, plain) = std::thread::scope(|scope| {
            let curve =
                scope.spawn(|| BARS.iter().step_by(2).map(|bar| by_activity(*bar)).collect::<Vec<_>>());
            let mut other: Vec<AtBar> = BARS.iter().skip(1).step_by(2).map(|bar| by_activity(*bar)).collect();
            let plain: Vec<_> = DAYS.iter().map(|days| by_days(*days)).collect();
            other.extend(curve.join().unwrap_or_default());
            (other, plain)
        });
        let mut curve = curve;
        curve.sort_by(|one, other| other.bar.total_cmp(&one.bar));
        let points: Vec<Point> = curve.iter().map(|at| at.point).collect();
        let plain: Vec<Plain> = plain
            .into_iter()
            .map(|(days, point)| Plain { days, point, by_activity: between(&points, point.deliveries_ratio) })
            .collect();
        // Curves that differ by less than the standard error of a part of so many answers are the same.
        let error = |part: f64| (part * (1.0 - part) / answers.len().max(1) as f64).sqrt();
        let is_above = |plain: &Plain| {
            let theirs = plain.point.answered_in_time;
            plain.by_activity.is_none_or(|ours| ours >= theirs - error(theirs))
        };
        let above_plain = plain.iter().all(is_above);
        let model = curve.iter().find(|at| at.bar == 1.0).map_or(here, |at| at.point);
        let unnamed = Point::of(&tiered(trace, &defaults, ran.start_ms, Posts::NameNobody), &answers, all);
        let mut reasons = Vec::new();
        let mut broken = |is_broken: bool, what: &str| {
            if is_broken {
                reasons.push(what.to_owned());
            }
        };
        broken(
            here.answered_in_time < IN_TIME_MIN,
            "fewer answers than wanted had been pushed what they answer",
        );
        broken(here.deliveries_ratio == 0.0, "nothing was pushed");
        broken(here.deliveries_ratio > DELIVERIES_MAX, "more was pushed than wanted");
        broken(ran.duplicated > 0, "bodies were pushed twice");
        broken(ran.behind > 0, "members do not know the head");
        broken(!above_plain, "the plain rule does better at a point");
        let verdict = if reasons.is_empty() { Verdict::Pass } else { Verdict::Broken };
        let verdict = if answers.len() < ANSWERS_MIN {
            reasons.push(format!("fewer than {ANSWERS_MIN} answers: take more messages"));
            Verdict::Invalid
        } else {
            verdict
        };
        Ok(Self {
            schema: "fanfare.replay-tiers/v1",
            verdict,
            reasons,
            skip: arguments.skip,
            messages: trace.rows.len(),
            users: trace.senders,
            channels: trace.channels,
            answers: answers.len(),
            answered_in_time: here.answered_in_time,
            deliveries: ran.reached.count(),
            deliveries_untiered: all,
            deliveries_ratio: here.deliveries_ratio,
            duplicated: ran.duplicated,
            heads_equal: ran.behind == 0,
            model,
            unnamed,
            curve,
            plain,
            above_plain,
            duration_s: ran.duration.as_secs_f64(),
            server_cpu_s: ran.server_cpu_s,
            repeat: std::env::args().collect::<Vec<_>>().join(" "),
        })
    }

    /// For people.
    pub fn print(&self) {
        println!(
            "tiers over {} messages from row {} on, of {} members in {} channels: {:?}",
            self.messages, self.skip, self.users, self.channels, self.verdict
        );
        for reason in &self.reasons {
            println!("  ! {reason}");
        }
        let met = |is_met: bool| if is_met { "met" } else { "missed" };
        println!(
            "  answered in time  {:>8.4}  of {} answers; bar {IN_TIME_MIN} {}",
            self.answered_in_time,
            self.answers,
            met(self.answered_in_time >= IN_TIME_MIN)
        );
        println!(
            "  deliveries ratio  {:>8.4}  {} bodies of {}; bar {DELIVERIES_MAX} {}",
            self.deliveries_ratio,
            self.deliveries,
            self.deliveries_untiered,
            met(self.deliveries_ratio <= DELIVERIES_MAX)
        );
        println!(
            "  by the rules alone {:>7.4}  at {:.4}",
            self.model.answered_in_time, self.model.deliveries_ratio
        );
        println!(
            "  naming nobody     {:>8.4}  at {:.4}",
            self.unnamed.answered_in_time, self.unnamed.deliveries_ratio
        );
        println!("  duplicated        {:>8}  heads equal: {}", self.duplicated, self.heads_equal);
        println!("  bar x     pushed  in time");
        for AtBar { bar, point } in &self.curve {
            println!("  {bar:<8e} {:>7.4}  {:.4}", point.deliveries_ratio, point.answered_in_time);
        }
        println!("  posted within   pushed  in time   by activity for as much");
        for Plain { days, point, by_activity } in &self.plain {
            let ours = by_activity.map_or_else(|| "-".into(), |ours| format!("{ours:.4}"));
            println!(
                "  {days:>6} days   {:>9.4}  {:.4}   {ours}",
                point.deliveries_ratio, point.answered_in_time
            );
        }
        println!(
            "  {:.0} s, {:.1} CPU seconds of the server; again: {}",
            self.duration_s, self.server_cpu_s, self.repeat
        );
    }
}
