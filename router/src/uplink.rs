//! The gateways' way in: finds the owner and bounds what may wait for it.

use std::{future::Future, pin::Pin, sync::Arc};

use fanfare_proto::{
    Code, FrameType, ShardId,
    link::{UP_WAIT_MAX, Up, Uplink},
};

use crate::{context::Inbox, event::Event};

/// See the module. Holds nothing of the router but the inboxes: a gateway that keeps it keeps no store open.
pub struct RouterUplink {
    inboxes: Arc<[Inbox]>,
}

impl RouterUplink {
    pub(crate) fn new(inboxes: Arc<[Inbox]>) -> Self {
        Self { inboxes }
    }

    fn shard_of(&self, shard: ShardId) -> u16 {
        shard.0 % self.inboxes.len() as u16
    }

    fn inbox(&self, up: &Up) -> Option<&Inbox> {
        let shard = match up {
            Up::Open { origin, .. } | Up::Close { origin } => self.shard_of(origin.user.shard()),
            Up::Credit { owner, .. } => *owner,
            Up::Frame { origin, frame } => match (frame.frame_type(), frame.routed()) {
                (FrameType::Open, _) | (_, None) => self.shard_of(origin.user.shard()),
                (_, Some(header)) => self.shard_of(header.channel.shard()),
            },
        };
        self.inboxes.get(usize::from(shard))
    }
}

/// Whether it takes a permit: what a peer can cause in any number.
pub fn is_bounded(up: &Up) -> bool {
    matches!(up, Up::Open { .. } | Up::Frame { .. })
}

impl Uplink for RouterUplink {
    fn try_send(&self, up: Up) -> Result<(), Box<Up>> {
        let Some(inbox) = self.inbox(&up) else { return Ok(()) };
        if is_bounded(&up) {
            match inbox.permits.try_acquire() {
                Ok(permit) => permit.forget(),
                Err(_) => return Err(Box::new(up)),
            }
        }
        match inbox.events.send(Event::Up(up)) {
            Ok(()) => Ok(()),
            Err(unsent) => match unsent.0 {
                Event::Up(up) if is_bounded(&up) => Err(Box::new(up)),
                _ => Ok(()),
            },
        }
    }

    fn send(&self, up: Up) -> Pin<Box<dyn Future<Output = Result<(), Code>> + Send + '_>> {
        Box::pin(async move {
            let Some(inbox) = self.inbox(&up) else { return Ok(()) };
            if is_bounded(&up) {
                match tokio::time::timeout(UP_WAIT_MAX, inbox.permits.acquire()).await {
                    Ok(Ok(permit)) => permit.forget(),
                    Ok(Err(_)) | Err(_) => return Err(Code::RETRY_LATER),
                }
            }
            inbox.events.send(Event::Up(up)).map_err(|_| Code::RETRY_LATER)
        })
    }
}
