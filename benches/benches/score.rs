//! Group `score`: what an act costs, and a look at a member's level; beside it the same with two counters that have to be swept.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fanfare_activity::{Act, EPOCH_S, Level, Member, Score, Settings, Shown, Total, level};

/// Members of the group that is looked at.
const MEMBERS: usize = 10_000;

/// A counter that is decayed as time passes, and when it was.
#[derive(Clone, Copy, Default)]
struct Swept {
    count: f32,
    at_s: f32,
}

impl Swept {
    fn at(self, now_s: f32, half_life_s: f32) -> f32 {
        self.count * (-(now_s - self.at_s) / half_life_s).exp2()
    }
}

fn scores(settings: &Settings, now_ms: u64) -> Vec<Score> {
    let member = |number: usize| {
        let mut score = Score::default();
        for act in 0..number % 5 {
            score.act(settings, Act::Send, now_ms - (number as u64 * 7_919 % 86_400 + act as u64) * 1_000);
        }
        score
    };
    (0..MEMBERS).map(member).collect()
}

fn everybody(settings: &Settings, scores: &[Score]) -> Total {
    scores.iter().fold(Total::default(), |mut total, score| {
        total.add(settings, score);
        total
    })
}

fn score(criterion: &mut Criterion) {
    let settings = Settings::default();
    let now_ms = (EPOCH_S + 400 * 86_400) * 1_000;
    let mut all = scores(&settings, now_ms);
    let mut group = criterion.benchmark_group("score");
    group.throughput(Throughput::Elements(MEMBERS as u64));
    group.bench_function("act", |bencher| {
        bencher.iter(|| {
            for score in &mut all {
                score.act(black_box(&settings), Act::Read, now_ms);
            }
        });
    });
    group.bench_function("act, a counter that is swept", |bencher| {
        let mut counters = vec![[Swept::default(); 2]; MEMBERS];
        bencher.iter(|| {
            for [fast, slow] in &mut counters {
                let now_s = black_box(100.0);
                let counts = [fast.at(now_s, 600.0) + 3.0, slow.at(now_s, 259_200.0) + 3.0];
                (*fast, *slow) =
                    (Swept { count: counts[0], at_s: now_s }, Swept { count: counts[1], at_s: now_s });
            }
        });
    });
    let all = scores(&settings, now_ms);
    let member = Member {
        shown: Shown::Foreground,
        is_direct: false,
        members: MEMBERS,
        is_muted: false,
        unread: 3,
        total: everybody(&settings, &all),
    };
    group.bench_function("level", |bencher| {
        bencher.iter(|| {
            let active = all.iter().filter(|score| {
                level(black_box(&settings), score, &member, Level::Warm, now_ms) == Level::Active
            });
            active.count()
        });
    });
    group.finish();
}

criterion_group!(benches, score);
criterion_main!(benches);
