//! Fetching what was missed: newest first, so much of it as an application will want at once, handed out in ascending order.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use fanfare_proto::{ChannelId, Code, Frame, Seq, session::client::ClientSession, wire};
use tokio::time::Instant;

use crate::event::{Entry, Event};

/// Messages that are fetched of one gap; what is older is left to history.
pub const FILL_MESSAGES_MAX: u32 = 500;
/// Messages of one FETCH.
const FETCH_MESSAGES: u32 = 100;
/// Gaps that are filled at once.
const FILLS_MAX: usize = 2;

#[derive(Debug)]
struct Gap {
    channel: ChannelId,
    /// What is missing lies above this,
    after: Seq,
    /// and below this.
    before: Seq,
    head: Seq,
    messages_left: u32,
    request: Option<u64>,
    /// Earliest next FETCH.
    not_before: Instant,
    /// New entries so far.
    entries: BTreeMap<Seq, Arc<Entry>>,
}

/// All gaps of a client, oldest first; at most one of a channel.
#[derive(Debug, Default)]
pub(crate) struct Gaps {
    all: VecDeque<Gap>,
}

impl Gaps {
    pub fn add(&mut self, channel: ChannelId, after: Seq, head: Seq) {
        if let Some(gap) = self.all.iter_mut().find(|gap| gap.channel == channel && gap.request.is_none()) {
            gap.after = gap.after.min(after);
            if gap.head < head && gap.entries.is_empty() {
                (gap.head, gap.before) = (head, head + 1);
            }
            return;
        }
        // One that is being fetched ends where it began; what is new to it is a gap of its own behind it.
        let after =
            self.all.iter().filter(|gap| gap.channel == channel).map(|gap| gap.head).fold(after, Seq::max);
        if after >= head {
            return;
        }
        self.all.push_back(Gap {
            channel,
            after,
            before: head + 1,
            head,
            messages_left: FILL_MESSAGES_MAX,
            request: None,
            not_before: Instant::now(),
            entries: BTreeMap::new(),
        });
    }

    pub fn pump(&mut self, session: &mut ClientSession) {
        let fetching = self.all.iter().filter(|gap| gap.request.is_some()).count();
        let now = Instant::now();
        let due = self.all.iter_mut().filter(|gap| gap.request.is_none() && gap.not_before <= now);
        for gap in due.take(FILLS_MAX.saturating_sub(fetching)) {
            let messages_max = gap.messages_left.min(FETCH_MESSAGES);
            let fetch = wire::Fetch { after: gap.after, before: gap.before, messages_max, before_ms: 0 };
            let Ok(number) = session.fetch(gap.channel, &fetch) else { return };
            gap.request = Some(number);
        }
    }

    /// Takes a page; whether it was of a gap. What is new of it, and of a gap that ends with it, goes to `tell`.
    pub fn page(
        &mut self,
        session: &mut ClientSession,
        now_ms: u64,
        number: u64,
        page: &wire::Page,
        news: &[(Seq, Seq)],
        tell: &mut impl FnMut(Event),
    ) -> Result<bool, Code> {
        let Some(index) = self.all.iter().position(|gap| gap.request == Some(number)) else {
            return Ok(false);
        };
        let gap = &mut self.all[index];
        let mut messages = 0;
        for entry in new_entries(page, news)? {
            messages += u32::from(entry.message().is_some());
            gap.entries.insert(entry.seq, entry);
        }
        gap.messages_left = gap.messages_left.saturating_sub(messages);
        if page.first != 0 {
            gap.before = gap.before.min(page.first);
        }
        if page.more {
            return Ok(true);
        }
        gap.request = None;
        // A page that brings nothing further would be asked for for ever.
        let stuck = page.first == 0 || page.first > page.last;
        if !page.complete && gap.messages_left > 0 && gap.before > gap.after + 1 && !stuck {
            return Ok(true);
        }
        let Some(gap) = self.all.remove(index) else { return Ok(true) };
        for entry in gap.entries.into_values() {
            tell(Event::Entry(entry));
        }
        let first = if page.complete { gap.after + 1 } else { gap.before };
        if first > gap.after + 1 {
            session.skip_to(now_ms, gap.channel, first - 1);
            tell(Event::Skipped { channel: gap.channel, first: gap.after + 1, last: first - 1 });
        }
        if first <= gap.head {
            tell(Event::GapFilled { channel: gap.channel, first, last: gap.head });
        }
        Ok(true)
    }

    /// Takes a REFUSED; whether it was of a gap. What can be fetched later (`later_ms`) comes back at the end of the line.
    pub fn refuse(&mut self, number: u64, later_ms: Option<u64>) -> bool {
        let Some(index) = self.all.iter().position(|gap| gap.request == Some(number)) else { return false };
        if let Some(mut gap) = self.all.remove(index)
            && let Some(later_ms) = later_ms
        {
            gap.request = None;
            gap.not_before = Instant::now() + Duration::from_millis(later_ms);
            self.all.push_back(gap);
        }
        true
    }

    /// Whether something of the channel was fetched and not told yet.
    pub fn busy(&self, channel: ChannelId) -> bool {
        self.all.iter().any(|gap| gap.channel == channel && !gap.entries.is_empty())
    }

    /// When [`Self::pump`] has something to do by itself.
    pub fn deadline(&self) -> Option<Instant> {
        let now = Instant::now();
        self.all
            .iter()
            .filter(|gap| gap.request.is_none())
            .map(|gap| gap.not_before)
            .filter(|at| *at > now)
            .min()
    }

    /// The connection broke: the next SYNC tells what is missing by then. What was fetched is handed out.
    pub fn disconnected(&mut self, tell: &mut impl FnMut(Event)) {
        for gap in self.all.drain(..) {
            gap.entries.into_values().map(Event::Entry).for_each(&mut *tell);
        }
    }
}

/// The entries of a page that lie in `news`.
pub(crate) fn new_entries(page: &wire::Page, news: &[(Seq, Seq)]) -> Result<Vec<Arc<Entry>>, Code> {
    let mut entries = Vec::new();
    for frame in Frame::iter(page.frames.clone()) {
        let frame = frame?;
        let seq = frame.routed().ok_or(Code::BAD_FIELD)?.seq;
        if news.iter().any(|(first, last)| (*first..=*last).contains(&seq)) {
            entries.push(Arc::new(Entry::decode(&frame)?));
        }
    }
    Ok(entries)
}
