//! What the user sees, told to the server: the app on screen or not, and the channels that are shown or watched. Each STATE replaces the
//! one before; one is sent when something changed, and once for each session.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use fanfare_proto::{
    ChannelId,
    limits::VISIBLE_MAX,
    session::client::ClientSession,
    wire::{self, Attention},
};
use parking_lot::Mutex;
use tokio::time::Instant;

/// Channels that are watched, and how many watch each. Changed by watchers, read by the task. Locked for one operation at a time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watched(Arc<Mutex<BTreeMap<ChannelId, usize>>>);

impl Watched {
    /// One more watches the channel, or one less.
    pub fn change(&self, channel: ChannelId, more: bool) {
        let mut watched = self.0.lock();
        let watchers = watched.entry(channel).or_default();
        *watchers = if more { *watchers + 1 } else { watchers.saturating_sub(1) };
        if *watchers == 0 {
            watched.remove(&channel);
        }
    }
}

/// After a STATE that was refused.
const AGAIN_AFTER: Duration = Duration::from_millis(500);

/// See the module.
#[derive(Debug)]
pub(crate) struct Screen {
    attention: Attention,
    shown: Vec<ChannelId>,
    watched: Watched,
    tapped: Option<ChannelId>,
    /// As the server was told in this session.
    told: Option<wire::State>,
    not_before: Option<Instant>,
}

impl Screen {
    /// The app is on screen, with none of its channels but those that are watched.
    pub fn new(watched: Watched) -> Self {
        Self {
            attention: Attention::Foreground,
            shown: Vec::new(),
            watched,
            tapped: None,
            told: None,
            not_before: None,
        }
    }

    /// The application says what it shows.
    pub fn show(&mut self, attention: Attention, shown: Vec<ChannelId>) {
        (self.attention, self.shown) = (attention, shown);
    }

    /// The user came by a push notification of that channel.
    pub fn tap(&mut self, channel: ChannelId) {
        self.tapped = Some(channel);
    }

    /// Whether entries of the channel are wanted as they come.
    pub fn shows(&self, channel: ChannelId) -> bool {
        self.attention == Attention::Foreground
            && (self.shown.contains(&channel) || self.watched.0.lock().contains_key(&channel))
    }

    /// As it stands: what is shown before what is watched, up to the bound.
    fn state(&self) -> wire::State {
        let mut visible: Vec<u64> = Vec::new();
        if self.attention == Attention::Foreground {
            let watched = self.watched.0.lock();
            for channel in self.shown.iter().chain(watched.keys()) {
                if visible.len() < VISIBLE_MAX && !visible.contains(&channel.0) {
                    visible.push(channel.0);
                }
            }
        }
        let tapped = self.tapped.map_or(0, |channel| channel.0);
        wire::State { attention: self.attention.into(), visible, tapped }
    }

    /// What a session begins with.
    pub fn begin(&mut self) -> wire::State {
        let state = self.state();
        self.tapped = None;
        self.told = Some(wire::State { tapped: 0, ..state.clone() });
        state
    }

    /// The session is over: the next one begins anew.
    pub fn disconnected(&mut self) {
        (self.told, self.not_before) = (None, None);
    }

    /// Tells the server where something changed; gives the channels that came on screen.
    pub fn pump(&mut self, session: &mut ClientSession) -> Vec<ChannelId> {
        let state = self.state();
        let told = self.told.clone().unwrap_or_default();
        let is_due = self.not_before.is_none_or(|at| at <= Instant::now());
        if !is_due || (self.told.is_some() && state == told) || session.state(&state).is_err() {
            return Vec::new();
        }
        (self.not_before, self.tapped) = (None, None);
        let new = state.visible.iter().filter(|channel| !told.visible.contains(channel));
        let new = new.copied().map(ChannelId).collect();
        self.told = Some(wire::State { tapped: 0, ..state });
        new
    }

    /// The server did not take it: said again in a moment.
    pub fn refused(&mut self) {
        self.told = None;
        self.not_before = Some(Instant::now() + AGAIN_AFTER);
    }

    /// When it is to be said again.
    pub fn deadline(&self) -> Option<Instant> {
        self.not_before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_comes_before_what_is_watched_and_a_tap_is_said_once() {
        let watched = Watched::default();
        let mut screen = Screen::new(watched.clone());
        for channel in 1..=20 {
            watched.change(ChannelId(channel), true);
        }
        screen.show(Attention::Foreground, vec![ChannelId(99), ChannelId(3)]);
        screen.tap(ChannelId(99));
        let state = screen.begin();
        assert_eq!((state.visible.len(), &state.visible[..3]), (VISIBLE_MAX, &[99, 3, 1][..]));
        assert_eq!((state.tapped, screen.state().tapped), (99, 0));
        watched.change(ChannelId(1), false);
        assert!(!screen.shows(ChannelId(1)) && screen.shows(ChannelId(2)) && screen.shows(ChannelId(99)));
        screen.show(Attention::Background, vec![ChannelId(99)]);
        assert!(!screen.shows(ChannelId(99)) && screen.state().visible.is_empty());
    }
}
