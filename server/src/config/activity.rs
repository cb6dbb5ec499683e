//! The keys of `activity` and `tiers` in the crates' terms.

use std::time::Duration;

use fanfare_activity::{Settings, Weights};
use fanfare_router::TierTimes;

use super::Layers;

/// How activity is counted.
pub fn settings(layers: &Layers) -> Settings {
    let number = |name: &str| layers.number(&format!("activity.{name}")) as f32;
    let weight = |name: &str| number(&format!("weight_{name}"));
    Settings {
        weights: Weights {
            send: weight("send"),
            tap: weight("tap"),
            reply: weight("reply"),
            react: weight("react"),
            named: weight("named"),
            look: weight("look"),
            read: weight("read"),
            typing: weight("type"),
        },
        fast_half_life_s: number("fast_half_life_s"),
        slow_half_life_s: number("slow_half_life_s"),
        fast_share: number("fast_percent") / 100.0,
        half_saturation: number("half_saturation"),
        foreground: number("foreground_percent") / 100.0,
        background: number("background_percent") / 100.0,
        small_members: layers.number("activity.small_members") as usize,
        muted_minus: number("muted_minus_permille") / 1_000.0,
        ignored_unread: layers.number("activity.ignored_unread"),
        ignored_s: layers.number("activity.ignored_s") as u32,
        active: number("active_permille") / 1_000.0,
        warm: number("warm_permille") / 1_000.0,
        warm_of_mean: number("warm_of_mean_percent") / 100.0,
        total_cap: number("total_cap"),
        exit: number("exit_percent") / 100.0,
        patience_s: number("patience_s"),
        ..Settings::default()
    }
}

/// How long each tier waits.
pub fn tiers(layers: &Layers) -> TierTimes {
    let time = |name| Duration::from_millis(layers.number(name));
    TierTimes {
        by_activity: layers.text("tiers.by") == "activity",
        warm: time("tiers.warm_ms"),
        passive: time("tiers.passive_ms"),
        background: time("tiers.background_ms"),
        ..TierTimes::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_those_of_the_crates() {
        let layers = Layers::assemble(None, std::iter::empty(), &[], false).expect("valid");
        assert_eq!(settings(&layers), Settings::default());
        let (ours, theirs) = (tiers(&layers), TierTimes::default());
        assert_eq!(format!("{ours:?}"), format!("{theirs:?}"));
    }
}
