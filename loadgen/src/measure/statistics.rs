//! Medians with their minimum and maximum, and a figure beside its floor.

use serde::Serialize;

/// What repeats of one figure gave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Spread {
    /// The middle one; of an even number the mean of the two in the middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
}

impl Spread {
    /// Of any number of figures; zeros where there are none.
    pub fn of(figures: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = figures.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (Some(min), Some(max)) = (sorted.first(), sorted.last()) else { return Self::default() };
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Self { median, min: *min, max: *max }
    }
}

/// Ours divided by the floor of the same run: each repeat's by the floor that was measured beside it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Ratio {
    /// Median of the repeats' ratios.
    pub ratio: f64,
    /// The least of them.
    pub min: f64,
    /// The most of them.
    pub max: f64,
    /// Median of ours, in the unit that the field's name says.
    pub ours: f64,
    /// Median of the floor, in the same unit.
    pub floor: f64,
    /// What it is to be at most; absent where no such bar is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bar: Option<f64>,
    /// What it is to be at least, where more is better.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bar_at_least: Option<f64>,
}

impl Ratio {
    /// Of repeats, each with its floor.
    pub fn of(repeats: &[(f64, f64)], bar: Option<f64>) -> Self {
        let Spread { median, min, max } = Spread::of(repeats.iter().map(|(ours, floor)| ours / floor));
        let ours = Spread::of(repeats.iter().map(|(ours, _)| *ours)).median;
        let floor = Spread::of(repeats.iter().map(|(_, floor)| *floor)).median;
        Self { ratio: median, min, max, ours, floor, bar, bar_at_least: None }
    }

    /// As [`Self::of`], of figures of which more is better.
    pub fn at_least(repeats: &[(f64, f64)], bar: f64) -> Self {
        Self { bar_at_least: Some(bar), ..Self::of(repeats, None) }
    }

    /// How it is shown: the median, least to most, and its bar.
    pub fn text(&self) -> String {
        format!("{:>8.2} ({:.2} to {:.2}) {}", self.ratio, self.min, self.max, self.bar_text())
    }

    /// How it is shown beside its bar.
    pub fn bar_text(&self) -> String {
        match self.bar_at_least {
            Some(bar) if self.ratio >= bar => format!("bar {bar} met"),
            Some(bar) => format!("bar {bar} MISSED"),
            None => bar_text(self.ratio, self.bar),
        }
    }
}

/// A figure's bar, and whether it was met.
pub fn bar_text(figure: f64, bar: Option<f64>) -> String {
    match bar {
        Some(bar) if figure <= bar => format!("bar {bar} met"),
        Some(bar) => format!("bar {bar} MISSED"),
        None => String::new(),
    }
}

/// The middle of whole numbers, which it sorts; 0 where there are none.
pub fn median_of(figures: &mut [u64]) -> u64 {
    figures.sort_unstable();
    figures.get(figures.len() / 2).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads() {
        assert_eq!(Spread::of([]), Spread::default());
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Spread { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]), Spread { median: 2.5, min: 1.0, max: 4.0 });
        assert_eq!((median_of(&mut [5, 1, 3]), median_of(&mut [])), (3, 0));
    }

    #[test]
    fn a_ratio_is_of_what_was_measured_side_by_side() {
        let ratio = Ratio::of(&[(2.0, 1.0), (9.0, 3.0), (8.0, 2.0)], Some(2.5));
        assert_eq!((ratio.ratio, ratio.min, ratio.max), (3.0, 2.0, 4.0));
        assert_eq!((ratio.ours, ratio.floor), (8.0, 2.0));
        assert_eq!(ratio.bar_text(), "bar 2.5 MISSED");
        assert_eq!(bar_text(1.0, Some(1.25)), "bar 1.25 met");
        let (more, less) = (Ratio::at_least(&[(3.0, 5.0)], 0.5), Ratio::at_least(&[(2.0, 5.0)], 0.5));
        assert_eq!((more.bar_text(), less.bar_text()), ("bar 0.5 met".into(), "bar 0.5 MISSED".into()));
    }
}
