//! STATE: what a session shows, and word of it to the owners of its channels.

use fanfare_activity::Shown;
use fanfare_proto::{ChannelId, Code, Frame, limits::VISIBLE_MAX, link::Origin, wire};

use super::{Session, User};
use crate::{
    desk::Desk,
    event::{Touch, Wants},
};

/// Between two times that the app comes on screen: each is told to the owners of all channels of the user, so for each of these it takes a
/// millisecond longer.
const CAME_EVERY_MS: u64 = 1_000;

/// What a session shows while the app is on screen.
#[derive(Debug)]
pub struct Screen {
    /// Ascending; the user may join some of them only later.
    visible: Vec<ChannelId>,
    /// When the app came on screen, Unix milliseconds.
    since_ms: u64,
}

impl Session {
    /// What decides how it is served in a channel.
    pub(super) fn wants(&self, channel: ChannelId) -> Wants {
        if self.is_full { Wants::Full } else { Wants::ByTier(shown(self.screen.as_deref(), channel)) }
    }
}

fn shown(screen: Option<&Screen>, channel: ChannelId) -> Shown {
    match screen {
        None => Shown::Background,
        Some(screen) if screen.visible.binary_search(&channel).is_ok() => Shown::Visible,
        Some(_) => Shown::Foreground,
    }
}

impl User {
    /// STATE: replaces what was shown before.
    pub(super) fn state(&mut self, desk: &mut Desk, origin: &Origin, frame: &Frame) -> Result<(), Code> {
        let state: wire::State = frame.decode()?;
        if state.visible.len() > VISIBLE_MAX {
            return Err(Code::BAD_FIELD);
        }
        let tapped = ChannelId(state.tapped);
        if self.channels.contains(tapped) {
            desk.post_channel(tapped, Touch::Tapped(origin.user));
        }
        let is_shown = state.attention == wire::Attention::Foreground as i32;
        let mut visible: Vec<ChannelId> = state.visible.into_iter().map(ChannelId).collect();
        visible.sort_unstable();
        visible.dedup();
        let now_ms = desk.context.now_ms();
        let came_every_ms = CAME_EVERY_MS + self.channels.len() as u64;
        let Some(session) = self.session(origin) else { return Ok(()) };
        let before = session.screen.take();
        if session.is_full {
            return Ok(());
        }
        let since_ms = before.as_ref().map_or(now_ms, |screen| screen.since_ms);
        if !is_shown && now_ms < since_ms + came_every_ms && before.is_some() {
            // Who comes and goes all the time costs no more than who does it once a second.
            session.screen = before;
            return Err(Code::RATE_LIMITED);
        }
        session.screen = is_shown.then(|| Box::new(Screen { visible, since_ms }));
        let after = session.screen.as_deref().map(|screen| screen.visible.clone());
        let was_shown = before.is_some();
        if !session.follows {
            return Ok(());
        }
        let (before, after) = (before.map(|screen| screen.visible).unwrap_or_default(), after);
        let of = |channel: ChannelId| match &after {
            None => Shown::Background,
            Some(visible) if visible.binary_search(&channel).is_ok() => Shown::Visible,
            Some(_) => Shown::Foreground,
        };
        if was_shown == is_shown {
            let visible = after.as_deref().unwrap_or_default();
            let gone = before.iter().filter(|channel| visible.binary_search(channel).is_err());
            let come = visible.iter().filter(|channel| before.binary_search(channel).is_err());
            for channel in gone.chain(come).filter(|channel| self.channels.contains(**channel)) {
                desk.post_channel(*channel, Touch::Shows(*origin, of(*channel)));
            }
        } else {
            for channel in self.channels.iter() {
                desk.post_channel(channel, Touch::Shows(*origin, of(channel)));
            }
        }
        Ok(())
    }
}
