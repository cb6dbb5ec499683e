//! One user: sessions, the status that follows from them, and when it was there last.

use fanfare_proto::{
    DeviceId, UserId,
    link::{GatewayId, Handle, Origin},
};
use smallvec::SmallVec;

use super::{Now, Seen, Status};
use crate::Config;

/// One live session.
#[derive(Debug)]
pub struct Session {
    pub gateway: GatewayId,
    pub handle: Handle,
    pub device: DeviceId,
    /// When its gateway named it last.
    pub alive_ms: u64,
    /// What it last said of its screen.
    pub foreground: Option<bool>,
    /// Since when it is in the background.
    background_ms: u64,
    /// Nothing comes from it any more, and its gateway has not yet closed it.
    pub silent: bool,
}

impl Session {
    pub fn new(now: Now, origin: &Origin) -> Self {
        Self {
            gateway: origin.gateway,
            handle: origin.handle,
            device: origin.device,
            alive_ms: now.ms,
            foreground: None,
            background_ms: 0,
            silent: false,
        }
    }

    pub fn is(&self, origin: &Origin) -> bool {
        self.handle == origin.handle && self.gateway == origin.gateway
    }

    pub fn show(&mut self, now: Now, foreground: bool) {
        if self.foreground != Some(foreground) {
            self.foreground = Some(foreground);
            self.background_ms = now.ms;
        }
    }

    /// When it counts as away, where it is in the background.
    pub fn away_ms(&self, config: &Config) -> Option<u64> {
        (self.foreground == Some(false)).then(|| self.background_ms + config.away_after.as_millis() as u64)
    }

    /// Who never said what the screen shows is there as long as the session.
    pub fn status(&self, now: Now, config: &Config) -> Status {
        match self.away_ms(config) {
            _ if self.silent => Status::Offline,
            Some(away_ms) if now.ms >= away_ms => Status::Away,
            _ => Status::Online,
        }
    }

    /// When somebody was last there to look at it.
    pub fn there_ms(&self, now: Now) -> u64 {
        match self.foreground {
            Some(false) => self.background_ms,
            _ => now.ms,
        }
    }

    /// The same in Unix milliseconds.
    pub fn seen_ms(&self, now: Now) -> u64 {
        now.unix_ms.saturating_sub(now.ms.saturating_sub(self.there_ms(now)))
    }
}

/// See the module.
#[derive(Debug)]
pub struct Person {
    pub user: UserId,
    pub sessions: SmallVec<[Session; 1]>,
    /// Who watches: the watcher, and the place in its list.
    pub watchers: Vec<(u32, u32)>,
    /// Unix milliseconds; 0 where it is not known.
    pub last_seen_ms: u64,
    /// As those who watch are told.
    pub shown: Seen,
    /// Since when there is no session, where there is none.
    pub gone_ms: Option<u64>,
    /// When the last seen was written, on the monotonic clock.
    pub written_ms: Option<u64>,
    /// It is on the list of those that are to be written.
    pub is_due: bool,
    /// It is on the list of those whose status is to be looked at.
    pub is_changed: bool,
    /// It is on the list of those who may become away.
    pub is_resting: bool,
}

impl Person {
    pub fn new(user: UserId) -> Self {
        Self {
            user,
            sessions: SmallVec::new(),
            watchers: Vec::new(),
            last_seen_ms: 0,
            shown: Seen::default(),
            gone_ms: None,
            written_ms: None,
            is_due: false,
            is_changed: false,
            is_resting: false,
        }
    }

    pub fn session(&mut self, origin: &Origin) -> Option<&mut Session> {
        self.sessions.iter_mut().find(|session| session.is(origin))
    }

    /// Whether its last seen is known.
    pub fn is_known(&self) -> bool {
        self.last_seen_ms != 0
    }

    pub fn seen(&mut self, unix_ms: u64) {
        self.last_seen_ms = self.last_seen_ms.max(unix_ms);
    }

    /// Whether no session is left from which anything comes.
    pub fn is_gone(&self) -> bool {
        self.sessions.iter().all(|session| session.silent)
    }

    /// Whether nobody needs it in memory. One that was just written is kept, or the next write could come too soon.
    pub fn is_idle(&self, now_ms: u64, config: &Config) -> bool {
        let write_every_ms = config.write_every.as_millis() as u64;
        self.sessions.is_empty()
            && self.watchers.is_empty()
            && !self.is_due
            && !self.is_changed
            && self.shown.status == Status::Offline
            && self.written_ms.is_none_or(|written| now_ms >= written + write_every_ms)
    }

    /// How it is to be shown: who has just left may come back at once.
    pub fn status(&self, now: Now, config: &Config) -> Status {
        let stays = |gone: u64| now.ms < gone + config.offline_after.as_millis() as u64;
        match self.sessions.iter().map(|session| session.status(now, config)).max().unwrap_or_default() {
            Status::Offline if self.gone_ms.is_some_and(stays) => self.shown.status,
            status => status,
        }
    }

    /// What goes with that status.
    pub fn last_seen(&self, now: Now, status: Status) -> u64 {
        match status {
            Status::Online => 0,
            Status::Away => {
                let seen = self.sessions.iter().map(|session| session.seen_ms(now)).max();
                let seen = seen.unwrap_or(self.last_seen_ms);
                // Two readings of the clocks differ a little.
                let is_same =
                    self.shown.status == Status::Away && seen.abs_diff(self.shown.last_seen_ms) < 1_000;
                if is_same { self.shown.last_seen_ms } else { seen }
            }
            Status::Offline => self.last_seen_ms,
        }
    }
}
