//! The gateways' way in: finds the owner and bounds what may wait for it.

use std::{future::Future, pin::Pin, sync::Arc};

use fanfare_proto::{
    Code, FrameType, ShardId,
    link::{UP_WAIT_MAX, Up, Uplink},
};

use crate::{
    context::{Inbox, post_all},
    event::Event,
    worker::Post,
};

/// See the module. Holds nothing of the router but the inboxes: a gateway that keeps it keeps no store open.
pub struct RouterUplink {
    inboxes: Arc<[Inbox]>,
    workers: usize,
}

impl RouterUplink {
    pub(crate) fn new(inboxes: Arc<[Inbox]>, workers: usize) -> Self {
        Self { inboxes, workers }
    }

    fn shard_of(&self, shard: ShardId) -> u16 {
        shard.0 % self.inboxes.len() as u16
    }

    fn owner(&self, up: &Up) -> u16 {
        match up {
            Up::Open { origin, .. } | Up::Close { origin } => self.shard_of(origin.user.shard()),
            Up::Credit { owner, .. } => *owner,
            Up::Frame { origin, frame } => match (frame.frame_type(), frame.routed()) {
                (FrameType::Open, _) | (_, None) => self.shard_of(origin.user.shard()),
                (_, Some(header)) => self.shard_of(header.channel.shard()),
            },
        }
    }
}

/// Whether it takes a permit: what a peer can cause in any number.
pub fn is_bounded(up: &Up) -> bool {
    matches!(up, Up::Open { .. } | Up::Frame { .. })
}

impl Uplink for RouterUplink {
    fn try_send(&self, up: Up) -> Result<(), Box<Up>> {
        if !self.reserve(&up) {
            return Err(Box::new(up));
        }
        let owner = self.owner(&up);
        let Some(inbox) = self.inboxes.get(usize::from(owner)) else { return Ok(()) };
        match inbox.posts.send(Post::One(owner, Event::Up(up))) {
            Ok(()) => Ok(()),
            Err(unsent) => match unsent.0 {
                Post::One(_, Event::Up(up)) if is_bounded(&up) => Err(Box::new(up)),
                _ => Ok(()),
            },
        }
    }

    fn reserve(&self, up: &Up) -> bool {
        if !is_bounded(up) {
            return true;
        }
        let Some(inbox) = self.inboxes.get(usize::from(self.owner(up))) else { return true };
        match inbox.permits.try_acquire() {
            Ok(permit) => {
                permit.forget();
                true
            }
            Err(_) => false,
        }
    }

    fn hand_over(&self, ups: &mut Vec<Up>) {
        post_all(&self.inboxes, self.workers, ups.drain(..).map(|up| (self.owner(&up), Event::Up(up))));
    }

    fn send(&self, up: Up) -> Pin<Box<dyn Future<Output = Result<(), Code>> + Send + '_>> {
        Box::pin(async move {
            let owner = self.owner(&up);
            let Some(inbox) = self.inboxes.get(usize::from(owner)) else { return Ok(()) };
            if is_bounded(&up) {
                match tokio::time::timeout(UP_WAIT_MAX, inbox.permits.acquire()).await {
                    Ok(Ok(permit)) => permit.forget(),
                    Ok(Err(_)) | Err(_) => return Err(Code::RETRY_LATER),
                }
            }
            inbox.posts.send(Post::One(owner, Event::Up(up))).map_err(|_| Code::RETRY_LATER)
        })
    }
}
