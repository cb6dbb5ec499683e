//! FETCH: from the tail where it reaches, else by a reader.

use fanfare_proto::{Code, Frame, FrameType, limits::FETCH_MESSAGES_MAX, link::Origin, wire};
use fanfare_storage::mutant;

use super::Channel;
use crate::{
    desk::Desk,
    event::Event,
    frames,
    load::code_of,
    meter,
    page::{self, PageAsk, Snapshot},
};

impl Channel {
    /// FETCH.
    pub(super) fn fetch(&mut self, desk: &mut Desk, origin: Origin, frame: &Frame) {
        let Some(request) = frame.routed().map(|header| header.seq) else { return };
        let channel = self.id();
        let refuse = |desk: &mut Desk, code: Code| {
            desk.gateways.reply(&origin, frames::refused(FrameType::Fetch, channel, request, code));
        };
        let fetch: wire::Fetch = match frame.decode() {
            Ok(fetch) => fetch,
            Err(code) => return refuse(desk, code),
        };
        let unchecked = || mutant::is("fetch-skips-membership").then(|| smallvec::smallvec![(1, u64::MAX)]);
        let Some(visible) = self.members.visible(origin.user).or_else(unchecked) else {
            return refuse(desk, Code::NOT_A_MEMBER);
        };
        if fetch.messages_max == 0 || fetch.messages_max > FETCH_MESSAGES_MAX {
            return refuse(desk, Code::BAD_FIELD);
        }
        let behind =
            if mutant::is("page-from-drained-only") { desk.undrained_of(channel).len() as u64 } else { 0 };
        let place = (self.row.epoch, self.row.head - behind);
        let ask = PageAsk::new(&fetch, channel, place, visible, origin.user);
        if let Some(pages) = page::from_tail(&ask, &self.tail) {
            meter::page_tail();
            for frame in page::frames(&ask, request, &pages) {
                desk.gateways.reply(&origin, frame);
            }
            return;
        }
        meter::page_read();
        let memory = self.snapshot(desk);
        let started = desk.context.read(desk.shard, move |context| {
            let replies = match page::from_stores(&ask, &memory, &*context.metadata, &*context.content) {
                Ok(pages) => page::frames(&ask, request, &pages),
                Err(error) => {
                    tracing::warn!(%channel, %error, "a page cannot be read");
                    vec![frames::refused(FrameType::Fetch, channel, request, code_of(&error))]
                }
            };
            Event::Answer { origin, replies }
        });
        if !started {
            refuse(desk, Code::RETRY_LATER);
        }
    }

    /// What a reader needs of the owner's memory.
    pub(super) fn snapshot(&self, desk: &Desk) -> Snapshot {
        Snapshot {
            epoch: self.row.epoch,
            head: self.row.head,
            tail: self.tail.clone(),
            undrained: desk.undrained_of(self.id()),
        }
    }
}
